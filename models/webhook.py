from __future__ import annotations

from tortoise import fields
from tortoise.indexes import Index

from models.api_key import Role
from models.base import InstantField, Table, now
from models.job import ActorKind
from models.workspace import DEFAULT_WORKSPACE


class Webhook(Table):
    """An address that hears of what happens to its owner's jobs.

    `position` is how far of the log deliveries were made. The columns of its circuit breaker are
    as in `AgentGate`; `failing_since` is when the failures in a row began.
    """

    workspace_id = fields.IntField(default=DEFAULT_WORKSPACE)
    owner_kind = fields.CharEnumField(ActorKind, max_length=16, description="ActorKind")
    owner_id = fields.CharField(max_length=200)
    owner_name = fields.CharField(max_length=200)
    owner_role = fields.CharEnumField(Role, max_length=16, description="Role")
    url_sealed = fields.TextField()
    secret_sealed = fields.TextField()
    old_secret_sealed = fields.TextField(null=True)
    old_secret_until = InstantField(null=True)
    types_json = fields.TextField()
    where_json = fields.TextField(null=True)
    enabled = fields.BooleanField(default=True)
    disabled_reason = fields.TextField(null=True)
    position: fields.Field[int] = fields.BigIntField()
    failures = fields.IntField(default=0)
    opened = fields.IntField(default=0)
    open_until = InstantField(null=True)
    reason = fields.TextField(null=True)
    failing_since = InstantField(null=True)
    version = fields.IntField(default=1)
    updated_at = InstantField(default=now)

    class Meta(Table.Meta):
        abstract = False
        table = "webhooks"
        table_description = "Addresses that hear of events"
        indexes = (
            Index(fields=("workspace_id", "created_at", "id"), name="ix_webhooks_created"),
            Index(
                fields=("workspace_id", "owner_id", "created_at", "id"), name="ix_webhooks_owner"
            ),
        )
