"""From the log to deliveries.

Every worker reads the log for all webhooks at once. Who is first writes the deliveries of a
stretch of it, together with the positions that the webhooks have come to; who comes second finds
a position changed, writes nothing for that webhook and goes on from there. So nothing is left out
and nothing made twice, whoever dies when.

What a webhook hears of is told from the jobs in memory, by its owner's sight; filters alone are
the database's, many in one statement. So how many webhooks there are does not change how often
the database is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from models import Job, JobLog, JobLogType, Webhook, jsontext, statements
from models.base import uuid7
from services import filters, queue
from services.actors import Sight
from services.errors import InvalidInput
from services.runtime import Runtime
from services.webhooks import enabled, hooks, matching, payloads
from services.webhooks.matching import Where

MAKING = 7_464_339_116
"""The key of the turns in writing."""
PAGE = 200
WINDOW = 5000
"""Positions of the log that are looked through at once, at most."""
NOTED = 1000
"""How far a webhook comes without an event for it before that is written down."""
WRITTEN = 500
"""Deliveries written at once, for which the event loop waits on SQLite; one webhook's at least."""
UNMATCHED = "Which jobs it asks for could not be told; save it again."
UNTOLD = (InvalidInput, ValueError, TypeError, OverflowError)
"""What a filter or types raise that are not what was saved, or not any more."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A webhook as it was saved; `sight` is the most that its owner may see."""

    hook: Webhook
    types: frozenset[JobLogType]
    where: Where | None
    sight: Sight


@dataclass(slots=True)
class Place:
    """How far a webhook has come: as it is written, and as it was looked through here."""

    listener: Listener
    written: int
    looked: int
    found: Sequence[JobLog] = ()
    """What it is to hear of in the stretch under way."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Entries of the log past a position, up to where it was looked through."""

    entries: Sequence[JobLog]
    reached: int
    jobs: Mapping[UUID, Job]
    """With what a sight and an event need of them."""
    _seen: dict[tuple[Sight, frozenset[JobLogType]], Sequence[JobLog]] = field(
        default_factory=dict[tuple[Sight, frozenset[JobLogType]], "Sequence[JobLog]"]
    )
    _bodies: dict[int, str] = field(default_factory=dict[int, str])

    def seen(self, place: Place, sight: Sight) -> Sequence[JobLog]:
        """What there is for a webhook; those of the same sight and types share the search."""
        types = place.listener.types
        if (sight, types) not in self._seen:
            self._seen[sight, types] = [
                entry
                for entry in self.entries
                if entry.type in types and sight.holds(self.jobs[entry.job_id])
            ]
        return [entry for entry in self._seen[sight, types] if entry.seq > place.looked]

    def body(self, entry: JobLog) -> str:
        """The same for every webhook."""
        if entry.seq not in self._bodies:
            name = self.jobs[entry.job_id].name
            self._bodies[entry.seq] = payloads.of_entry(entry, name)
        return self._bodies[entry.seq]


async def any_enabled() -> bool:
    return bool(await statements.database().fetch(ANY))


ANY = 'SELECT 1 FROM "webhooks" WHERE "enabled" LIMIT 1'
PLACES = 'SELECT "id", "version", "position" FROM "webhooks" WHERE "enabled"'


class Maker:
    """Makes the deliveries of all webhooks; remembers how far it looked for nothing."""

    def __init__(self, rt: Runtime, *, kept: timedelta) -> None:
        self._rt = rt
        self._kept = kept
        self._places: dict[UUID, Place] = {}
        self._last_back = 0

    async def look(self, until: int) -> bool:
        """A stretch or two of the log; whether there is more to be made at once."""
        await self._find()
        behind = [place for place in self._places.values() if place.looked < until]
        if not behind:
            return False
        for start in self._starts(behind):
            await self._go_on(start, until)
        return any(place.looked < until for place in self._places.values())

    async def _find(self) -> None:
        """The enabled webhooks and their places; only those that were saved since are read."""
        rows = await statements.database().fetch(PLACES)
        at = {queue.uuid(id): (version, position) for id, version, position in rows}
        known = {
            id: place
            for id, place in self._places.items()
            if id in at and place.listener.hook.version == at[id][0]
        }
        wheres = [place.listener.where for place in known.values()]
        shared = {where.text: where for where in wheres if where}
        for hook in await enabled.read(self._rt, [id for id in at if id not in known]):
            listener = await self._listener(hook, shared)
            if listener is not None:
                known[hook.id] = Place(listener, hook.position, hook.position)
        for id, place in known.items():
            place.written = at[id][1]
            place.looked = max(place.looked, place.written)
        self._places = known

    async def _listener(self, hook: Webhook, shared: dict[str, Where]) -> Listener | None:
        """None for one that is disabled because nobody knows what it asks for."""
        try:
            types = frozenset(map(JobLogType, jsontext.loads(hook.types_json)))
            text = hook.where_json
            if text and text not in shared:
                shared[text] = Where(text, filters.restored(text))
            where = shared[text] if text else None
        except UNTOLD:
            await hooks.stop(self._rt, hook.id, UNMATCHED)
            return None
        sight = enabled.owner_as(self._rt, hook, hook.owner_role).sight
        return Listener(hook, types, where, sight)

    def _starts(self, behind: Sequence[Place]) -> list[int]:
        """Where to read from: at the front, and at one of the places far behind it, in turns.

        So one that was enabled after a month holds up none of the others.
        """
        positions = {place.looked for place in behind}
        front = min(each for each in positions if each > max(positions) - WINDOW)
        back = sorted(each for each in positions if each < front)
        if not back:
            return [front]
        return [front, next((each for each in back if each > self._last_back), back[0])]

    async def _go_on(self, start: int, until: int) -> None:
        """Make what there is for all that are in the stretch from `start`."""
        end = min(until, start + WINDOW)
        group = [place for place in self._places.values() if start <= place.looked < end]
        types = {type for place in group for type in place.listener.types}
        stretch = await self._read(start, end, types)
        self._last_back = stretch.reached
        inside = [place for place in group if place.looked < stretch.reached]
        await self._match(inside, stretch)
        for batch in self._batches(inside, stretch):
            await _write(batch, stretch)

    async def _read(self, start: int, end: int, types: Collection[JobLogType]) -> Stretch:
        query = JobLog.filter(seq__gt=start, seq__lte=end, type__in=types)
        entries = await query.order_by("seq").limit(PAGE)
        reached = entries[-1].seq if len(entries) == PAGE else end
        oldest = datetime.now(UTC) - self._kept
        kept = [entry for entry in entries if entry.created_at >= oldest]
        wanted = {entry.job_id for entry in kept}
        jobs = Job.filter(id__in=wanted).only("id", "name", "workspace_id", "created_by_id")
        return Stretch(kept, reached, {job.id: job async for job in jobs} if wanted else {})

    async def _match(self, places: Sequence[Place], stretch: Stretch) -> None:
        """Find what each of them is to hear of; disable those of which that is not known.

        Keys are asked only for those that would hear of anything with the most they could see.
        """
        for place in places:
            place.found = stretch.seen(place, place.listener.sight)
        telling = [place for place in places if place.found]
        if not telling:
            return
        owners = await enabled.owners(self._rt, [place.listener.hook for place in telling])
        for place in telling:
            owner = owners[place.listener.hook.id]
            if owner is None:
                await self._stop(place, enabled.KEYLESS)
            elif owner.sight != place.listener.sight:
                place.found = stretch.seen(place, owner.sight)
        await self._filter([place for place in telling if place.found], stretch.jobs)

    async def _filter(self, places: Sequence[Place], jobs: Collection[UUID]) -> None:
        """Leave out what their filters do."""
        filtered = [(place, place.listener.where) for place in places]
        wanted = {where.text: where for _, where in filtered if where}
        matches = await matching.jobs_of(wanted.values(), jobs)
        for place, where in filtered:
            if where is None:
                continue
            matched = matches[where.text]
            if matched is None:
                await self._stop(place, UNMATCHED)
            elif matched:
                place.found = [entry for entry in place.found if entry.job_id in matched]
            else:
                place.found = ()

    async def _stop(self, place: Place, reason: str) -> None:
        """Disable it; it keeps its place."""
        id = place.listener.hook.id
        await hooks.stop(self._rt, id, reason)
        place.found = ()
        del self._places[id]

    def _batches(self, places: Sequence[Place], stretch: Stretch) -> Iterator[list[Place]]:
        """Those of which there is something to write; the others have come on with that."""
        batch: list[Place] = []
        found = 0
        for place in places:
            if place.listener.hook.id not in self._places:
                continue
            if not place.found and stretch.reached - place.written < NOTED:
                place.looked = stretch.reached
                continue
            batch.append(place)
            found += len(place.found)
            if found >= WRITTEN:
                yield batch
                batch, found = [], 0
        if batch:
            yield batch


# What is written is one value, so that a statement is the same for any number of rows.
EACH = {
    True: 'json_each($1) "each"',
    False: 'jsonb_array_elements(CAST($1 AS JSONB)) "each"("value")',
}
MOVE = """UPDATE "webhooks" SET "position" = CAST($2 AS BIGINT)
    FROM (SELECT CAST("value" ->> 'id' AS {uuid}) AS "hook_id",
              CAST("value" ->> 'position' AS BIGINT) AS "seen_position",
              CAST("value" ->> 'version' AS BIGINT) AS "seen_version" FROM {each}) "seen"
    WHERE "id" = "hook_id" AND "position" = "seen_position" AND "version" = "seen_version"
        AND "enabled" RETURNING "id" """
INSERT = """INSERT INTO "webhook_deliveries" ("id", "created_at", "webhook_id", "job_id", "seq",
        "type", "body", "state", "attempts", "tries", "next_attempt_at")
    SELECT CAST("value" ->> 'id' AS {uuid}), CAST($2 AS {instant}),
        CAST("value" ->> 'hook' AS {uuid}), CAST("value" ->> 'job' AS {uuid}),
        CAST("value" ->> 'seq' AS BIGINT), "value" ->> 'type', "value" ->> 'body',
        'PENDING', 0, 0, CAST($2 AS {instant})
    FROM {each} """


def _spelled(sql: str) -> str:
    if statements.is_sqlite():
        return sql.format(uuid="TEXT", instant="TEXT", each=EACH[True])
    return sql.format(uuid="UUID", instant="TIMESTAMPTZ", each=EACH[False])


async def _write(places: Sequence[Place], stretch: Stretch) -> None:
    """Write the positions, and the deliveries of those that nobody moved or changed meanwhile."""
    seen = [
        {"id": str(hook.id), "position": place.written, "version": hook.version}
        for place, hook in [(place, place.listener.hook) for place in places]
    ]
    async with statements.database().exclusive(MAKING) as connection:
        rows = await connection.fetch(_spelled(MOVE), jsontext.dumps(seen), stretch.reached)
        moved = {queue.uuid(id) for (id,) in rows}
        came_on = [place for place in places if place.listener.hook.id in moved]
        made = [_delivery(place, each, stretch) for place in came_on for each in place.found]
        if made:
            await connection.fetch(_spelled(INSERT), jsontext.dumps(made), datetime.now(UTC))
    for place in came_on:
        place.looked = place.written = stretch.reached


def _delivery(place: Place, entry: JobLog, stretch: Stretch) -> dict[str, Any]:
    return {
        "id": str(uuid7()),
        "hook": str(place.listener.hook.id),
        "job": str(entry.job_id),
        "seq": entry.seq,
        "type": payloads.TYPES[entry.type],
        "body": stretch.body(entry),
    }
