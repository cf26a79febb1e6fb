"""Whether the rows fit together: after a crash or a fault nothing may be there by half."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any, cast
from uuid import UUID

import asyncpg

from models import hashes
from services.values import public_id

Row = dict[str, Any]
TABLES = ("jobs", "attempts", "job_logs", "verdicts", "queue_entries", "idempotency_keys")
LIVE = ("QUEUED", "RUNNING")


@dataclass
class Rows:
    """All rows of one moment, those of a job by its id."""

    jobs: list[Row]
    of_job: dict[str, dict[str, list[Row]]] = field(
        default_factory=lambda: defaultdict[str, dict[str, list[Row]]](
            lambda: defaultdict[str, list[Row]](list)
        )
    )


async def read(url: str, *queries: str) -> list[list[Row]]:
    """What the queries find, all at the same moment."""
    if url.startswith("sqlite://"):
        with closing(sqlite3.connect(url.removeprefix("sqlite://"), timeout=10)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            return [[dict(row) for row in connection.execute(query)] for query in queries]
    connection = await cast("Any", asyncpg).connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read"):
            return [[_plain(row) for row in await connection.fetch(query)] for query in queries]
    finally:
        await connection.close()


def _plain(row: Any) -> Row:
    return {name: str(v) if isinstance(v, UUID) else v for name, v in row.items()}


async def check(url: str, acknowledged: Iterable[tuple[str, str]] = ()) -> int:
    """Hold all rows against each other, and against what clients were told had been done.

    `acknowledged` are public ids of jobs and events of their log. Returns how many jobs there
    are; fails with everything that is wrong.
    """
    rows = await _rows(url)
    wrong = [problem for job in rows.jobs for problem in _problems(job, rows.of_job[job["id"]])]
    known = {job["id"] for job in rows.jobs}
    wrong += [f"rows of no job: {id}" for id in rows.of_job if id not in known]
    events = {_public(job): _events(rows.of_job[job["id"]]) for job in rows.jobs}
    wrong += [
        f"{id}: {event} was acknowledged and is gone"
        for id, event in acknowledged
        if event not in events.get(id, ())
    ]
    assert wrong == []
    return len(rows.jobs)


async def _rows(url: str) -> Rows:
    order = {"job_logs": "seq", "attempts": "number", "jobs": "id"}
    queries = [f'SELECT * FROM "{name}" ORDER BY {order.get(name, "job_id")}' for name in TABLES]  # noqa: S608
    jobs, *others = await read(url, *queries)
    rows = Rows(jobs)
    for name, found in zip(TABLES[1:], others, strict=True):
        for row in found:
            rows.of_job[row["job_id"]][name].append(row)
    return rows


def _of_chain(job: Row, entries: list[Row]) -> Iterator[str]:
    head = hashes.BEGINNING
    for entry in entries:
        at = entry["created_at"]
        told = {
            "payload_truncated": bool(entry["payload_truncated"]),
            "created_at": datetime.fromisoformat(at) if isinstance(at, str) else at,
        }
        head = hashes.of_job(head, entry | told)
        if entry["hash"] != head:
            yield f"entry {entry['seq']} does not follow the one before it"
            return
    if job["log_head"] != head:
        yield "its log does not end where the row says"


def _public(job: Row) -> str:
    return public_id("job", UUID(job["id"]))


def _events(of: dict[str, list[Row]]) -> Sequence[str]:
    return [told["event"] for told in _moves(of)]


def _moves(of: dict[str, list[Row]]) -> list[dict[str, Any]]:
    """What the log tells of changes of the status."""
    return [
        json.loads(row["payload_json"])
        for row in of["job_logs"]
        if row["type"] == "STATUS_CHANGE" and row["payload_json"]
    ]


def _problems(job: Row, of: dict[str, list[Row]]) -> Iterator[str]:
    found = [*_of_log(job, of), *_of_attempts(job, of), *_of_queue(job, of), *_of_end(job, of)]
    return (f"{_public(job)}: {problem}" for problem in found)


def _of_log(job: Row, of: dict[str, list[Row]]) -> Iterator[str]:
    moves = _moves(of)
    if not moves or moves[0]["event"] != "CREATE":
        yield "its log does not begin with its making"
        return
    if moves[-1]["to"] != job["status"]:
        yield f"the log ends with {moves[-1]['to']}, the row has {job['status']}"
    yield from _of_chain(job, of["job_logs"])
    for before, after in pairwise(moves):
        if after["from"] != before["to"] or after["version"] <= before["version"]:
            yield f"{after} does not follow {before}"
    if moves[-1]["version"] > job["version"]:
        yield "the log is ahead of the row"


def _of_attempts(job: Row, of: dict[str, list[Row]]) -> Iterator[str]:
    attempts = of["attempts"]
    if [each["number"] for each in attempts] != list(range(1, job["attempt_count"] + 1)):
        yield f"{job['attempt_count']} attempts, but rows of {len(attempts)}"
    live = [each["number"] for each in attempts if each["state"] in LIVE]
    if live != ([job["attempt_count"]] if job["status"] == "IN_EXECUTION" else []):
        yield f"is {job['status']} with live attempts {live}"
    for each in attempts:
        types = [row["type"] for row in of["job_logs"] if row["attempt_id"] == each["id"]]
        if (each["finished_at"] is None) != (each["state"] in LIVE):
            yield f"attempt {each['number']} is {each['state']}, ended at {each['finished_at']}"
        if each["started_at"] is not None and "AGENT_REQUEST" not in types:
            yield f"attempt {each['number']} asked, and the log has no request"
        if each["response_json"] is not None and "AGENT_RESPONSE" not in types:
            yield f"attempt {each['number']} has a response, and the log has none"
        verdicts = [row for row in of["verdicts"] if row["attempt_id"] == each["id"]]
        if len(verdicts) != types.count("VERDICT"):
            yield f"attempt {each['number']}: {len(verdicts)} verdicts, not as the log has it"


def _of_queue(job: Row, of: dict[str, list[Row]]) -> Iterator[str]:
    queued = [entry["number"] for entry in of["queue_entries"]]
    runs = job["status"] == "IN_EXECUTION" and job["phase"] != "AWAITING_REVIEW"
    if queued != ([job["attempt_count"]] if runs else []):
        yield f"is {job['status']} {job['phase']} and queued with {queued}"
    for entry in of["queue_entries"]:
        if (entry["state"] == "RUNNING") != (entry["worker_id"] is not None):
            yield f"is {entry['state']} with worker {entry['worker_id']}"


def _of_end(job: Row, of: dict[str, list[Row]]) -> Iterator[str]:
    if (job["status"] == "COMPLETED") != (job["completion_mode"] is not None):
        yield f"is {job['status']} by {job['completion_mode']}"
    if job["completion_mode"] == "VALIDATED":
        last = of["attempts"][-1]
        passed = [row["attempt_id"] for row in of["verdicts"] if row["outcome"] == "PASS"]
        if last["id"] not in passed or last["state"] != "SUCCEEDED":
            yield "is completed without a passing verdict"
        if job["result_json"] != last["response_json"]:
            yield "its result is not what the agent answered"
