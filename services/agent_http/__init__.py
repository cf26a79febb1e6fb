"""Requests to agents over HTTP: guarded, bounded, signed."""

from __future__ import annotations

from services.agent_http.addresses import check_endpoint_url
from services.agent_http.client import AgentClient
from services.agent_http.failures import AgentCallFailed, AgentFault
from services.agent_http.headers import check_auth_header
from services.agent_http.messages import Accepted, AgentReply, AgentRequest
from services.agent_http.signing import BadSignature, check_secret, new_secret, sign, verify
from services.agent_http.usage import Reported

__all__ = [
    "Accepted",
    "AgentCallFailed",
    "AgentClient",
    "AgentFault",
    "AgentReply",
    "AgentRequest",
    "BadSignature",
    "Reported",
    "check_auth_header",
    "check_endpoint_url",
    "check_secret",
    "new_secret",
    "sign",
    "verify",
]
