from __future__ import annotations

from tortoise import fields
from tortoise.models import Model

from models.base import InstantField


class AgentGate(Model):
    """What lets work through to an agent: its circuit breaker and its rate.

    Beside the agent, whose version counts changes of its configuration only. The circuit is
    open until `open_until`, then half open while `open_until` is set, else closed. `rate_at`
    is the theoretical arrival time of the generic cell rate algorithm, in microseconds.
    """

    agent_id = fields.UUIDField(primary_key=True)
    failures = fields.IntField(default=0)
    opened = fields.IntField(default=0)
    open_until = InstantField(null=True)
    reason = fields.TextField(null=True)
    rate_at: fields.Field[int] = fields.BigIntField(default=0)

    class Meta(Model.Meta):
        table = "agent_gates"
        table_description = "Circuit breakers and rates of agents"
