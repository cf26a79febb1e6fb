from tortoise import migrations
from tortoise.migrations import operations as ops
from uuid import uuid4
from tortoise import fields
from tortoise.indexes import Index


class Migration(migrations.Migration):
    dependencies = [("models", "0002_engine")]

    initial = False

    operations = [
        ops.CreateModel(
            name="PrunedLog",
            fields=[
                (
                    "job_id",
                    fields.UUIDField(primary_key=True, default=uuid4, unique=True, db_index=True),
                ),
                ("from_seq", fields.BigIntField()),
                ("until_seq", fields.BigIntField()),
            ],
            options={
                "table": "pruned_logs",
                "app": "models",
                "indexes": [Index(fields=["until_seq"], name="ix_pruned_logs_until")],
                "pk_attr": "job_id",
                "table_description": "What retention removed from the log",
            },
            bases=["Model"],
        ),
    ]
