from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from tortoise import fields
from tortoise.indexes import Index, PartialIndex

from models.base import InstantField, Table
from models.webhook import Webhook


class WebhookDeliveryState(StrEnum):
    PENDING = "PENDING"
    SENDING = "SENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class WebhookDelivery(Table):
    """One event for one webhook; its id is what the receiver knows it by.

    `seq` is the entry of the log that it tells of, none for a test. `attempts` are all its
    tries, `tries` those since it was last begun. While it is SENDING, `next_attempt_at` is when
    another worker takes it on; whoever still has it then may not write any more.
    """

    seq: fields.Field[int | None] = fields.BigIntField(null=True)
    job_id = fields.UUIDField(null=True)
    type = fields.CharField(max_length=64)
    body = fields.TextField()
    state = fields.CharEnumField(
        WebhookDeliveryState,
        max_length=16,
        default=WebhookDeliveryState.PENDING,
        description="WebhookDeliveryState",
    )
    attempts = fields.IntField(default=0)
    tries = fields.IntField(default=0)
    status_code = fields.IntField(null=True)
    error = fields.TextField(null=True)
    attempted_at = InstantField(null=True)
    next_attempt_at = InstantField(null=True)

    webhook: fields.ForeignKeyRelation[Webhook] = fields.ForeignKeyField(
        "models.Webhook", related_name=False, on_delete=fields.CASCADE
    )
    webhook_id: UUID

    class Meta(Table.Meta):
        abstract = False
        table = "webhook_deliveries"
        table_description = "Events for webhooks"
        unique_together = (("webhook", "seq"),)
        indexes = (
            Index(
                fields=("webhook_id", "state", "next_attempt_at", "seq"),
                name="ix_webhook_deliveries_due",
            ),
            PartialIndex(
                fields=("webhook_id", "job_id", "seq"),
                name="ix_webhook_deliveries_pending",
                condition={"state": "PENDING"},
            ),
            PartialIndex(
                fields=("webhook_id", "job_id", "seq"),
                name="ix_webhook_deliveries_sending",
                condition={"state": "SENDING"},
            ),
            Index(fields=("webhook_id", "created_at", "id"), name="ix_webhook_deliveries_newest"),
            Index(fields=("created_at", "id"), name="ix_webhook_deliveries_created"),
        )
