from __future__ import annotations

from tortoise import fields
from tortoise.models import Model

from models.base import InstantField


class AgentGate(Model):
    """What lets work through to an agent: its circuit breaker, its rate, and its rounds.

    Beside the agent, whose version counts changes of its configuration only. The circuit is
    open until `open_until`, then half open while `open_until` is set, else closed. `rate_at`
    is the theoretical arrival time of the generic cell rate algorithm, in microseconds.
    `round` is how far its queue has come, the highest rank that was taken while others waited;
    `high_round` and `urgent_round` are the same of those priorities alone.
    """

    agent_id = fields.UUIDField(primary_key=True)
    failures = fields.IntField(default=0)
    opened = fields.IntField(default=0)
    open_until = InstantField(null=True)
    reason = fields.TextField(null=True)
    rate_at: fields.Field[int] = fields.BigIntField(default=0)
    round = fields.BigIntField(null=True)
    high_round = fields.BigIntField(null=True)
    urgent_round = fields.BigIntField(null=True)

    class Meta(Model.Meta):
        table = "agent_gates"
        table_description = "Circuit breakers and rates of agents"
