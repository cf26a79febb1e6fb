"""Who may do what, field by field: what each caller is to come to, and how it is asked.

A new root field needs a row in `TABLE` and a request in `requests`; a test says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, cast

from graphql import (
    GraphQLField,
    GraphQLInterfaceType,
    GraphQLNamedType,
    GraphQLObjectType,
    GraphQLUnionType,
    get_named_type,
    is_leaf_type,
)

from tests.support.graphql import SCHEMA, Json, arguments_of, root

OK, EMPTY, FORBIDDEN, GONE, NOBODY = "ok", "empty", "FORBIDDEN", "NOT_FOUND", "UNAUTHENTICATED"
KINDS = {"Query": "query", "Mutation": "mutation", "Subscription": "subscription"}


@dataclass(frozen=True)
class Row:
    """What each caller comes to who asks for Mia's job, or for what belongs to it.

    `agents` is an admin's key for no agent, `owners` one for somebody else's jobs, and
    `foreign` an admin of another workspace.
    """

    viewer: str = FORBIDDEN
    owner: str = FORBIDDEN
    member: str = FORBIDDEN
    admin: str = OK
    agents: str = FORBIDDEN
    owners: str = GONE
    foreign: str = GONE

    def expected(self) -> dict[str, str]:
        """By caller; those without a good key come to nothing anywhere."""
        keyless = dict.fromkeys(("nobody", "unknown", "expired", "revoked"), NOBODY)
        return keyless | asdict(self)


READS = Row(viewer=OK, owner=OK, member=GONE, agents=OK)
LISTS = Row(viewer=OK, owner=OK, member=EMPTY, agents=OK, owners=EMPTY, foreign=EMPTY)
WORKS = Row(owner=OK, member=GONE)
DECIDES = Row()
OF_WORKSPACE = Row(viewer=OK, owner=OK, member=OK, agents=OK, owners=OK)
OF_AGENTS = Row(owners=FORBIDDEN)
OF_KEYS = Row(owners=FORBIDDEN, foreign=GONE)
OF_WEBHOOKS = Row(owner=OK, member=GONE, agents=GONE)

TABLE: Mapping[str, Row] = {
    "node": READS,
    "job": READS,
    "jobs": LISTS,
    "jobLogs": LISTS,
    "agent": OF_WORKSPACE,
    "agents": Row(viewer=OK, owner=OK, member=OK, agents=OK, owners=OK, foreign=EMPTY),
    "viewer": Row(viewer=OK, owner=OK, member=OK, agents=OK, owners=OK, foreign=OK),
    "apiKeys": Row(owners=FORBIDDEN, foreign=EMPTY),
    "auditEntries": Row(owners=FORBIDDEN, foreign=EMPTY),
    "verifyAudit": READS,
    "webhook": OF_WEBHOOKS,
    "webhooks": Row(owner=OK, member=EMPTY, agents=EMPTY, owners=EMPTY, foreign=EMPTY),
    "jobStatusChanged": READS,
    "jobEvents": READS,
    "createJob": WORKS,
    "updateJob": WORKS,
    "assignJob": WORKS,
    "unassignJob": WORKS,
    "reassignJob": WORKS,
    "executeJob": WORKS,
    "cancelJob": WORKS,
    "reopenJob": WORKS,
    "addJobNote": WORKS,
    "archiveJob": WORKS,
    "unarchiveJob": WORKS,
    "resubmitJob": DECIDES,
    "forceComplete": DECIDES,
    "reviewAttempt": DECIDES,
    "saveAgent": OF_AGENTS,
    "setAgentAvailability": OF_AGENTS,
    "resetAgentCircuit": OF_AGENTS,
    "testAgent": Row(owners=OK),
    "createApiKey": Row(owners=FORBIDDEN, foreign=OK),
    "revokeApiKey": OF_KEYS,
    "saveWebhook": OF_WEBHOOKS,
    "rotateWebhookSecret": OF_WEBHOOKS,
    "testWebhook": OF_WEBHOOKS,
    "redeliverWebhook": OF_WEBHOOKS,
    "deleteWebhook": Row(owner=GONE, member=GONE, agents=GONE),
}
ABOUT: Mapping[str, str] = {
    "jobs": "job",
    "jobLogs": "agent",
    "agents": "agent",
    "apiKeys": "key",
    "auditEntries": "agent",
    "webhooks": "webhook",
}
"""Which id a list must hold to have told of what was asked for; entries tell their job's agent."""


class Target(NamedTuple):
    """Ids of Mia's job and of what belongs to it, of its agent, and of its admin's key.

    Also of Mia's webhook and a delivery of it, and of an admin's webhook.
    """

    job: str = ""
    attempt: str = ""
    agent: str = ""
    key: str = ""
    webhook: str = ""
    delivery: str = ""
    webhook_of_admin: str = ""


def requests(at: Target) -> dict[str, Json]:
    """Arguments of each root field that has any, about this."""
    to = {"assign": {"agentId": at.agent}}
    why = {"reason": "r"}
    hook = {"url": "http://127.0.0.1:9/changed", "types": ["NOTE"]}
    new = {"name": "x", "acceptanceCriteria": {"text": "It is polite"}}
    return {
        "node": {"id": at.job},
        "job": {"id": at.job},
        "jobs": {},
        "jobLogs": {"first": 100},
        "agent": {"id": at.agent},
        "agents": {},
        "viewer": {},
        "apiKeys": {},
        "auditEntries": {"first": 100},
        "verifyAudit": {"jobId": at.job},
        "webhook": {"id": at.webhook},
        "webhooks": {},
        "jobStatusChanged": {"jobId": at.job, "after": "MA"},
        "jobEvents": {"jobId": at.job, "after": "MA"},
        "createJob": {"input": new | to | {"dependsOn": [{"jobId": at.job}]}},
        "updateJob": {"input": {"id": at.job, "name": "changed"}},
        "assignJob": {"input": {"id": at.job} | to},
        "unassignJob": {"id": at.job},
        "reassignJob": {"input": {"id": at.job} | to},
        "executeJob": {"input": {"id": at.job}},
        "cancelJob": {"input": {"id": at.job}},
        "reopenJob": {"id": at.job} | why,
        "addJobNote": {"id": at.job, "message": "m"},
        "archiveJob": {"id": at.job},
        "unarchiveJob": {"id": at.job},
        "resubmitJob": {"input": {"id": at.job} | why},
        "forceComplete": {"input": {"id": at.job, "result": 1} | why},
        "reviewAttempt": {"input": {"attemptId": at.attempt, "outcome": "PASS"} | why},
        "saveAgent": {"input": {"id": at.agent, "name": "B", "endpointUrl": "http://127.0.0.1:9/"}},
        "setAgentAvailability": {"id": at.agent, "availability": "PAUSED"},
        "resetAgentCircuit": {"id": at.agent},
        "testAgent": {"id": at.agent, "input": {"ok": True}},
        "createApiKey": {"input": {"name": "Eve", "role": "VIEWER"}},
        "revokeApiKey": {"id": at.key},
        "saveWebhook": {"input": hook | {"id": at.webhook}},
        "rotateWebhookSecret": {"id": at.webhook, "overlapSeconds": 0},
        "testWebhook": {"id": at.webhook},
        "redeliverWebhook": {"deliveryId": at.delivery},
        "deleteWebhook": {"id": at.webhook_of_admin},
    }


def kind_of(name: str) -> str:
    """`query`, `mutation` or `subscription`."""
    return next(kind for root_name, kind in KINDS.items() if name in root(root_name))


def document(name: str, depth: int = 1) -> str:
    """Asks a root field for all that there is, so many levels deep."""
    kind = kind_of(name)
    field = root(kind.capitalize())[name]
    declared, passed = arguments_of(field)
    return f"{kind}{declared} {{ {name}{passed} {selection(_named(field.type), depth)} }}"


def _named(type_: Any) -> GraphQLNamedType:
    return cast("GraphQLNamedType", get_named_type(type_))


def selection(type_: GraphQLNamedType, depth: int) -> str:
    """Every field of a type, and what they lead to, so many levels deep; empty for a leaf."""
    if is_leaf_type(type_):
        return ""
    if isinstance(type_, GraphQLUnionType | GraphQLInterfaceType):
        members = [selection(each, depth) for each in SCHEMA.get_possible_types(type_)]
        names = [each.name for each in SCHEMA.get_possible_types(type_)]
        inner = [f"... on {n} {m}" for n, m in zip(names, members, strict=True) if m]
        return f"{{ __typename {' '.join(inner)} }}"
    assert isinstance(type_, GraphQLObjectType)
    found = [_selected(type_.name, name, field, depth) for name, field in type_.fields.items()]
    return f"{{ __typename {' '.join(filter(None, found))} }}"


def _selected(owner: str, name: str, field: GraphQLField, depth: int) -> str:
    inner = _named(field.type)
    wanted = any(str(cast("Any", each).type).endswith("!") for each in field.args.values())
    alias = f"{owner}_{name}"  # members of a union give one name different types
    if is_leaf_type(inner):
        return f"{alias}: {name}"
    through = inner.name.endswith(("Connection", "Edge")) or inner.name == "PageInfo"
    if wanted or (depth == 0 and not through):
        return ""
    if name == "edges":  # `nodes` shows the same
        return ""
    return f"{alias}: {name} {selection(inner, depth if through else depth - 1)}"


def outcome(name: str, body: Json, at: Target) -> str:
    """What an answer comes to."""
    if body.get("errors"):
        return body["errors"][0]["extensions"]["code"]
    shown: Any = body["data"][name]
    if shown is None:
        return GONE
    refusals = {"Forbidden": FORBIDDEN, "NotFound": GONE}
    if shown["__typename"] in refusals:
        return refusals[shown["__typename"]]
    if name in ABOUT and getattr(at, ABOUT[name]) not in str(shown):
        return EMPTY
    return OK
