from __future__ import annotations

from uuid import UUID

from tortoise import fields
from tortoise.models import Model
from uuid_utils import compat


def uuid7() -> UUID:
    """A new primary key; later ones sort after earlier ones."""
    return compat.uuid7()


class Table(Model):
    """What every table but the log has."""

    id = fields.UUIDField(primary_key=True, default=uuid7)
    created_at = fields.DatetimeField(auto_now_add=True)

    class Meta(Model.Meta):
        abstract = True
