from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from models import JobLog, JobLogType
from resolvers.context import Info
from services import reading
from services.filters import JobFilter
from services.paging import Page, Window, decode_position


async def of_job(
    info: Info, job_id: UUID, types: Sequence[JobLogType] | None, window: Window
) -> Page[JobLog]:
    return await reading.logs_of_job(job_id, types, window)


async def page(
    info: Info,
    where: JobFilter | None,
    types: Sequence[JobLogType] | None,
    first: int,
    after: str | None,
) -> Page[JobLog]:
    position = None if after is None else decode_position(after)
    until = await info.context.rt.events.complete_until()
    return await reading.logs(info.context.viewer, where, types, position, first, until)
