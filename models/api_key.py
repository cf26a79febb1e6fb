from __future__ import annotations

from enum import StrEnum

from tortoise import fields

from models.base import InstantField, Table


class Role(StrEnum):
    VIEWER = "VIEWER"
    MEMBER = "MEMBER"
    ADMIN = "ADMIN"


class ApiKey(Table):
    """A credential; only the hash of it is kept.

    Keys of one name are one user: a second key can replace a first without
    anybody losing jobs.
    """

    name = fields.CharField(max_length=200)
    role = fields.CharEnumField(Role, max_length=16, description="Role")
    prefix = fields.CharField(max_length=16)
    key_hash = fields.CharField(max_length=64, unique=True)
    revoked_at = InstantField(null=True)

    class Meta(Table.Meta):
        abstract = False
        table = "api_keys"
        table_description = "Credentials"
