from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops

# What waits has a time as its place so far. The order of each owner's stays, one a round.
RANKS = """UPDATE "queue_entries" SET "rank" = "placed"."rank"
    FROM (SELECT "job_id" AS "id", row_number() OVER (
              PARTITION BY "agent_id", "owner_id", "priority" ORDER BY "rank", "queued_at")
              - CASE "priority" WHEN 0 THEN -10 WHEN 2 THEN 10 WHEN 3 THEN 60 ELSE 0 END AS "rank"
          FROM "queue_entries") "placed"
    WHERE "queue_entries"."job_id" = "placed"."id" """


class Migration(migrations.Migration):
    dependencies = [("models", "0007_long_work")]

    initial = False

    operations = [
        ops.AddField(
            model_name="AgentGate",
            name="high_round",
            field=fields.BigIntField(null=True),
        ),
        ops.AddField(
            model_name="AgentGate",
            name="round",
            field=fields.BigIntField(null=True),
        ),
        ops.AddField(
            model_name="AgentGate",
            name="urgent_round",
            field=fields.BigIntField(null=True),
        ),
        ops.RemoveIndex(model_name="QueueEntry", name="ix_queue_entries_lane"),
        ops.RunSQL(RANKS),
        ops.AddIndex(
            model_name="QueueEntry",
            index=Index(
                fields=["state", "agent_id", "rank", "queued_at"], name="ix_queue_entries_lane"
            ),
        ),
    ]
