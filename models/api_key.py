from __future__ import annotations

from enum import StrEnum

from tortoise import fields
from tortoise.indexes import Index

from models.base import InstantField, Table
from models.workspace import DEFAULT_WORKSPACE


class Role(StrEnum):
    VIEWER = "VIEWER"
    MEMBER = "MEMBER"
    ADMIN = "ADMIN"


class ApiKey(Table):
    """A credential; only the hash of it is kept.

    Keys of one name in one workspace are one user: a second key can replace a first without
    anybody losing jobs. `agents_json` and `owners_json` are lists that narrow what it is good
    for, NULL where they do not.
    """

    name = fields.CharField(max_length=200)
    role = fields.CharEnumField(Role, max_length=16, description="Role")
    prefix = fields.CharField(max_length=16)
    key_hash = fields.CharField(max_length=64, unique=True)
    revoked_at = InstantField(null=True)
    expires_at = InstantField(null=True)
    last_used_at = InstantField(null=True)
    agents_json = fields.TextField(null=True)
    owners_json = fields.TextField(null=True)
    workspace_id = fields.IntField(default=DEFAULT_WORKSPACE)

    class Meta(Table.Meta):
        abstract = False
        table = "api_keys"
        table_description = "Credentials"
        indexes = (
            Index(fields=("workspace_id", "created_at", "id"), name="ix_api_keys_workspace"),
        )
