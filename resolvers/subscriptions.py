from __future__ import annotations

from collections.abc import Sequence

from models import JobLogType
from resolvers import jobs
from resolvers.context import Info
from services import jobs as rows
from services.filters import JobFilter
from services.listening import Question
from services.paging import decode_position


async def question(
    info: Info,
    *,
    job_id: str | None,
    where: JobFilter | None,
    types: Sequence[JobLogType] | None,
    after: str | None,
    snapshot: bool = False,
) -> Question:
    """What the caller wants to hear of; raises `NotFound` and `InvalidInput`."""
    asked = Question(
        viewer=info.context.viewer,
        job_id=None if job_id is None else jobs.key(job_id),
        where=where,
        types=None if types is None else frozenset(types),
        after=None if after is None else decode_position(after),
        snapshot=snapshot,
    )
    asked.check()
    if asked.job_id is not None:
        await rows.get(asked.viewer, asked.job_id)
    return asked
