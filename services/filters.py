"""Which rows: filters as clients write them, and the conditions they become."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, cast

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from pydantic.alias_generators import to_camel
from tortoise.expressions import Q, Subquery

from models import AgentAvailability, JobPhase, JobPriority, JobStatus, JobTag, jsontext
from services import dependencies
from services.actors import Viewer
from services.errors import InvalidInput
from services.values import AgentId, Command, JobId, Text, public_id

MAX_DEPTH = 5
MAX_LIST = 200
MAX_CONDITIONS = 500
"""Filters and listed values of one condition: a database's parser has a limit too."""

Texts = Annotated[list[Text], Field(max_length=MAX_LIST)]


def _shown(prefix: str) -> PlainSerializer:
    """In JSON an id is what a client wrote, so that a filter can be kept and read again."""
    return PlainSerializer(partial(public_id, prefix), when_used="json")


OneJob = Annotated[JobId, _shown("job")]
OneAgent = Annotated[AgentId, _shown("agent")]


class JobIDComparator(Command):
    eq: OneJob | None = None
    in_: Annotated[list[OneJob], Field(max_length=MAX_LIST)] | None = None
    nin: Annotated[list[OneJob], Field(max_length=MAX_LIST)] | None = None


class AgentIDComparator(Command):
    eq: OneAgent | None = None
    in_: Annotated[list[OneAgent], Field(max_length=MAX_LIST)] | None = None
    nin: Annotated[list[OneAgent], Field(max_length=MAX_LIST)] | None = None


class ActorIDComparator(Command):
    """The `id` of an `Actor`, such as `createdBy { id }`."""

    eq: Text | None = None
    in_: Texts | None = None
    nin: Texts | None = None


class StringComparator(Command):
    eq: Text | None = None
    in_: Texts | None = None
    contains: Text | None = None
    starts_with: Text | None = None
    ignore_case: bool = True


class StringListComparator(Command):
    any: Texts | None = Field(default=None, description="Has at least one of them.")
    all: Texts | None = Field(default=None, description="Has every one of them.")
    none: Texts | None = Field(default=None, description="Has none of them.")
    is_empty: bool | None = None


class JobStatusComparator(Command):
    eq: JobStatus | None = None
    in_: list[JobStatus] | None = None
    nin: list[JobStatus] | None = None


class JobPhaseComparator(Command):
    eq: JobPhase | None = None
    in_: list[JobPhase] | None = None


def _by_name(value: object) -> object:
    return JobPriority.__members__.get(value, value) if isinstance(value, str) else value


def _name_of(priority: JobPriority) -> str:
    return priority.name


OnePriority = Annotated[
    JobPriority, BeforeValidator(_by_name), PlainSerializer(_name_of, when_used="json")
]


class JobPriorityComparator(Command):
    eq: OnePriority | None = None
    in_: list[OnePriority] | None = None
    gte: OnePriority | None = None


class AgentAvailabilityComparator(Command):
    in_: list[AgentAvailability] | None = None


DURATION = re.compile(
    r"(?P<sign>[+-]?)P(?:(?P<weeks>\d{1,6})W)?(?:(?P<days>\d{1,6})D)?"
    r"(?:T(?:(?P<hours>\d{1,6})H)?(?:(?P<minutes>\d{1,6})M)?(?:(?P<seconds>\d{1,9})S)?)?"
)


def instant(text: str, now: datetime | None = None) -> datetime:
    """An ISO 8601 instant, or a duration relative to now such as `-P7D` or `-PT30M`."""
    found = DURATION.fullmatch(text)
    if found:
        parts = {unit: int(n) for unit, n in found.groupdict().items() if unit != "sign" and n}
        if not parts:
            raise ValueError("is a duration without a length; say for example -P7D")
        length = timedelta(**parts)
        return (now or datetime.now(UTC)) + (-length if found["sign"] == "-" else length)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            "must be an ISO 8601 instant such as 2026-01-31T12:00:00Z, or a duration such as -P7D"
        ) from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)


def _is_instant(text: str) -> str:
    try:
        instant(text)
    except OverflowError:
        raise ValueError("is out of range") from None
    return text


Instant = Annotated[Text, Field(max_length=64), AfterValidator(_is_instant)]


class DateComparator(Command):
    """ISO 8601 instants, or durations relative to now such as `-P7D`."""

    gt: Instant | None = None
    gte: Instant | None = None
    lt: Instant | None = None
    lte: Instant | None = None


class AgentFilter(Command):
    """Every condition given must hold."""

    id: AgentIDComparator | None = None
    name: StringComparator | None = None
    availability: AgentAvailabilityComparator | None = None
    is_null: bool | None = Field(default=None, description="Of a job: whether it has no agent.")


class BooleanComparator(Command):
    eq: bool | None = None


class JobFilter(Command):
    """Every condition given must hold; lists leave archived jobs out unless asked for them."""

    and_: Annotated[list[JobFilter], Field(max_length=50)] | None = None
    or_: Annotated[list[JobFilter], Field(max_length=50)] | None = None
    not_: JobFilter | None = None
    id: JobIDComparator | None = None
    status: JobStatusComparator | None = None
    phase: JobPhaseComparator | None = None
    priority: JobPriorityComparator | None = None
    name: StringComparator | None = None
    agent: AgentFilter | None = None
    created_by: ActorIDComparator | None = None
    tags: StringListComparator | None = None
    created_at: DateComparator | None = None
    updated_at: DateComparator | None = None
    due_at: DateComparator | None = None
    blocked: bool | None = Field(
        default=None, description="Whether it waits for jobs that it depends on."
    )
    archived: BooleanComparator | None = None


def stored(where: JobFilter) -> str:
    """A filter as JSON text; `restored` makes it again, and relative times stay relative."""
    return where.model_dump_json(exclude_none=True)


def restored(text: str) -> JobFilter:
    return JobFilter.model_validate_json(text)


def as_input(text: str) -> dict[str, Any]:
    """A stored filter as a client writes it, by GraphQL's names."""
    return cast("dict[str, Any]", _spelled(jsontext.loads(text)))


def _spelled(value: Any) -> Any:
    if isinstance(value, list):
        return [_spelled(each) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    given = cast("dict[str, Any]", value)
    return {to_camel(name.rstrip("_")): _spelled(each) for name, each in given.items()}


def listed(where: JobFilter | None, viewer: Viewer) -> Q:
    """What the viewer may see of what they ask for, without what is archived unless they do."""
    asked = where is not None and where.archived is not None
    condition = job_condition(where, viewer)
    return condition if asked else condition & Q(archived_at__isnull=True)


def job_condition(where: JobFilter | None, viewer: Viewer) -> Q:
    """What the viewer may see of what they ask for, archived or not."""
    parts = [viewer.sight.condition()]
    if where is not None:
        parts.append(asked(where))
    return _all(parts)


def asked(where: JobFilter, now: datetime | None = None) -> Q:
    """What is asked for, whoever asks. Raises `InvalidInput`."""
    _check(where)
    return _job(where, now or datetime.now(UTC))


def _check(where: JobFilter) -> None:
    """Refuse what would take a database long, or is more than it can parse."""
    level, depth, conditions = [where], 0, 0
    while level:
        depth += 1
        conditions += sum(map(_weight, level))
        level = [child for each in level for child in _children(each)]
    if depth > MAX_DEPTH:
        raise InvalidInput.at("where", message=f"is nested more than {MAX_DEPTH} levels deep")
    if conditions > MAX_CONDITIONS:
        raise InvalidInput.at("where", message=f"has more than {MAX_CONDITIONS} conditions")


def _children(where: JobFilter) -> list[JobFilter]:
    return [*(where.and_ or ()), *(where.or_ or ()), *([where.not_] if where.not_ else ())]


def _weight(where: Command) -> int:
    """The comparators of one filter, and the values that they list."""
    total = 1
    for _, value in where:
        if isinstance(value, Command) and not isinstance(value, JobFilter):
            total += _weight(value)
        elif isinstance(value, list):
            values = cast("list[object]", value)
            total += sum(not isinstance(each, Command) for each in values)
    return total


def _job(where: JobFilter, now: datetime) -> Q:
    parts = [
        *[_job(each, now) for each in where.and_ or ()],
        *_any_of(where.or_, now),
        *([_not(_job(where.not_, now))] if where.not_ else []),
        *_members("id", where.id),
        *_members("status", where.status),
        *_phases(where.phase),
        *_members("priority", where.priority),
        *_text("name", where.name),
        *_members("created_by_id", where.created_by),
        *_dates("created_at", where.created_at, now),
        *_dates("updated_at", where.updated_at, now),
        *_due(where.due_at, now),
        *([agent_condition(where.agent, "agent__")] if where.agent else []),
        *_tags(where.tags),
    ]
    if where.blocked is not None:
        parts.append(dependencies.blocked() if where.blocked else ~dependencies.blocked())
    if where.archived is not None and where.archived.eq is not None:
        parts.append(Q(archived_at__isnull=not where.archived.eq))
    return _all(parts)


NOTHING = Q(pk__in=[])
EVERYTHING = ~NOTHING
"""Said outright: Tortoise forgets an empty condition, and whatever negates it or is beside it."""


def _not(condition: Q) -> Q:
    """Not of a condition by itself, since a membership that is negated already would stay so."""
    return ~Q(condition, EVERYTHING)


def _all(parts: Iterable[Q]) -> Q:
    return Q(*(list(parts) or [EVERYTHING]), join_type=Q.AND)


def _any(parts: Iterable[Q]) -> Q:
    return Q(*(list(parts) or [NOTHING]), join_type=Q.OR)


def _any_of(filters: list[JobFilter] | None, now: datetime) -> list[Q]:
    if filters is None:
        return []
    return [_any(_job(each, now) for each in filters)]


def agent_condition(where: AgentFilter | None, prefix: str = "") -> Q:
    if where is None:
        return Q()
    parts = [
        *_members(f"{prefix}id", where.id),
        *_text(f"{prefix}name", where.name),
        *_members(f"{prefix}availability", where.availability),
    ]
    if prefix and parts and not _only_excludes(where):
        parts.append(Q(agent_id__isnull=False))  # else a job without agent is neither in nor out
    if where.is_null is not None and prefix:
        parts.append(Q(agent_id__isnull=where.is_null))
    return _all(parts)


def _only_excludes(where: AgentFilter) -> bool:
    ids = where.id
    return not (where.name or where.availability or (ids and (ids.eq or ids.in_ is not None)))


OPERATORS = {"eq": "", "in_": "__in", "nin": "__not_in", "gte": "__gte"}


def _where(column: str, value: Any) -> Q:
    return Q(**{column: value})


def _members(column: str, where: Command | None) -> list[Q]:
    """Equality, membership and lower bounds of any comparator that has them."""
    return [
        _where(column + operator, value)
        for name, operator in OPERATORS.items()
        if (value := getattr(where, name, None)) is not None
    ]


def _phases(where: JobPhaseComparator | None) -> list[Q]:
    """A job that is not in execution has no phase: `not` must find it."""
    found = _members("phase", where)
    return [Q(phase__isnull=False), *found] if found else []


def _text(column: str, where: StringComparator | None) -> list[Q]:
    if where is None:
        return []
    i = "i" if where.ignore_case else ""
    parts: list[Q] = []
    if where.eq is not None:
        parts.append(Q(**{f"{column}__iexact" if i else column: where.eq}))
    if where.in_ is not None:
        exact = f"{column}__iexact" if i else column
        parts.append(_any(Q(**{exact: one}) for one in where.in_))
    if where.contains is not None:
        parts.append(Q(**{f"{column}__{i}contains": where.contains}))
    if where.starts_with is not None:
        parts.append(Q(**{f"{column}__{i}startswith": where.starts_with}))
    return parts


def _dates(column: str, where: DateComparator | None, now: datetime) -> list[Q]:
    if where is None:
        return []
    return [
        _where(f"{column}__{name}", instant(text, now))
        for name, text in where.model_dump(exclude_none=True).items()
    ]


def _due(where: DateComparator | None, now: datetime) -> list[Q]:
    """A job without such a date is in no span of time: `not` must find it."""
    found = _dates("due_at", where, now)
    return [Q(due_at__isnull=False), *found] if found else []


def _tagged(*tags: str) -> Q:
    rows = JobTag.filter(tag__in=tags) if tags else JobTag.all()
    return Q(id__in=Subquery(rows.values("job_id")))


def _tags(where: StringListComparator | None) -> list[Q]:
    if where is None:
        return []
    parts: list[Q] = []
    if where.any is not None:
        parts.append(_tagged(*where.any) if where.any else NOTHING)
    parts += [_tagged(tag) for tag in where.all or ()]
    if where.none:
        parts.append(~_tagged(*where.none))
    if where.is_empty is not None:
        parts.append(~_tagged() if where.is_empty else _tagged())
    return parts
