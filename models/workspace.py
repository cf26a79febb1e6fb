from __future__ import annotations

from tortoise import fields
from tortoise.models import Model

from models.base import InstantField, now

DEFAULT_WORKSPACE = 1
"""Made by a migration: what was there before workspaces, and the local admin, are in it."""


class Workspace(Model):
    """Whose jobs, agents and keys belong together, and nobody else sees; never deleted.

    `log_head` is the hash of its newest audit entry.
    """

    id = fields.IntField(primary_key=True)
    name = fields.CharField(max_length=200, unique=True)
    log_head = fields.CharField(max_length=64, default="")
    created_at = InstantField(default=now)

    class Meta(Model.Meta):
        table = "workspaces"
        table_description = "Who sees each other's work"
