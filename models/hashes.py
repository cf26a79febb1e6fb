"""The hashes that tie each entry of a log to the one before it.

A hash is SHA-256, in hexadecimal, over the UTF-8 of a JSON array in the canonical form of
RFC 8785, which holds texts, whole numbers, true, false and null: the name of the format, the
hash before it ("" at the beginning), and what the entry says, in the order of `OF_JOB` or
`OF_WORKSPACE`. Ids are told as 8-4-4-4-12 digits, times as RFC 3339 in UTC, with microseconds
unless they are zero. An entry's place is not among it: the database gives that, and the chain
itself tells the order.

What is written with a format is read with it for ever: another one gets another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from operator import itemgetter
from typing import Any

import orjson

BEGINNING = ""
"""What stands for the hash before the first entry."""
OF_JOB = (
    "workspace_id",
    "job_id",
    "type",
    "status",
    "message",
    "payload_json",
    "payload_truncated",
    "attempt_id",
    "agent_id",
    "actor_kind",
    "actor_id",
    "actor_name",
    "created_at",
)
OF_WORKSPACE = (
    "workspace_id",
    "action",
    "subject",
    "changes_json",
    "actor_kind",
    "actor_id",
    "actor_name",
    "created_at",
)
_said_of_job = itemgetter(*OF_JOB)
_said_of_workspace = itemgetter(*OF_WORKSPACE)


def of_job(before: str, entry: Mapping[str, Any]) -> str:
    """The hash of an entry of a job's log, by its columns."""
    said = ("signoff.log.1", before, *_said_of_job(entry))
    return sha256(orjson.dumps(said, str)).hexdigest()


def of_workspace(before: str, entry: Mapping[str, Any]) -> str:
    """The hash of an entry of the audit log, by its columns."""
    said = ("signoff.audit.1", before, *_said_of_workspace(entry))
    return sha256(orjson.dumps(said, str)).hexdigest()
