"""Who may see each field of each type of the schema.

A new field needs a word here; a test says so, and holds the answers of each caller against it.
"""

from __future__ import annotations

from collections.abc import Mapping

SHOWN: Mapping[str, str] = {
    "ActionAvailability": "action allowed reason",
    "Actor": "id kind name",
    "Agent": (
        "acceptsFeedback availability circuit createdAt description id idempotent inputSchema "
        "maxCallCostUsd maxCallTokens maxConcurrency maxWaitSeconds name outputSchema "
        "ratePerMinute retryPolicy runningCount timeoutSeconds updatedAt version"
    ),
    "AgentConnection": "pageInfo totalCount",
    "AgentEdge": "cursor",
    "AgentTest": "latencyMs ok outputValid problem response",
    "AgentUnavailable": "code message",
    "ApiKey": "createdAt expiresAt id lastUsedAt name owners prefix revokedAt role",
    "ApiKeyConnection": "pageInfo totalCount",
    "ApiKeyEdge": "cursor",
    "Attempt": (
        "agentSnapshot error feedback finishedAt httpStatus id latencyMs longCall number "
        "request respondedAt response startedAt state usage"
    ),
    "AttemptConnection": "pageInfo totalCount",
    "AttemptEdge": "cursor",
    "AttemptError": "code mayHaveExecuted message retryable",
    "AuditEntry": "action actor at changes hash id subject",
    "AuditEntryConnection": "pageInfo totalCount",
    "AuditEntryEdge": "cursor",
    "AuditVerification": "checked firstBroken headHash ok problem pruned",
    "Budget": "maxCostUsd maxTokens maxWallSeconds",
    "BudgetExceeded": "code message",
    "Circuit": "failures openUntil reason state",
    "CriteriaSet": "id items passThreshold text version",
    "Criterion": "config key kind required text weight",
    "CriterionResult": "criterion error evidence outcome reason score",
    "DependencyProblem": "code message",
    "Evidence": "pointer quote verified",
    "FieldProblem": "message path",
    "Forbidden": "code message",
    "IdempotencyConflict": "code message originalRequestAt",
    "IllegalTransition": "action allowedActions code message status",
    "InvalidInput": "code fields message",
    "Job": (
        "acceptanceCriteria archivedAt armed attemptCount autoExecute availableActions budget "
        "completionMode createdAt createdBy criteria cursor dependsOn description dueAt "
        "expiresAt id input isBlocked maxAttempts name phase priority result retryPolicy "
        "runAt status statusChangedAt statusMessage statusReason tags updatedAt usage version "
        "waitingFor"
    ),
    "JobConnection": "pageInfo totalCount",
    "JobDependency": "alias satisfied",
    "JobEdge": "cursor",
    "JobEventBatch": "caughtUp cursor gap",
    "JobLog": "actor createdAt cursor hash id message payload payloadTruncated status type",
    "JobLogConnection": "pageInfo totalCount",
    "JobLogEdge": "cursor",
    "JobStatusChange": "actor at cursor from reason to",
    "Judge": "kind model promptHash",
    "LimitExceeded": "code limit message",
    "LongCall": "endsAt polls trouble",
    "NotFound": "code id message",
    "PageInfo": "endCursor hasNextPage hasPreviousPage startCursor",
    "RetryPolicy": (
        "initialSeconds jitter maxAttempts maxSeconds multiplier reassignAfter retryOnVerdictFail"
    ),
    "SchemaMismatch": "code keyword message pointer",
    "Usage": "costIsEstimate costUsd inputTokens judgeCostUsd latencyMs outputTokens",
    "Verdict": "createdAt criteria id judge outcome results score summary usage",
    "VersionConflict": "actual code expected message",
    "Viewer": "expiresAt id name role workspace",
    "Webhook": (
        "circuit createdAt disabledReason enabled id oldSecretUntil owner types updatedAt url where"
    ),
    "WebhookConnection": "pageInfo totalCount",
    "WebhookDelivery": (
        "attemptedAt attempts createdAt error id nextAttemptAt state statusCode type"
    ),
    "WebhookDeliveryConnection": "pageInfo totalCount",
    "WebhookDeliveryEdge": "cursor",
    "WebhookEdge": "cursor",
}
"""Who is shown the object sees these as well."""

LEADS: Mapping[str, str] = {
    "Agent": "jobs",
    "AgentConnection": "edges nodes",
    "AgentEdge": "node",
    "AgentUnavailable": "agent",
    "ApiKey": "agents",
    "ApiKeyConnection": "edges nodes",
    "ApiKeyEdge": "node",
    "Attempt": "agent job verdicts",
    "AttemptConnection": "edges nodes",
    "AttemptEdge": "node",
    "AuditEntryConnection": "edges nodes",
    "AuditEntryEdge": "node",
    "DependencyProblem": "jobs",
    "Job": "agent attempts currentAttempt dependents latestVerdict logs",
    "JobConnection": "edges nodes",
    "JobDependency": "job",
    "JobEdge": "node",
    "JobEventBatch": "events snapshot",
    "JobLog": "agent attempt job",
    "JobLogConnection": "edges nodes",
    "JobLogEdge": "node",
    "JobStatusChange": "job",
    "NewApiKey": "apiKey",
    "NewWebhook": "webhook",
    "RetryPolicy": "fallbackAgents",
    "VersionConflict": "current",
    "Webhook": "deliveries",
    "WebhookConnection": "edges nodes",
    "WebhookDelivery": "event",
    "WebhookDeliveryConnection": "edges nodes",
    "WebhookDeliveryEdge": "node",
    "WebhookEdge": "node",
}
"""These lead to what somebody owns: that is shown by rules of its own, or not at all."""

ADMINS: Mapping[str, str] = {
    "Agent": "endpointUrl",
    "LongCall": "location",
}
"""Null for everybody else."""

ONCE: Mapping[str, str] = {
    "Agent": "signingSecret",
    "NewApiKey": "key",
    "NewWebhook": "secret",
}
"""Told in the answer to what made it, and never again: null wherever it can be asked for."""


def fields(rule: Mapping[str, str]) -> set[str]:
    """As `Type.field`."""
    return {f"{name}.{field}" for name, line in rule.items() for field in line.split()}
