from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tortoise import fields
from tortoise.models import Model
from uuid_utils import compat


def now() -> datetime:
    return datetime.now(UTC)


def uuid7() -> UUID:
    """A new primary key; later ones sort after earlier ones."""
    return compat.uuid7()


if TYPE_CHECKING:
    InstantField = fields.DatetimeField
else:

    class InstantField(fields.DatetimeField):
        """A time with its zone.

        SQLite's text of it is read by Python's own parser, ten times as fast as
        Tortoise's, which takes any spelling.
        """

        def to_python_value(self, value: Any) -> datetime | None:
            return datetime.fromisoformat(value) if isinstance(value, str) else value


@lru_cache(maxsize=100)
def _defaults(table: type[Model]) -> tuple[tuple[str, Any], ...]:
    described = table._meta  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return tuple(
        (name, described.fields_map[name].default) for name in described.fields_db_projection
    )


class Table(Model):
    """What every table but the log has."""

    id = fields.UUIDField(primary_key=True, default=uuid7)
    created_at = InstantField(default=now)

    def __init__(self, **given: Any) -> None:
        """A new row of columns' values as they are; Tortoise's own way costs ten times that."""
        columns = self._meta.fields_db_projection
        if not given.keys() <= columns.keys():
            super().__init__(**given)
            return
        attributes = vars(self)
        attributes |= {"_partial": False, "_saved_in_db": False, "_await_when_save": {}}
        attributes["_custom_generated_pk"] = False
        for name, default in _defaults(type(self)):
            if name not in given:
                attributes[name] = default() if callable(default) else default
        attributes |= given

    class Meta(Model.Meta):
        abstract = True
