"""Which of some jobs each of many filters lets through, in as few statements as there can be."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast
from uuid import UUID

from tortoise import connections

from models import Job
from services import filters, queue
from services.errors import InvalidInput
from services.filters import JobFilter

PLACEHOLDER = re.compile(r"\$(\d+)")
FILTERS, VALUES = 100, 10_000
"""In one statement, at most; the databases take 500 and 32,000."""


async def jobs_of(
    wheres: Mapping[str, JobFilter], jobs: Collection[UUID]
) -> dict[str, set[UUID] | None]:
    """The jobs by the filter that they fit, which its text names; None for one that cannot be."""
    queries: dict[str, Query | None] = {}
    for text, where in wheres.items():
        queries[text] = _query(where, jobs)
        await asyncio.sleep(0)  # each takes as long as a statement
    found: dict[str, set[UUID] | None] = {
        text: None if query is None else set() for text, query in queries.items()
    }
    texts = [text for text, query in queries.items() if query is not None]
    for sql, values in _together([query for query in queries.values() if query is not None]):
        for row in await connections.get("default").execute_query_dict(sql, values):
            matched = found[texts[row["which"]]]
            assert matched is not None  # noqa: S101
            matched.add(queue.uuid(row["id"]))
    return found


Query = tuple[str, list[Any]]


def _query(where: JobFilter, jobs: Collection[UUID]) -> Query | None:
    try:
        query = Job.filter(filters.asked(where), id__in=jobs).values("id")
    except (InvalidInput, ValueError, OverflowError):
        return None
    query._make_query()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return cast("Query", query.query.get_parameterized_sql())


def _together(queries: list[Query]) -> Iterator[Query]:
    """The queries, joined into as many as there must be; each row says of which it is."""
    parts: list[str] = []
    given: list[Any] = []
    for which, (sql, values) in enumerate(queries):
        if parts and (len(parts) == FILTERS or len(given) + len(values) > VALUES):
            yield " UNION ALL ".join(parts), given
            parts, given = [], []
        parts.append(f'SELECT {which} AS "which", "q".* FROM ({_moved(sql, len(given))}) "q"')  # noqa: S608
        given = [*given, *values]
    if parts:
        yield " UNION ALL ".join(parts), given


def _moved(sql: str, offset: int) -> str:
    """The text with its numbered placeholders behind others; SQLite's have no numbers."""
    return PLACEHOLDER.sub(lambda found: f"${int(found[1]) + offset}", sql)
