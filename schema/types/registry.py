"""Which type shows which row."""

from __future__ import annotations

from typing import assert_never

import models
from resolvers.nodes import Row
from schema.types.agent import Agent
from schema.types.attempt import Attempt
from schema.types.job import Job
from schema.types.job_log import JobLog
from schema.types.node import Node
from schema.types.verdict import Verdict
from schema.types.webhook import Webhook, WebhookDelivery


def node_of(row: Row) -> Node:  # noqa: PLR0911 - one for each type
    match row:
        case models.Job():
            return Job.of(row)
        case models.Agent():
            return Agent.of(row)
        case models.Attempt():
            return Attempt.of(row)
        case models.Verdict():
            return Verdict.of(row)
        case models.JobLog():
            return JobLog.of(row)
        case models.Webhook():
            return Webhook.of(row)
        case models.WebhookDelivery():
            return WebhookDelivery.of(row)
        case _:
            assert_never(row)
