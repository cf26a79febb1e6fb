from tortoise import migrations
from tortoise.migrations import operations as ops
from tortoise.fields.base import OnDelete
from tortoise import fields
from tortoise.indexes import Index


class Migration(migrations.Migration):
    dependencies = [("models", "0002_engine")]

    initial = False

    operations = [
        ops.CreateModel(
            name="PrunedLog",
            fields=[
                ("from_seq", fields.BigIntField()),
                ("until_seq", fields.BigIntField()),
                (
                    "job",
                    fields.OneToOneField(
                        "models.Job",
                        source_field="job_id",
                        primary_key=True,
                        db_index=True,
                        db_constraint=True,
                        to_field="id",
                        related_name=False,
                        on_delete=OnDelete.RESTRICT,
                    ),
                ),
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
