from importlib import import_module
from tortoise import migrations
from tortoise.migrations import operations as ops
from models.base import InstantField
from uuid import uuid4
from tortoise import fields
from tortoise.indexes import PartialIndex

AddFilled = import_module("models.migrations.0002_engine").AddFilled


class Migration(migrations.Migration):
    dependencies = [("models", "0006_audit")]

    initial = False

    operations = [
        ops.CreateModel(
            name="LongCall",
            fields=[
                (
                    "attempt_id",
                    fields.UUIDField(primary_key=True, default=uuid4, unique=True, db_index=True),
                ),
                ("location", fields.TextField(null=True, unique=False)),
                ("ends_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
                ("polls", fields.IntField(default=0)),
                ("trouble", fields.TextField(null=True, unique=False)),
                ("answered_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
                ("refused_at", InstantField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "long_calls",
                "app": "models",
                "pk_attr": "attempt_id",
                "table_description": "Calls that agents answer later",
            },
            bases=["Model"],
        ),
        AddFilled(
            model_name="Agent",
            name="max_wait_seconds",
            field=fields.IntField(default=86400),
        ),
        ops.AddIndex(
            model_name="QueueEntry",
            index=PartialIndex(
                fields=["ready_at"],
                name="ix_queue_entries_awaiting",
                condition={"state": "AWAITING"},
            ),
        ),
    ]
