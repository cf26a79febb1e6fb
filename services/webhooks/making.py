"""From the log to deliveries.

Every worker reads the log for every webhook. Who is first writes the deliveries of a stretch of it,
together with the position that the webhook has come to; who comes second finds that position
changed, writes nothing and goes on from there. So nothing is left out and nothing made twice,
whoever dies when.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog

from models import Job, JobLog, Webhook, jsontext, statements
from models.base import uuid7
from models.statements import Statement
from services import filters
from services.actors import Viewer
from services.errors import InvalidInput
from services.filters import job_condition
from services.runtime import Runtime
from services.transactions import atomic, current
from services.values import public_id
from services.webhooks import hooks, payloads
from services.webhooks.hooks import KEYLESS

logger = structlog.get_logger(__name__)

PAGE = 200
WINDOW = 5000
"""Positions of the log that are looked through at once, at most."""
NOTED = 1000
"""How far a webhook comes without an event for it before that is written down."""
UNMATCHED = "Which jobs it asks for could not be told; save it again."


class Overtaken(Exception):
    """Another worker made these deliveries."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Entries of the log past a position, up to where it was looked through."""

    entries: Sequence[JobLog]
    reached: int
    names: Mapping[UUID, str]
    """Of the jobs."""


async def any_enabled() -> bool:
    return bool(await statements.database().fetch(ANY))


ANY = 'SELECT 1 FROM "webhooks" WHERE "enabled" LIMIT 1'
ENABLED = '"webhooks" t0 WHERE t0."enabled"'


class Maker:
    """Makes the deliveries of all webhooks; remembers how far it looked for nothing."""

    def __init__(self, rt: Runtime, *, kept: timedelta) -> None:
        self._rt = rt
        self._kept = kept
        self._looked: dict[UUID, int] = {}

    async def look(self, until: int) -> bool:
        """One stretch of the log for each webhook; whether there is more to be made at once."""
        enabled: list[Webhook] = [
            hook for (hook,) in await statements.fetch_all((Webhook,), ENABLED)
        ]
        self._looked = {
            hook.id: max(hook.position, self._looked.get(hook.id, 0)) for hook in enabled
        }
        at: defaultdict[int, list[Webhook]] = defaultdict(list)
        for hook in enabled:
            at[self._looked[hook.id]].append(hook)
        behind = [position for position in at if position < until]
        moved = [await self._go_on(at[position], position, until) for position in behind]
        return any(reached < until for reached in moved if reached is not None)

    async def _go_on(self, group: Sequence[Webhook], position: int, until: int) -> int | None:
        """How far those came that were at `position`; None if none of them did."""
        types = {type for hook in group for type in jsontext.loads(hook.types_json)}
        stretch = await self._read(position, until, types)
        owners = await hooks.owners(group) if stretch.entries else {}
        moved = [await self._is_made(hook, owners.get(hook.id), stretch) for hook in group]
        return stretch.reached if any(moved) else None

    async def _is_made(self, hook: Webhook, owner: Viewer | None, stretch: Stretch) -> bool:
        """Whether the webhook has come on; what goes wrong with one does not hold up the others."""
        try:
            await self._make(hook, owner, stretch)
        except Overtaken:
            return True
        except Exception:
            name = public_id("webhook", hook.id)
            logger.exception("deliveries could not be made; trying again", webhook_id=name)
            return False
        self._looked[hook.id] = stretch.reached
        return True

    async def _read(self, position: int, until: int, types: set[str]) -> Stretch:
        end = min(until, position + WINDOW)
        query = JobLog.filter(seq__gt=position, seq__lte=end, type__in=types)
        entries = await query.order_by("seq").limit(PAGE)
        jobs = {entry.job_id for entry in entries}
        named = await Job.filter(id__in=jobs).values_list("id", "name") if jobs else []
        reached = entries[-1].seq if len(entries) == PAGE else end
        oldest = datetime.now(UTC) - self._kept
        kept = [entry for entry in entries if entry.created_at >= oldest]
        return Stretch(kept, reached, dict(named))

    async def _make(self, hook: Webhook, owner: Viewer | None, stretch: Stretch) -> None:
        """Write what there is for the webhook in the stretch, or stop it if that is not known."""
        if stretch.entries and owner is None:
            await hooks.stop(self._rt, hook, KEYLESS)
            return
        types = set(jsontext.loads(hook.types_json))
        entries = [entry for entry in stretch.entries if entry.type in types]
        try:
            jobs = await _matching(hook, owner, {entry.job_id for entry in entries})
        except (InvalidInput, ValueError, OverflowError):
            await hooks.stop(self._rt, hook, UNMATCHED)
            return
        found = [
            _delivery(entry, stretch.names[entry.job_id])
            for entry in entries
            if entry.job_id in jobs
        ]
        if found or stretch.reached - hook.position >= NOTED:
            await _write(self._rt, hook, stretch.reached, found)


async def _matching(hook: Webhook, owner: Viewer | None, jobs: set[UUID]) -> set[UUID]:
    """Those of the jobs that the webhook is to hear of."""
    if not jobs or owner is None:
        return set()
    where = filters.restored(hook.where_json) if hook.where_json else None
    query = Job.filter(job_condition(where, owner), id__in=jobs)
    return {UUID(str(id)) for id in await query.values_list("id", flat=True)}


def _delivery(entry: JobLog, name: str) -> dict[str, Any]:
    return {
        "id": str(uuid7()),
        "job": str(entry.job_id),
        "seq": entry.seq,
        "type": payloads.TYPES[entry.type],
        "body": payloads.of_entry(entry, name),
    }


# All of them in one value, so that the statement is the same for any number.
INSERT = """INSERT INTO "webhook_deliveries" ("id", "created_at", "webhook_id", "job_id", "seq",
        "type", "body", "state", "attempts", "tries", "next_attempt_at")
    SELECT CAST("value" ->> 'id' AS {uuid}), CAST($2 AS {instant}), CAST($3 AS {uuid}),
        CAST("value" ->> 'job' AS {uuid}), CAST("value" ->> 'seq' AS BIGINT),
        "value" ->> 'type', "value" ->> 'body', 'PENDING', 0, 0, CAST($2 AS {instant})
    FROM {rows} """
SQLITE = INSERT.format(uuid="TEXT", instant="TEXT", rows="json_each($1)")
EACH = 'jsonb_array_elements(CAST($1 AS JSONB)) "each"("value")'
POSTGRES = INSERT.format(uuid="UUID", instant="TIMESTAMPTZ", rows=EACH)


@atomic
async def _write(
    rt: Runtime, hook: Webhook, reached: int, deliveries: Sequence[Mapping[str, Any]]
) -> None:
    """Raises `Overtaken` if the webhook has gone on, or was changed, meanwhile."""

    async def refuse() -> None:
        raise Overtaken

    seen = {"id": hook.id, "position": hook.position, "version": hook.version, "enabled": True}
    current().swap(Webhook, seen, {"position": reached}, refuse)
    if deliveries:
        values = [jsontext.dumps(deliveries), datetime.now(UTC), str(hook.id)]
        sql = SQLITE if statements.is_sqlite() else POSTGRES
        current().writes.append(Statement(sql, values, "webhook_deliveries", appends=True))
