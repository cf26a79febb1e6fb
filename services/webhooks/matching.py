"""Which of some jobs each of many filters lets through, in as few statements as there can be.

The jobs are looked up once for all the filters of a statement, and so are their tags and what they
depend on, under the names of the tables: a filter goes through what little there is of that,
however much there is of other jobs. Its own SQL takes longer to make than to run, and is kept.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, cast
from uuid import UUID

from tortoise import connections
from tortoise.fields import TextField

from models import Job, jsontext, statements
from services import filters, queue
from services.errors import InvalidInput
from services.filters import JobFilter

PLACEHOLDER = re.compile(r"\$(\d+)")
FILTERS, VALUES = 100, 10_000
"""In one statement, at most; the databases take 500 and 32,000."""
LATER = timedelta(days=1)

Query = tuple[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Made:
    """A filter's SQL, and its values at a moment; those at `moving` are instants, as the clock."""

    sql: str
    values: Sequence[Any]
    moving: frozenset[int]
    moment: datetime

    def at(self, now: datetime) -> Query:
        """Raises `OverflowError` at the end of time."""
        passed = now - self.moment
        moved = [
            value + passed if place in self.moving else value
            for place, value in enumerate(self.values)
        ]
        return self.sql, moved


@dataclass(slots=True, eq=False)
class Where:
    """A filter and what it was read from, by which webhooks that have the same one share it."""

    text: str
    filter: JobFilter
    _made: Made | None = field(default=None, init=False)

    @property
    def is_made(self) -> bool:
        return self._made is not None

    def query(self, now: datetime) -> Query | None:
        """None for one that cannot be."""
        try:
            self._made = self._made or _made(self.filter, now)
            return self._made.at(now)
        except (InvalidInput, ValueError, OverflowError):
            return None


def _made(where: JobFilter, now: datetime) -> Made:
    sql, values = _sql(where, now)
    moving = frozenset[int]()
    if any(isinstance(value, datetime) for value in values):
        _, later = _sql(where, now + LATER)
        moving = frozenset(n for n, value in enumerate(values) if value != later[n])
    return Made(sql, values, moving, now)


def _sql(where: JobFilter, now: datetime) -> Query:
    query = Job.filter(filters.asked(where, now)).values("id")
    query._make_query()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    sql, values = cast("Query", query.query.get_parameterized_sql())
    return sql.replace(' FROM "jobs"', ' FROM "wanted" "jobs"', 1), values


async def jobs_of(wheres: Collection[Where], jobs: Collection[UUID]) -> dict[str, set[UUID] | None]:
    """The jobs by the filter that they fit, which its text names; None for one that cannot be."""
    now = datetime.now(UTC)
    queries: dict[str, Query | None] = {}
    for where in wheres:
        if not where.is_made:
            await asyncio.sleep(0)  # each takes as long as a statement
        queries[where.text] = where.query(now)
    found: dict[str, set[UUID] | None] = {
        text: None if query is None else set() for text, query in queries.items()
    }
    texts = [text for text, query in queries.items() if query is not None]
    ids = jsontext.dumps([str(each) for each in jobs])
    for sql, values in _together([query for query in queries.values() if query is not None]):
        given = [ids, *values]
        for row in await connections.get("default").execute_query_dict(sql, given):
            matched = found[texts[row["which"]]]
            assert matched is not None  # noqa: S101
            matched.add(queue.uuid(row["id"]))
    return found


def _together(queries: Sequence[Query]) -> Iterator[Query]:
    """The queries, joined into as many as there must be; each row says of which it is.

    The first value, which is left out, is of the jobs.
    """
    head = _head(on_sqlite=statements.is_sqlite())
    parts: list[str] = []
    given: list[Any] = []
    for which, (sql, values) in enumerate(queries):
        if parts and (len(parts) == FILTERS or len(given) + len(values) > VALUES):
            yield head + " UNION ALL ".join(parts), given
            parts, given = [], []
        moved = _moved(sql, 1 + len(given))
        parts.append(f'SELECT {which} AS "which", "q".* FROM ({moved}) "q"')  # noqa: S608
        given += values
    if parts:
        yield head + " UNION ALL ".join(parts), given


HEAD = """WITH "ids" ("id") AS MATERIALIZED (SELECT {each}),
    "wanted" AS MATERIALIZED (
        SELECT {columns} FROM "jobs" WHERE "id" IN (SELECT "id" FROM "ids")),
    "job_tags" AS MATERIALIZED (
        SELECT * FROM {main}"job_tags" WHERE "job_id" IN (SELECT "id" FROM "ids")),
    "job_dependencies" AS MATERIALIZED (
        SELECT * FROM {main}"job_dependencies" WHERE "job_id" IN (SELECT "id" FROM "ids")) """
EACH = {
    True: '"value" FROM json_each(?)',
    False: 'CAST("value" AS UUID) FROM jsonb_array_elements_text(CAST($1 AS JSONB)) "e"("value")',
}


@lru_cache(maxsize=2)
def _head(*, on_sqlite: bool) -> str:
    """Without the columns of jobs that are long, by which nobody filters."""
    described = cast("dict[str, Any]", Job.describe(serializable=False))
    columns: list[dict[str, Any]] = [described["pk_field"], *described["data_fields"]]
    short = [each for each in columns if not issubclass(each["field_type"], TextField)]
    names = ", ".join(f'"{each["db_column"]}"' for each in short)
    main = "main." if on_sqlite else ""  # there a name within its own definition is its own
    return HEAD.format(each=EACH[on_sqlite], columns=names, main=main)


def _moved(sql: str, offset: int) -> str:
    """The text with its numbered placeholders behind others; SQLite's have no numbers."""
    return PLACEHOLDER.sub(lambda found: f"${int(found[1]) + offset}", sql)
