from __future__ import annotations

from tortoise import fields

from models.base import InstantField, Table, now


class Worker(Table):
    """A process that runs executions; what it runs is taken over when it is not seen any more."""

    name = fields.CharField(max_length=200)
    seen_at = InstantField(default=now)

    class Meta(Table.Meta):
        abstract = False
        table = "workers"
        table_description = "Processes that run executions"
