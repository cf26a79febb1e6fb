from __future__ import annotations

from tortoise import fields

from models.base import InstantField, Table, now


class Worker(Table):
    """A process that runs executions.

    What it runs is taken over when it was not seen for `lease_seconds`, by the database's clock.
    """

    name = fields.CharField(max_length=200)
    seen_at = InstantField(default=now)
    lease_seconds = fields.FloatField(default=30)

    class Meta(Table.Meta):
        abstract = False
        table = "workers"
        table_description = "Processes that run executions"
