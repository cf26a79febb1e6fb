from __future__ import annotations

from enum import StrEnum

from tortoise import fields
from tortoise.indexes import Index, PartialIndex
from tortoise.models import Model

from models.base import InstantField, now


class QueueState(StrEnum):
    """Where an execution is with the workers.

    SUSPECT waits too, but has lost several workers: it must not take others along. AWAITING is
    with its agent, which answers later: at `ready_at` a worker looks how far it is.
    """

    WAITING = "WAITING"
    SLEEPING = "SLEEPING"
    RUNNING = "RUNNING"
    SUSPECT = "SUSPECT"
    AWAITING = "AWAITING"


class QueueEntry(Model):
    """An execution that some worker is to run; one a job, gone when there is nothing to run.

    `rank` is its place among those waiting for its agent, the number of the round in which it
    goes, which its priority moves forward and its owner's other waiting jobs move back; in one
    round it is `queued_at` that decides. `lost` counts the workers that ended
    with it, `failures` the runs that failed unexpectedly. A RUNNING one with a `ready_at` was
    AWAITING before, and is again when its worker gives it back.
    """

    job_id = fields.UUIDField(primary_key=True)
    number = fields.IntField()
    agent_id = fields.UUIDField()
    owner_id = fields.CharField(max_length=200)
    priority = fields.IntField()
    state = fields.CharEnumField(QueueState, max_length=16, description="QueueState")
    rank: fields.Field[int] = fields.BigIntField()
    queued_at = InstantField(default=now)
    ready_at = InstantField(null=True)
    worker_id = fields.UUIDField(null=True)
    lost = fields.IntField(default=0)
    failures = fields.IntField(default=0)

    class Meta(Model.Meta):
        table = "queue_entries"
        table_description = "Executions to be run"
        indexes = (
            Index(fields=("state", "agent_id", "rank", "queued_at"), name="ix_queue_entries_lane"),
            Index(
                fields=("owner_id", "agent_id", "priority", "state", "rank"),
                name="ix_queue_entries_owner",
            ),
            Index(fields=("worker_id",), name="ix_queue_entries_worker"),
            PartialIndex(
                fields=("ready_at",),
                name="ix_queue_entries_awaiting",
                condition={"state": "AWAITING"},
            ),
        )
