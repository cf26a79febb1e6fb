from __future__ import annotations

from models import AuditEntry
from resolvers import jobs
from resolvers.context import Info
from services import audit, verification
from services.paging import Page, Window
from services.verification import Verification


async def page(info: Info, window: Window) -> Page[AuditEntry]:
    return await audit.entries(info.context.viewer, window)


async def verify(info: Info, job_id: str | None) -> Verification:
    viewer = info.context.viewer
    if job_id is None:
        return await verification.of_workspace(viewer)
    return await verification.of_job(viewer, jobs.key(job_id))
