from __future__ import annotations

from models import AuditEntry
from resolvers import jobs
from resolvers.context import Info
from services import audit, verification
from services.paging import Page, Window
from services.verification import Verification

UNITS = 3
"""What it costs to go through an entry, beside what a document says of itself."""


async def page(info: Info, window: Window) -> Page[AuditEntry]:
    return await audit.entries(info.context.viewer, window)


async def verify(info: Info, job_id: str | None) -> Verification:
    """Each caller pays for what was gone through, whatever comes of it."""
    viewer, rates = info.context.viewer, info.context.rt.rates

    def paid(entries: int) -> None:
        rates.owe(viewer.budget, entries * UNITS)

    if job_id is None:
        return await verification.of_workspace(viewer, paid)
    found = await verification.of_job(viewer, jobs.key(job_id))
    paid(found.checked)
    return found
