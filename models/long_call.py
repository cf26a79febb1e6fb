from __future__ import annotations

from tortoise import fields
from tortoise.models import Model

from models.base import InstantField


class LongCall(Model):
    """What is known of an attempt whose agent answers later than in its response.

    `location` is the path and query, on the agent's own origin, where it tells how far it is;
    `polls` counts the looks that found it at work, `trouble` says why the last look failed.
    `answered_at` is when the answer came by the callback URL, `refused_at` when one came there
    that was not taken any more.
    """

    attempt_id = fields.UUIDField(primary_key=True)
    location = fields.TextField(null=True)
    ends_at = InstantField(null=True)
    polls = fields.IntField(default=0)
    trouble = fields.TextField(null=True)
    answered_at = InstantField(null=True)
    refused_at = InstantField(null=True)

    class Meta(Model.Meta):
        table = "long_calls"
        table_description = "Calls that agents answer later"
