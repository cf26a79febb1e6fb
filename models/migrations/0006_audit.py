from datetime import UTC, datetime
from importlib import import_module
from typing import Any
from uuid import UUID

from tortoise import fields, migrations
from tortoise.indexes import Index
from tortoise.migrations import operations as ops

from models import hashes, jsontext
from models.base import InstantField, now
from models.job import ActorKind

AddFilled = import_module("models.migrations.0002_engine").AddFilled
SLICE = 2000
PRUNED = """SELECT "jobs"."workspace_id", "pruned_logs"."job_id", "pruned_logs"."until_seq"
    FROM "pruned_logs" JOIN "jobs" ON "jobs"."id" = "pruned_logs"."job_id"
    ORDER BY "pruned_logs"."until_seq" """


async def link(apps, editor) -> None:
    """Chain the entries that are there, as they are, in slices: a million take minutes."""
    client = editor.client
    mark = "$" if client.capabilities.dialect == "postgres" else "?"
    named = ", ".join(f'"{name}"' for name in hashes.OF_JOB)
    read = f'SELECT "seq", {named} FROM "job_logs" {{where}}ORDER BY "job_id", "seq" LIMIT {SLICE}'
    beyond = f'WHERE ("job_id", "seq") > ({mark}1, {mark}2) '
    write = f'UPDATE "job_logs" SET "hash" = {mark}1 WHERE "seq" = {mark}2'
    end = f'UPDATE "jobs" SET "log_head" = {mark}1 WHERE "id" = {mark}2'
    rows = await client.execute_query_dict(read.format(where=""))
    job_id, head = None, hashes.BEGINNING
    while rows:
        linked, ended = [], []
        for row in rows:
            if row["job_id"] != job_id:
                ended.append((head, job_id))
                job_id, head = row["job_id"], hashes.BEGINNING
            head = hashes.of_job(head, decoded(row))
            linked.append((head, row["seq"]))
        await client.execute_many(write, linked)
        await client.execute_many(end, [each for each in ended if each[1] is not None])
        rows = await client.execute_query_dict(read.format(where=beyond), [job_id, rows[-1]["seq"]])
    if job_id is not None:
        await client.execute_many(end, [(head, job_id)])


async def tell_of_pruned(apps, editor) -> None:
    """What retention removed before there was an audit log is told there now."""
    client = editor.client
    mark = "$" if client.capabilities.dialect == "postgres" else "?"
    columns = (*hashes.OF_WORKSPACE, "hash")
    named = ", ".join(f'"{name}"' for name in columns)
    marks = ", ".join(f"{mark}{n}" for n in range(1, len(columns) + 1))
    write = f'INSERT INTO "audit_entries" ({named}) VALUES ({marks})'
    heads: dict[int, str] = {}
    for row in await client.execute_query_dict(PRUNED):
        head = heads.get(row["workspace_id"], hashes.BEGINNING)
        entry = {
            "workspace_id": row["workspace_id"],
            "action": "log.pruned",
            "subject": f"job_{UUID(str(row['job_id'])).hex}",
            "changes_json": jsontext.dumps(
                {
                    "untilSeq": {"from": None, "to": row["until_seq"]},
                    "headHash": {"from": None, "to": hashes.BEGINNING},
                }
            ),
            "actor_kind": ActorKind.SYSTEM.value,
            "actor_id": None,
            "actor_name": "Signoff",
            "created_at": datetime.now(UTC),
        }
        heads[row["workspace_id"]] = entry["hash"] = hashes.of_workspace(head, entry)
        await client.execute_query(write, [entry[name] for name in columns])
    end = f'UPDATE "workspaces" SET "log_head" = {mark}1 WHERE "id" = {mark}2'
    for workspace_id, head in heads.items():
        await client.execute_query(end, [head, workspace_id])


def decoded(row: dict[str, Any]) -> dict[str, Any]:
    """The values as every database means them; SQLite has no times and no truth of its own."""
    at = row["created_at"]
    return dict(row) | {
        "created_at": datetime.fromisoformat(at) if isinstance(at, str) else at,
        "payload_truncated": bool(row["payload_truncated"]),
    }


class Migration(migrations.Migration):
    dependencies = [("models", "0005_access")]

    initial = False

    operations = [
        ops.CreateModel(
            name="AuditEntry",
            fields=[
                (
                    "seq",
                    fields.BigIntField(
                        generated=True, primary_key=True, unique=True, db_index=True
                    ),
                ),
                ("workspace_id", fields.IntField()),
                ("action", fields.CharField(max_length=64)),
                ("subject", fields.CharField(max_length=200)),
                ("changes_json", fields.TextField(unique=False)),
                (
                    "actor_kind",
                    fields.CharEnumField(
                        description="ActorKind", enum_type=ActorKind, max_length=16
                    ),
                ),
                ("actor_id", fields.CharField(null=True, max_length=200)),
                ("actor_name", fields.CharField(max_length=200)),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
                ("hash", fields.CharField(max_length=64)),
            ],
            options={
                "table": "audit_entries",
                "app": "models",
                "indexes": [
                    Index(fields=["workspace_id", "seq"], name="ix_audit_entries_workspace"),
                    Index(fields=["subject", "seq"], name="ix_audit_entries_subject"),
                ],
                "pk_attr": "seq",
                "table_description": "The audit log of what belongs to no job",
            },
            bases=["Model"],
        ),
        AddFilled(
            model_name="Workspace",
            name="log_head",
            field=fields.CharField(default="", max_length=64),
        ),
        AddFilled(
            model_name="Job",
            name="log_head",
            field=fields.CharField(default="", max_length=64),
        ),
        AddFilled(
            model_name="JobLog",
            name="hash",
            field=fields.CharField(default="", max_length=64),
        ),
        AddFilled(
            model_name="PrunedLog",
            name="head",
            field=fields.CharField(default="", max_length=64),
        ),
        ops.RunPython(link),
        ops.RunPython(tell_of_pruned),
    ]
