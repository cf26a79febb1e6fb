from tortoise import migrations
from tortoise.migrations import operations as ops
from models.base import InstantField, now
from tortoise import fields
from tortoise.indexes import Index
from tortoise.migrations.constraints import UniqueConstraint
from importlib import import_module

AddFilled = import_module("models.migrations.0002_engine").AddFilled


class RemoveUnique(ops.RemoveConstraint):
    """SQLite has a table's own constraints within its definition, so the table is made anew."""

    async def database_forward(self, app_label, old_state, new_state, state_editor=None):
        if state_editor.DIALECT != "sqlite":
            await super().database_forward(app_label, old_state, new_state, state_editor)
            return
        model = new_state.apps.get_model(f"{app_label}.{self.model_name}")
        await state_editor._remake_table(model)


async def make_default_workspace(apps, editor):
    """The first row has the number that all rows of before get."""
    await editor._run_sql(
        "INSERT INTO workspaces (name, created_at) VALUES ('default', CURRENT_TIMESTAMP)"
        if editor.DIALECT != "sqlite"
        else "INSERT INTO workspaces (name, created_at) "
        "VALUES ('default', strftime('%Y-%m-%d %H:%M:%f+00:00', 'now'))"
    )


class Migration(migrations.Migration):
    dependencies = [("models", "0004_webhooks")]

    initial = False

    operations = [
        ops.CreateModel(
            name="Workspace",
            fields=[
                (
                    "id",
                    fields.IntField(generated=True, primary_key=True, unique=True, db_index=True),
                ),
                ("name", fields.CharField(unique=True, max_length=200)),
                ("created_at", InstantField(default=now, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "workspaces",
                "app": "models",
                "pk_attr": "id",
                "table_description": "Who sees each other's work",
            },
            bases=["Model"],
        ),
        ops.RunPython(make_default_workspace),
        ops.RemoveIndex(
            model_name="Agent",
            name="ix_agents_created",
            fields=None,
        ),
        ops.AlterField(
            model_name="Agent",
            name="name",
            field=fields.CharField(max_length=200),
        ),
        AddFilled(
            model_name="Agent",
            name="workspace_id",
            field=fields.IntField(default=1),
        ),
        ops.AddIndex(
            model_name="Agent",
            index=Index(fields=["workspace_id", "created_at", "id"], name="ix_agents_listed"),
        ),
        ops.AddConstraint(
            model_name="Agent",
            constraint=UniqueConstraint(fields=("workspace_id", "name"), name=None),
        ),
        ops.AddField(
            model_name="ApiKey",
            name="agents_json",
            field=fields.TextField(null=True, unique=False),
        ),
        ops.AddField(
            model_name="ApiKey",
            name="expires_at",
            field=InstantField(null=True, auto_now=False, auto_now_add=False),
        ),
        ops.AddField(
            model_name="ApiKey",
            name="last_used_at",
            field=InstantField(null=True, auto_now=False, auto_now_add=False),
        ),
        ops.AddField(
            model_name="ApiKey",
            name="owners_json",
            field=fields.TextField(null=True, unique=False),
        ),
        AddFilled(
            model_name="ApiKey",
            name="workspace_id",
            field=fields.IntField(default=1),
        ),
        ops.AddIndex(
            model_name="ApiKey",
            index=Index(fields=["workspace_id", "created_at", "id"], name="ix_api_keys_workspace"),
        ),
        RemoveUnique(
            model_name="IdempotencyKey",
            name=None,
            fields=["viewer_id", "key"],
        ),
        AddFilled(
            model_name="IdempotencyKey",
            name="workspace_id",
            field=fields.IntField(default=1),
        ),
        ops.AddConstraint(
            model_name="IdempotencyKey",
            constraint=UniqueConstraint(fields=("workspace_id", "viewer_id", "key"), name=None),
        ),
        ops.RemoveIndex(
            model_name="Job",
            name="ix_jobs_created",
            fields=None,
        ),
        ops.RemoveIndex(
            model_name="Job",
            name="ix_jobs_updated",
            fields=None,
        ),
        ops.RemoveIndex(
            model_name="Job",
            name="ix_jobs_priority",
            fields=None,
        ),
        ops.RemoveIndex(
            model_name="Job",
            name="ix_jobs_status",
            fields=None,
        ),
        ops.RemoveIndex(
            model_name="Job",
            name="ix_jobs_creator",
            fields=None,
        ),
        ops.RemoveIndex(
            model_name="Job",
            name="ix_jobs_due",
            fields=None,
        ),
        AddFilled(
            model_name="Job",
            name="workspace_id",
            field=fields.IntField(default=1),
        ),
        ops.AddIndex(
            model_name="Job",
            index=Index(fields=["workspace_id", "created_at", "id"], name="ix_jobs_by_created"),
        ),
        ops.AddIndex(
            model_name="Job",
            index=Index(fields=["workspace_id", "updated_at", "id"], name="ix_jobs_by_updated"),
        ),
        ops.AddIndex(
            model_name="Job",
            index=Index(fields=["workspace_id", "due_at", "id"], name="ix_jobs_by_due"),
        ),
        ops.AddIndex(
            model_name="Job",
            index=Index(
                fields=["workspace_id", "priority", "created_at", "id"], name="ix_jobs_by_priority"
            ),
        ),
        ops.AddIndex(
            model_name="Job",
            index=Index(
                fields=["workspace_id", "status", "created_at", "id"], name="ix_jobs_by_status"
            ),
        ),
        ops.AddIndex(
            model_name="Job",
            index=Index(
                fields=["workspace_id", "created_by_id", "created_at", "id"],
                name="ix_jobs_by_creator",
            ),
        ),
        AddFilled(
            model_name="JobLog",
            name="workspace_id",
            field=fields.IntField(default=1),
        ),
        ops.AddIndex(
            model_name="JobLog",
            index=Index(fields=["workspace_id", "seq"], name="ix_job_logs_workspace"),
        ),
    ]
