"""What users asked for, what they were answered, and whether the log agrees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from models import JobLogType
from services.rules import Event
from tests.simulation.fold import Entry

Events = frozenset[Event]


def either(*events: Event) -> Events:
    return frozenset(events)


class Outcome(Enum):
    """UNKNOWN as long as there is no answer: it may have been done or not."""

    ACKED = auto()
    REFUSED = auto()
    UNKNOWN = auto()


@dataclass
class Request:
    """One mutation. Those of one `group` are repetitions, which together have one effect.

    `effects` are the events that it makes of its job, each one of several; `mark` is a text that
    is of this group alone, and that so many of its `marked` entries have as their message.
    """

    user: str
    mutation: str
    group: str
    job: str | None = None
    effects: tuple[Events, ...] = ()
    mark: str | None = None
    marked: int = 1
    outcome: Outcome = Outcome.UNKNOWN
    version: int | None = None
    """Of the job as this request left it, where its answer tells."""


@dataclass
class Ledger:
    requests: list[Request] = field(default_factory=list[Request])

    def acked(self) -> frozenset[str]:
        """The groups that were answered until now: their effects must stand from now on."""
        return frozenset(r.group for r in self.requests if r.outcome is Outcome.ACKED)

    def possible(self) -> dict[str, Request]:
        """One of each group that may have had its effect, by its name."""
        return {r.group: r for r in self.requests if r.outcome is not Outcome.REFUSED}

    def problems(
        self, logs: Mapping[str, list[Entry]], names: Iterable[str], acked: frozenset[str]
    ) -> list[str]:
        """What of `acked` is not there, and what is there that nobody asked for."""
        possible = self.possible()
        return [
            *_counted(logs, possible, acked),
            *_marked(logs, possible, acked),
            *_made(Counter(names), possible, acked),
            *self._versions(logs, acked),
        ]

    def _versions(self, logs: Mapping[str, list[Entry]], acked: frozenset[str]) -> list[str]:
        """An answer's version is that of the very entry that tells of it."""
        found: list[str] = []
        for request in self.requests:
            if request.version is None or request.job is None or request.group not in acked:
                continue
            told = [e.event for e in logs[request.job] if e.tells("version") == request.version]
            if len(told) != 1 or told[0] not in request.effects[-1]:
                found.append(f"version {request.version} is told as {told}: {request}")
        return found


def _counted(
    logs: Mapping[str, list[Entry]], possible: Mapping[str, Request], acked: frozenset[str]
) -> list[str]:
    """As many events of a user in a job as the user asked for."""
    least: Counter[tuple[str | None, str, Events]] = Counter()
    most: Counter[tuple[str | None, str, Events]] = Counter()
    classes: dict[Event, Events] = {}
    for group, request in possible.items():
        for events in request.effects:
            key = (request.job, request.user, events)
            classes |= dict.fromkeys(events, events)
            most[key] += 1
            least[key] += group in acked
    there: Counter[tuple[str | None, str, Events]] = Counter()
    for job, entries in logs.items():
        for entry in entries:
            if entry.event and entry.event != "CREATE" and entry.actor is not None:
                event = Event(entry.event)
                there[job, entry.actor, classes.get(event, either(event))] += 1
    return [
        f"{sorted(events)} of {user} in {job}: there are {there[key]}, of {least[key]} answered "
        f"and {most[key]} asked for"
        for key in least.keys() | most.keys() | there.keys()
        if not least[key] <= there[key] <= most[key]
        for job, user, events in (key,)
    ]


def _marked(
    logs: Mapping[str, list[Entry]], possible: Mapping[str, Request], acked: frozenset[str]
) -> list[str]:
    """Texts of users stand in the log as often as their requests' one effect writes them."""
    there = Counter(
        (job, text) for job, entries in logs.items() for entry in entries for text in _texts(entry)
    )
    found: list[str] = []
    for group, request in possible.items():
        if request.job is None or request.mark is None:
            continue
        count = there[request.job, request.mark]
        allowed = {request.marked} if group in acked else {0, request.marked}
        if count not in allowed:
            found.append(f"told {count} times: {request}")
    return found


def _texts(entry: Entry) -> list[str]:
    if entry.type is JobLogType.CONFIG_CHANGE:
        name = entry.payload.get("changes", {}).get("name")
        return [name] if name else []
    return [entry.message] if entry.actor and entry.message else []


def _made(names: Counter[str], possible: Mapping[str, Request], acked: frozenset[str]) -> list[str]:
    """As many jobs of a name as were asked for; later names are none of these."""
    found: list[str] = []
    for group, request in possible.items():
        if request.mutation == "createJob" and request.mark:
            allowed = {1} if group in acked else {0, 1}
            if names[request.mark] not in allowed:
                found.append(f"made {names[request.mark]} times: {request}")
    return found
