from tortoise import migrations
from tortoise.migrations import operations as ops
from models.api_key import Role
from models.base import InstantField, now, uuid7
from models.job import ActorKind
from models.webhook_delivery import WebhookDeliveryState
from models.workspace import DEFAULT_WORKSPACE
from tortoise.fields.base import OnDelete
from tortoise import fields
from tortoise.indexes import Index, PartialIndex


class Migration(migrations.Migration):
    dependencies = [("models", "0003_retention")]

    initial = False

    operations = [
        ops.CreateModel(
            name="Webhook",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("workspace_id", fields.IntField(default=DEFAULT_WORKSPACE)),
                (
                    "owner_kind",
                    fields.CharEnumField(
                        description="ActorKind", enum_type=ActorKind, max_length=16
                    ),
                ),
                ("owner_id", fields.CharField(max_length=200)),
                ("owner_name", fields.CharField(max_length=200)),
                (
                    "owner_role",
                    fields.CharEnumField(description="Role", enum_type=Role, max_length=16),
                ),
                ("url_sealed", fields.TextField(unique=False)),
                ("secret_sealed", fields.TextField(unique=False)),
                ("old_secret_sealed", fields.TextField(null=True, unique=False)),
                ("old_secret_until", InstantField(null=True, auto_now=False, auto_now_add=False)),
                ("types_json", fields.TextField(unique=False)),
                ("where_json", fields.TextField(null=True, unique=False)),
                ("enabled", fields.BooleanField(default=True)),
                ("disabled_reason", fields.TextField(null=True, unique=False)),
                ("position", fields.BigIntField()),
                ("failures", fields.IntField(default=0)),
                ("opened", fields.IntField(default=0)),
                ("open_until", InstantField(null=True, auto_now=False, auto_now_add=False)),
                ("reason", fields.TextField(null=True, unique=False)),
                ("failing_since", InstantField(null=True, auto_now=False, auto_now_add=False)),
                ("version", fields.IntField(default=1)),
                ("updated_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "webhooks",
                "app": "models",
                "indexes": [
                    Index(fields=["workspace_id", "created_at", "id"], name="ix_webhooks_created"),
                    Index(
                        fields=["workspace_id", "owner_id", "created_at", "id"],
                        name="ix_webhooks_owner",
                    ),
                ],
                "pk_attr": "id",
                "table_description": "Addresses that hear of events",
            },
            bases=["Table"],
        ),
        ops.CreateModel(
            name="WebhookDelivery",
            fields=[
                (
                    "id",
                    fields.UUIDField(primary_key=True, default=uuid7, unique=True, db_index=True),
                ),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("seq", fields.BigIntField(null=True)),
                ("job_id", fields.UUIDField(null=True)),
                ("type", fields.CharField(max_length=64)),
                ("body", fields.TextField(unique=False)),
                (
                    "state",
                    fields.CharEnumField(
                        default=WebhookDeliveryState.PENDING,
                        description="WebhookDeliveryState",
                        enum_type=WebhookDeliveryState,
                        max_length=16,
                    ),
                ),
                ("attempts", fields.IntField(default=0)),
                ("tries", fields.IntField(default=0)),
                ("status_code", fields.IntField(null=True)),
                ("error", fields.TextField(null=True, unique=False)),
                ("attempted_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
                ("next_attempt_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
                (
                    "webhook",
                    fields.ForeignKeyField(
                        "models.Webhook",
                        source_field="webhook_id",
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.CASCADE,
                    ),
                ),
            ],
            options={
                "table": "webhook_deliveries",
                "app": "models",
                "unique_together": (("webhook", "seq"),),
                "indexes": [
                    Index(
                        fields=["webhook_id", "state", "next_attempt_at", "seq"],
                        name="ix_webhook_deliveries_due",
                    ),
                    PartialIndex(
                        fields=["webhook_id", "job_id", "seq"],
                        name="ix_webhook_deliveries_pending",
                        condition={"state": "PENDING"},
                    ),
                    PartialIndex(
                        fields=["webhook_id", "job_id", "seq"],
                        name="ix_webhook_deliveries_sending",
                        condition={"state": "SENDING"},
                    ),
                    Index(
                        fields=["webhook_id", "created_at", "id"],
                        name="ix_webhook_deliveries_newest",
                    ),
                    Index(fields=["created_at", "id"], name="ix_webhook_deliveries_created"),
                ],
                "pk_attr": "id",
                "table_description": "Events for webhooks",
            },
            bases=["Table"],
        ),
    ]
