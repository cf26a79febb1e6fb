"""When a job is to start, to be done and to be given up: what callers ask for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from models import Job
from services.errors import InvalidInput
from services.values import Command

FIRST, LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def _utc(at: datetime) -> datetime:
    aware = at if at.tzinfo else at.replace(tzinfo=UTC)
    if not FIRST + timedelta(days=1) < aware < LAST:
        raise ValueError("must be between 1970 and 9000")
    return aware.astimezone(UTC)


Moment = Annotated[datetime, AfterValidator(_utc)]


class Plan(Command):
    """Times without a zone are UTC."""

    run_at: Moment | None = Field(default=None, description="It does not start before.")
    due_at: Moment | None = Field(
        default=None, description="When it should be done; for filters and orders."
    )
    expires_at: Moment | None = Field(
        default=None, description="What is not done by then is cancelled, even while it runs."
    )


class NewPlan(Plan):
    ttl_seconds: int | None = Field(
        default=None,
        ge=1,
        le=315_360_000,
        description="`expiresAt`, so many seconds from now.",
    )
    auto_execute: bool = Field(
        default=False,
        description="Start by itself, once, as soon as it is assigned, ready and due.",
    )

    def expiry(self) -> datetime | None:
        if self.ttl_seconds is None:
            return self.expires_at
        return datetime.now(UTC) + timedelta(seconds=self.ttl_seconds)


class ChangedPlan(Plan):
    """Null takes a time away."""

    auto_execute: bool | None = Field(
        default=None, description="Start by itself, as soon as it is assigned, ready and due."
    )

    def columns(self) -> dict[str, Any]:
        """What is to change of a job."""
        times = {"run_at", "due_at", "expires_at"} & self.model_fields_set
        changes = {name: getattr(self, name) for name in times}
        if self.auto_execute is not None:
            changes |= {"auto_execute": self.auto_execute, "armed": self.auto_execute}
        return changes


def check(plan: NewPlan | ChangedPlan, job: Job | None = None) -> None:
    """Raises `InvalidInput` for times at which nothing could come of the job."""
    if isinstance(plan, NewPlan):
        if plan.ttl_seconds is not None and plan.expires_at is not None:
            raise InvalidInput.at("input", "ttlSeconds", message="cannot go with expiresAt")
        run_at, expires_at = plan.run_at, plan.expiry()
    else:
        run_at = plan.run_at if "run_at" in plan.model_fields_set or not job else job.run_at
        kept = job.expires_at if job else None
        expires_at = plan.expires_at if "expires_at" in plan.model_fields_set else kept
    given = plan.expires_at if isinstance(plan, ChangedPlan) else expires_at
    if given is not None and given <= datetime.now(UTC):
        raise InvalidInput.at("input", "expiresAt", message="must be in the future")
    if run_at is not None and expires_at is not None and run_at >= expires_at:
        raise InvalidInput.at("input", "runAt", message="must be before it expires")
