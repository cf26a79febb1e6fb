"""Filters, orders and pages, held against the same done by hand in Python."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest

from models import Role
from tests.support.graphql import (
    SAYS_OK,
    Json,
    agent,
    answer,
    finished_job,
    gql,
    make_key,
    mutate,
    new_job,
    refusal,
)
from tests.support.running import Client

NAMES = "query($where: JobFilter) { jobs(where: $where, first: 100) { nodes { name } totalCount } }"
PAGE = """
query($first: Int, $after: String, $last: Int, $before: String, $orderBy: [JobOrder!]) {
  jobs(first: $first, after: $after, last: $last, before: $before, orderBy: $orderBy) {
    edges { cursor node { name priority createdAt updatedAt dueAt } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  }
}"""
AWKWARD = ["plain", "100%_a\\b", "100x-a\\b", "PLAIN", "plainer", "Straße", 'it\'s "so"']


def cursor_of(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


async def found(client: Client, where: Json | None, key: str | None = None) -> list[str]:
    """Names of the jobs that match, which `totalCount` must agree with."""
    page = (await gql(client, NAMES, key, where=where))["jobs"]
    assert page["totalCount"] == len(page["nodes"])
    return sorted(node["name"] for node in page["nodes"])


async def a_variety(client: Client) -> dict[str, Json]:
    """Jobs that differ in all that filters ask for, by name."""
    async with agent(client, name="Alpha") as (alpha, _), agent(client, name="Beta") as (beta, _):
        jobs = [
            await new_job(client, name="a", tags=["x", "y"], assign={"agentId": alpha}),
            await new_job(client, name="b", tags=["x"], priority="HIGH", assign={"agentId": beta}),
            await new_job(client, name="c", tags=["y", "z"], priority="LOW"),
            await new_job(client, name="d", priority="URGENT"),
            await finished_job(client, alpha, name="e", tags=["z"]),
            await new_job(client, name="f", tags=["x", "y", "z"]),
            await new_job(client, name="g"),
        ]
        await mutate(client, "cancelJob", input={"id": jobs[5]["id"]})
        await mutate(client, "cancelJob", input={"id": jobs[6]["id"]})
        await mutate(client, "archiveJob", id=jobs[6]["id"])
        await mutate(client, "setAgentAvailability", id=beta, availability="PAUSED")
    return {job["name"]: job for job in jobs}


async def test_every_comparator_finds_what_it_says(client: Client) -> None:
    jobs = await a_variety(client)
    alpha, beta = jobs["a"]["agent"]["id"], jobs["b"]["agent"]["id"]
    ids = {name: job["id"] for name, job in jobs.items()}
    cases: list[tuple[Json | None, str]] = [
        (None, "abcdef"),
        ({}, "abcdef"),
        ({"status": {"eq": "PENDING"}}, "cd"),
        ({"status": {"in": ["COMPLETED", "CANCELLED"]}}, "ef"),
        ({"status": {"in": []}}, ""),
        ({"status": {"nin": ["PENDING", "ASSIGNED"]}}, "ef"),
        ({"status": {"nin": []}}, "abcdef"),
        ({"status": {"eq": "ASSIGNED", "nin": ["ASSIGNED"]}}, ""),
        ({"id": {"eq": ids["c"]}}, "c"),
        ({"id": {"in": [ids["a"], ids["f"]]}}, "af"),
        ({"id": {"nin": [ids["a"], ids["f"]]}}, "bcde"),
        ({"agent": {}}, "abcdef"),
        ({"agent": {"id": {"eq": alpha}}}, "ae"),
        ({"agent": {"id": {"in": [alpha, beta]}}}, "abe"),
        ({"agent": {"id": {"nin": [alpha]}}}, "bcdf"),
        ({"agent": {"isNull": True}}, "cdf"),
        ({"agent": {"isNull": False}}, "abe"),
        ({"agent": {"name": {"eq": "alpha"}}}, "ae"),
        ({"agent": {"name": {"startsWith": "B", "ignoreCase": False}}}, "b"),
        ({"agent": {"availability": {"in": ["PAUSED"]}}}, "b"),
        ({"agent": {"availability": {"in": ["ACTIVE"]}, "name": {"eq": "Beta"}}}, ""),
        ({"createdBy": {"eq": "local"}}, "abcdef"),
        ({"createdBy": {"nin": ["local"]}}, ""),
        ({"createdBy": {"in": ["somebody"]}}, ""),
        ({"priority": {"eq": "URGENT"}}, "d"),
        ({"priority": {"gte": "HIGH"}}, "bd"),
        ({"priority": {"in": ["LOW", "HIGH"]}}, "bc"),
        ({"tags": {"any": ["x", "z"]}}, "abcef"),
        ({"tags": {"any": []}}, ""),
        ({"tags": {"all": ["x", "y"]}}, "af"),
        ({"tags": {"all": []}}, "abcdef"),
        ({"tags": {"none": ["y", "z"]}}, "bd"),
        ({"tags": {"none": []}}, "abcdef"),
        ({"tags": {"isEmpty": True}}, "d"),
        ({"tags": {"isEmpty": False}}, "abcef"),
        ({"tags": {"any": ["x"], "none": ["z"]}}, "ab"),
        ({"archived": {"eq": True}}, "g"),
        ({"archived": {"eq": False}}, "abcdef"),
        ({"archived": {}}, "abcdefg"),
        ({"archived": {"eq": None}}, "abcdefg"),
        ({"and": []}, "abcdef"),
        ({"or": []}, ""),
        ({"or": [{}]}, "abcdef"),
        ({"or": [{}, {"name": {"eq": "nobody"}}]}, "abcdef"),
        ({"not": {}}, ""),
        ({"not": {"or": []}}, "abcdef"),
        ({"not": {"not": {"name": {"eq": "a"}}}}, "a"),
        ({"not": {"status": {"nin": ["PENDING"]}}}, "cd"),
        ({"not": {"id": {"nin": [ids["a"], ids["f"]]}}}, "af"),
        ({"not": {"agent": {"id": {"nin": [alpha]}}}}, "ae"),
        ({"not": {"tags": {"none": ["y"]}}}, "acf"),
        ({"not": {"tags": {"isEmpty": True}}}, "abcef"),
        ({"not": {"blocked": False}}, ""),
        ({"not": {"not": {"status": {"in": ["PENDING"]}}}}, "cd"),
        ({"not": {"not": {"tags": {"any": ["x"]}}}}, "abf"),
        ({"not": {"not": {"not": {"tags": {"any": ["x"]}}}}}, "cde"),
        ({"not": {"agent": {"name": {"eq": "Alpha"}}}}, "bcdf"),
        ({"not": {"agent": {"isNull": True}}}, "abe"),
        ({"or": [{"name": {"eq": "a"}}, {"not": {"tags": {"isEmpty": False}}}]}, "ad"),
        ({"and": [{"tags": {"any": ["x"]}}, {"not": {"status": {"eq": "CANCELLED"}}}]}, "ab"),
        ({"name": {"eq": "a"}, "or": [{"name": {"eq": "b"}}]}, ""),
    ]
    for where, expected in cases:
        assert "".join(await found(client, where)) == expected, where


def matches(where: Json, job: Json) -> bool:
    """What a filter means, said again in Python."""
    meanings: dict[str, Callable[[Any], bool]] = {
        "and": lambda all_of: all(matches(each, job) for each in all_of),
        "or": lambda any_of: any(matches(each, job) for each in any_of),
        "not": lambda negated: not matches(negated, job),
        "priority": lambda p: job["priority"] == p["eq"],
        "tags": lambda tags: bool(set(tags["any"]) & set(job["tags"])),
        "agent": lambda a: job["agent"] is not None and job["agent"]["name"] == a["name"]["eq"],
    }
    return all(meanings[name](value) for name, value in where.items())


def combinations() -> Iterator[Json]:
    leaves: list[Json] = [
        {},
        {"priority": {"eq": "HIGH"}},
        {"tags": {"any": ["x"]}},
        {"agent": {"name": {"eq": "Alpha"}}},
    ]
    shapes: list[Callable[[Json, Json], Json]] = [
        lambda a, b: {"and": [a, b]},
        lambda a, b: {"or": [a, b]},
        lambda a, b: {"not": {"and": [a, {"not": b}]}},
        lambda a, b: {"or": [{"not": a}, {"and": [b, {"not": a}]}]},
        lambda a, b: a | {"not": b},
    ]
    for shape, a, b in product(shapes, leaves, leaves):
        yield shape(a, b)


async def test_conditions_combine_as_in_logic(client: Client) -> None:
    jobs = await a_variety(client)
    every = list(enumerate(combinations()))
    given = {f"f{n}": where for n, where in every}
    pages: Json = {}
    for start in range(0, len(every), 16):
        some = dict(list(given.items())[start : start + 16])
        document = " ".join(
            f"{name}: jobs(where: ${name}, first: 100) {{ nodes {{ name }} }}" for name in some
        )
        declared = ", ".join(f"${name}: JobFilter" for name in some)
        pages |= await gql(client, f"query({declared}) {{ {document} }}", **some)
    for name, where in given.items():
        expected = {n for n, job in jobs.items() if n != "g" and matches(where, job)}
        assert {node["name"] for node in pages[name]["nodes"]} == expected, where


async def test_names_are_compared_character_by_character(client: Client) -> None:
    for name in AWKWARD:
        await new_job(client, name=name)
    texts = ["plain", "PLAIN", "%", "_", "\\", "100%", "0%_", "a\\b", "'s", '"so"', "\\%", "x-", ""]
    for text, fold in product(texts, (True, False)):
        seen = [(name.lower(), name) if fold else (name, name) for name in AWKWARD]
        wanted = text.lower() if fold else text
        tests: dict[str, Callable[[str], bool]] = {
            "eq": lambda name, w=wanted: name == w,
            "contains": lambda name, w=wanted: w in name,
            "startsWith": lambda name, w=wanted: name.startswith(w),
        }
        for operator, test in tests.items():
            where = {"name": {operator: text, "ignoreCase": fold}}
            assert await found(client, where) == sorted(n for c, n in seen if test(c)), where
    assert await found(client, {"name": {"in": ["PLAIN", "Plainer"]}}) == [
        "PLAIN",
        "plain",
        "plainer",
    ]
    assert await found(client, {"name": {"in": ["PLAIN"], "ignoreCase": False}}) == ["PLAIN"]
    assert await found(client, {"name": {"in": []}}) == []


async def test_times_are_instants_or_durations(client: Client) -> None:
    job = await new_job(client, name="now")
    await mutate(client, "updateJob", input={"id": job["id"], "name": "now"})
    node = (await gql(client, PAGE))["jobs"]["edges"][0]["node"]
    for field in ("createdAt", "updatedAt"):
        await compare_times(client, field, node[field])


async def compare_times(client: Client, field: str, created: str) -> None:
    before = (datetime.fromisoformat(created) - timedelta(seconds=1)).isoformat()
    naive = datetime.fromisoformat(created).astimezone(UTC).replace(tzinfo=None).isoformat()
    east = datetime.fromisoformat(created).isoformat().replace("+00:00", "Z")
    for where, expected in (
        ({"gt": before}, ["now"]),
        ({"gt": created}, []),
        ({"gte": created}, ["now"]),
        ({"lte": naive}, ["now"]),
        ({"lt": east}, []),
        ({"gt": "-P1D"}, ["now"]),
        ({"gt": "-PT5M", "lt": "PT5M"}, ["now"]),
        ({"gt": "P1W2DT3H4M5S"}, []),
        ({"lt": "-P1W"}, []),
    ):
        assert await found(client, {field: where}) == expected, where
    for text in ("yesterday", "P", "-PT", "2026-13-01", "P999999W", "9999-12-31T23:59:59-23:59"):
        extensions = await refusal(client, NAMES, where={field: {"lt": text}})
        assert extensions["code"] == "VALIDATION"
        assert [each["path"] for each in extensions["fields"]] == [["where", field, "lt"]]


def nested(levels: int, around: Callable[[Json], Json]) -> Json:
    where: Json = {"name": {"eq": "x"}}
    for _ in range(levels):
        where = around(where)
    return where


AROUND: list[Callable[[Json], Json]] = [
    lambda f: {"not": f},
    lambda f: {"and": [f]},
    lambda f: {"or": [f, {}]},
]


async def test_a_filter_that_no_database_could_parse_is_refused(client: Client) -> None:
    for around in AROUND:
        assert (await gql(client, NAMES, where=nested(4, around)))["jobs"] is not None
        for levels in (5, 15):
            assert await refusal(client, NAMES, where=nested(levels, around)) == {
                "code": "VALIDATION",
                "fields": [{"path": ["where"], "message": "is nested more than 5 levels deep"}],
            }
        for levels in (45, 60, 250):
            extensions = await refusal(client, NAMES, where=nested(levels, around))
            (problem,) = extensions["fields"]
            assert (extensions["code"], problem["path"][0]) == ("VALIDATION", "where")
            assert problem["message"] == "is nested more than 40 levels deep"
    wide = {"name": {"in": ["x"] * 200}}
    assert await found(client, {"or": [wide, wide]}) == []
    assert await refusal(client, NAMES, where={"or": [wide] * 3}) == {
        "code": "VALIDATION",
        "fields": [{"path": ["where"], "message": "has more than 500 conditions"}],
    }
    many = await refusal(client, NAMES, where={"or": [{"name": {"eq": "x"}}] * 2_000})
    assert [each["path"] for each in many["fields"]] == [["where", "or"]]
    long = await refusal(client, NAMES, where={"name": {"in": ["x"] * 201}})
    assert [each["path"] for each in long["fields"]] == [["where", "name", "in"]]


# Pages

ORDERS: list[list[Json] | None] = [
    None,
    [{"field": "CREATED_AT", "direction": "ASC"}],
    [{"field": "PRIORITY"}],
    [{"field": "PRIORITY", "direction": "ASC"}, {"field": "CREATED_AT", "direction": "DESC"}],
    [{"field": "UPDATED_AT", "direction": "ASC"}],
    [
        {"field": "PRIORITY", "direction": "DESC"},
        {"field": "UPDATED_AT", "direction": "DESC"},
        {"field": "CREATED_AT", "direction": "ASC"},
    ],
    [{"field": "DUE_AT", "direction": "ASC"}],
    [{"field": "PRIORITY"}, {"field": "DUE_AT", "direction": "DESC"}],
    [{"field": "PRIORITY"}, {"field": "PRIORITY", "direction": "ASC"}],
]
FIELDS = {
    "CREATED_AT": "createdAt",
    "UPDATED_AT": "updatedAt",
    "PRIORITY": "priority",
    "DUE_AT": "dueAt",
}
RANKS = {"LOW": 0, "NORMAL": 1, "HIGH": 2, "URGENT": 3}


def in_order(nodes: list[Json], order: list[Json] | None) -> list[Json]:
    """Sorted by the columns of `order`; ties stay as they are."""
    for column in reversed(order or [{"field": "CREATED_AT"}]):
        name = FIELDS[column["field"]]
        nodes = sorted(
            nodes,
            key=lambda node, name=name: place(node[name]),
            reverse=column.get("direction", "DESC") == "DESC",
        )
    return nodes


def place(value: str | None) -> str:
    """Priorities by their rank, instants as they are, none after all others."""
    return "9999" if value is None else str(RANKS.get(value, value))


async def walk(client: Client, order: list[Json] | None, size: int, *, back: bool) -> list[Json]:
    """All rows by their pages, in the list's own order."""
    rows: list[Json] = []
    cursor: str | None = None
    while True:
        window = {"last": size, "before": cursor} if back else {"first": size, "after": cursor}
        page = (await gql(client, PAGE, orderBy=order, **window))["jobs"]
        edges, info = page["edges"], page["pageInfo"]
        assert (info["startCursor"], info["endCursor"]) == (
            edges[0]["cursor"],
            edges[-1]["cursor"],
        )
        nodes = [edge["node"] for edge in edges]
        rows = nodes + rows if back else rows + nodes
        came_from = info["hasNextPage"] if back else info["hasPreviousPage"]
        assert came_from is (cursor is not None)
        more = info["hasPreviousPage"] if back else info["hasNextPage"]
        assert len(nodes) == size or not more
        if not more:
            return rows
        cursor = edges[0 if back else -1]["cursor"]


async def test_every_order_visits_each_row_once_from_both_ends(client: Client) -> None:
    for number in range(11):
        await new_job(
            client,
            name=f"n{number}",
            priority=("LOW", "NORMAL", "HIGH")[number % 3],
            dueAt=None if number % 4 == 1 else f"2100-01-{20 - number // 2}T00:00:00Z",
        )
    for order in ORDERS:
        whole = (await gql(client, PAGE, orderBy=order, first=100))["jobs"]
        nodes = [edge["node"] for edge in whole["edges"]]
        assert len({node["name"] for node in nodes}) == 11
        assert whole["pageInfo"]["hasNextPage"] is whole["pageInfo"]["hasPreviousPage"] is False
        if order != ORDERS[-1]:  # a column twice: the later direction counts
            assert in_order(nodes, order) == nodes
        for size, back in product((1, 4, 11), (False, True)):
            assert await walk(client, order, size, back=back) == nodes, (order, size, back)


async def test_a_window_between_two_cursors(client: Client) -> None:
    for number in range(5):
        await new_job(client, name=f"n{number}")
    edges = (await gql(client, PAGE))["jobs"]["edges"]
    assert [edge["node"]["name"] for edge in edges] == ["n4", "n3", "n2", "n1", "n0"]
    ends = {"after": edges[0]["cursor"], "before": edges[4]["cursor"]}
    inside = (await gql(client, PAGE, **ends, first=2))["jobs"]
    assert [edge["node"]["name"] for edge in inside["edges"]] == ["n3", "n2"]
    assert inside["pageInfo"]["hasNextPage"] is inside["pageInfo"]["hasPreviousPage"] is True
    inside = (await gql(client, PAGE, **ends, last=2))["jobs"]
    assert [edge["node"]["name"] for edge in inside["edges"]] == ["n2", "n1"]
    first = (await gql(client, PAGE, before=edges[1]["cursor"]))["jobs"]
    assert [edge["node"]["name"] for edge in first["edges"]] == ["n4"]
    assert first["pageInfo"]["hasPreviousPage"] is False
    nothing = (await gql(client, PAGE, first=0))["jobs"]
    assert (nothing["edges"], nothing["pageInfo"]["hasNextPage"]) == ([], True)


async def test_limits_out_of_range_are_named(client: Client) -> None:
    out = "must be between 0 and 100"
    for window, fields in (
        ({"first": 101}, {"first": out}),
        ({"first": -1}, {"first": out}),
        ({"last": 101}, {"last": out}),
        ({"first": 1, "last": 1}, {"last": "cannot be combined with first"}),
        ({"first": -1, "last": 101}, {"first": out, "last": "cannot be combined with first"}),
    ):
        extensions = await refusal(client, PAGE, **window)
        assert extensions["code"] == "VALIDATION"
        assert {each["path"][0]: each["message"] for each in extensions["fields"]} == fields
    too_big = await refusal(client, PAGE, first=2**31)
    assert too_big == {"code": "GRAPHQL_ERROR"}
    six = [{"field": "PRIORITY"}] * 6
    assert (await refusal(client, PAGE, orderBy=six))["fields"] == [
        {"path": ["orderBy"], "message": "takes at most 5 columns"}
    ]


async def test_what_is_no_cursor_of_the_list_is_refused(client: Client) -> None:
    await new_job(client)
    edge = (await gql(client, PAGE))["jobs"]["edges"][0]
    logs = await gql(client, "{ jobLogs { edges { cursor } } }")
    other = "is a cursor of another order of this list"
    none = "is not a cursor of this list"
    order = "-created_at,-id"
    for cursor, arguments, message in (
        ("", {}, none),
        ("x", {}, none),
        ("😀", {}, none),
        ("A" * 100_000, {}, none),
        (edge["cursor"], {"orderBy": [{"field": "PRIORITY"}]}, other),
        (logs["jobLogs"]["edges"][0]["cursor"], {}, none),
        (cursor_of(None), {}, none),
        (cursor_of([order]), {}, none),
        (cursor_of([order, None]), {}, none),
        (cursor_of([order, ["2026-01-01T00:00:00Z"]]), {}, none),
        (cursor_of([order, ["2026-01-01T00:00:00Z", "x"]]), {}, none),
        (cursor_of([order, ["2026-01-01T00:00:00Z", 7]]), {}, none),
        (cursor_of([order, [[0], {"a": 0}]]), {}, none),
        (cursor_of([order, ["2026-01-01", "0" * 32]]), {}, none),
        (
            cursor_of(["-priority,-id", [10**30, "0" * 32]]),
            {"orderBy": [{"field": "PRIORITY"}]},
            none,
        ),
        (cursor_of(["-priority,-id", ["1", "0" * 32]]), {"orderBy": [{"field": "PRIORITY"}]}, none),
    ):
        for name in ("after", "before"):
            extensions = await refusal(client, PAGE, **{name: cursor}, **arguments)
            assert extensions["code"] == "VALIDATION", cursor
            assert extensions["fields"] == [{"path": [name], "message": message}], cursor


# What it costs


TAILING = 'SELECT "seq" "0" FROM "job_logs"'


@pytest.fixture
def statements(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The SQL sent since the last call, but for that of who looks for new entries by itself."""
    caplog.set_level(logging.DEBUG, logger="tortoise.db_client")

    def sent() -> list[str]:
        found = [r.getMessage() for r in caplog.records if r.name == "tortoise.db_client"]
        caplog.clear()
        return [sql for sql in found if not sql.startswith(TAILING)]

    return sent


async def test_the_total_is_counted_only_when_selected(
    client: Client, statements: Callable[[], list[str]]
) -> None:
    await new_job(client)
    statements()
    await gql(client, "{ jobs { nodes { id } } }")
    assert not [sql for sql in statements() if "COUNT(" in sql]
    await gql(client, "{ jobs { totalCount } }")
    assert len([sql for sql in statements() if "COUNT(" in sql]) == 1


RICH = """
query($first: Int!) {
  jobs(first: $first) { nodes {
    id tags cursor agent { name } criteria { items { key } } currentAttempt { number }
    latestVerdict { outcome results { outcome } } availableActions { action allowed } } }
}"""


async def test_a_page_takes_the_same_number_of_queries_whatever_its_size(
    client: Client, statements: Callable[[], list[str]]
) -> None:
    async with agent(client) as (agent_id, _):
        for number in range(20):
            given: Json = {"name": f"n{number}", "tags": ["a", "b"]}
            await (new_job(client, **given) if number else finished_job(client, agent_id, **given))
        for size in (2, 20):
            statements()
            page = await gql(client, RICH, first=size)
            selects = [sql for sql in statements() if "SELECT" in sql and '"api_keys"' not in sql]
            assert len(page["jobs"]["nodes"]) == size
            tables = sorted(sql.split('FROM "')[1].split('"')[0] for sql in selects)
            always = ["criteria_sets", "job_logs", "job_tags", "jobs", "verdicts"]
            rest = ["agents", "attempts", "criteria_sets"]
            # Two loads of agents are one if they are asked for at the same moment.
            if tables[:2] == ["agents", "agents"]:
                tables = tables[1:]
            assert tables == sorted(always + (rest if size == 20 else [])), tables


# The log, nodes and single things


async def test_the_log_of_all_jobs_by_type_position_and_job(client: Client) -> None:
    query = """
    query($where: JobFilter, $types: [JobLogType!], $first: Int! = 50, $after: EventCursor) {
      jobLogs(where: $where, types: $types, first: $first, after: $after) {
        totalCount edges { cursor } nodes { cursor type job { name } }
        pageInfo { hasNextPage hasPreviousPage }
      }
    }"""
    first = await new_job(client, name="first")
    await new_job(client, name="second")
    await mutate(client, "addJobNote", id=first["id"], message="hello")
    await mutate(client, "cancelJob", input={"id": first["id"]})
    everything = (await gql(client, query))["jobLogs"]
    assert [(n["job"]["name"], n["type"]) for n in everything["nodes"]] == [
        ("first", "STATUS_CHANGE"),
        ("second", "STATUS_CHANGE"),
        ("first", "NOTE"),
        ("first", "STATUS_CHANGE"),
    ]
    assert [e["cursor"] for e in everything["edges"]] == [n["cursor"] for n in everything["nodes"]]
    notes = (await gql(client, query, types=["NOTE"]))["jobLogs"]
    assert (notes["totalCount"], [n["type"] for n in notes["nodes"]]) == (1, ["NOTE"])
    assert (await gql(client, query, types=[]))["jobLogs"]["totalCount"] == 4
    second = (await gql(client, query, where={"name": {"eq": "second"}}))["jobLogs"]
    assert [n["job"]["name"] for n in second["nodes"]] == ["second"]
    page = (await gql(client, query, first=2, after=everything["nodes"][0]["cursor"]))["jobLogs"]
    assert page["nodes"] == everything["nodes"][1:3]
    assert (page["totalCount"], page["pageInfo"]) == (
        4,
        {"hasNextPage": True, "hasPreviousPage": True},
    )
    for cursor in ("", "x", cursor_of(-1), cursor_of(2**63), cursor_of("1"), cursor_of([1])):
        assert (await refusal(client, query, after=cursor))["fields"] == [
            {"path": ["after"], "message": "is not a position of the event log"}
        ]
    for size in (-1, 101):
        assert (await refusal(client, query, first=size))["fields"][0]["path"] == ["first"]


NODE = (
    "query($id: ID!) { node(id: $id) { __typename id } job(id: $id) { id } agent(id: $id) { id } }"
)
NOWHERE = [
    "",
    "job",
    "job_",
    "job_" + "0" * 31,
    "job_" + "0" * 32,
    "job_" + "g" * 32,
    "JOB_" + "0" * 32,
    "agent_" + "0" * 32,
    "attempt_" + "0" * 32,
    "verdict_" + "0" * 32,
    "log_",
    "log_0",
    "log_-1",
    "log_²",
    "log_" + "9" * 30,
    "log_1\0",
    "unknown_1",
    "😀" * 1_000,
]


async def test_a_node_of_each_type_is_found_by_its_id(client: Client) -> None:
    async with agent(client) as (agent_id, _):
        job = await finished_job(client, agent_id)
        found = await gql(
            client,
            """query($id: ID!) { job(id: $id) {
              currentAttempt { id } latestVerdict { id } logs(first: 1) { nodes { id } } } }""",
            id=job["id"],
        )
        ids = {
            "Job": job["id"],
            "Agent": agent_id,
            "Attempt": found["job"]["currentAttempt"]["id"],
            "Verdict": found["job"]["latestVerdict"]["id"],
            "JobLog": found["job"]["logs"]["nodes"][0]["id"],
        }
        for name, id in ids.items():
            data = await gql(client, NODE, id=id)
            assert data == {
                "node": {"__typename": name, "id": id},
                "job": {"id": id} if name == "Job" else None,
                "agent": {"id": id} if name == "Agent" else None,
            }
        for id in NOWHERE:
            assert await gql(client, NODE, id=id) == {"node": None, "job": None, "agent": None}, id


async def test_agents_are_filtered_and_paged(client: Client) -> None:
    query = """query($where: AgentFilter, $first: Int, $after: String) {
      agents(where: $where, first: $first, after: $after) {
        totalCount nodes { id name } pageInfo { endCursor hasNextPage } } }"""
    for name in ("One", "two", "Three"):
        given = {"name": name, "endpointUrl": "http://127.0.0.1:9/"}
        await mutate(client, "saveAgent", input=given)
    everyone = (await gql(client, query))["agents"]
    ids = {node["name"]: node["id"] for node in everyone["nodes"]}
    assert list(ids) == ["Three", "two", "One"]
    await mutate(client, "setAgentAvailability", id=ids["two"], availability="DISABLED")
    cases: list[tuple[Json, list[str]]] = [
        ({}, ["Three", "two", "One"]),
        ({"name": {"startsWith": "t"}}, ["Three", "two"]),
        ({"availability": {"in": ["DISABLED"]}}, ["two"]),
        ({"availability": {"in": []}}, []),
        ({"id": {"in": [ids["One"]]}}, ["One"]),
        ({"id": {"nin": [ids["One"]]}}, ["Three", "two"]),
        ({"name": {"in": []}}, []),
    ]
    for where, expected in cases:
        page = (await gql(client, query, where=where))["agents"]
        assert [node["name"] for node in page["nodes"]] == expected, where
        assert page["totalCount"] == len(expected)
    page = (await gql(client, query, first=2))["agents"]
    rest = (await gql(client, query, first=2, after=page["pageInfo"]["endCursor"]))["agents"]
    assert [node["name"] for node in rest["nodes"]] == ["One"]


async def test_an_aliased_page_gives_each_its_own_answer(client: Client) -> None:
    await new_job(client, name="x", acceptanceCriteria=SAYS_OK)
    body = await answer(client, "{ a: jobs(first: 101) { totalCount } b: jobs { totalCount } }")
    assert body["data"] is None
    assert [error["path"] for error in body["errors"]] == [["a"]]


async def test_filters_never_reach_beyond_what_the_caller_sees(
    client: Client, database_url: str
) -> None:
    await new_job(client, name="admin's")
    key = await make_key(database_url, "Mia", Role.MEMBER)
    await new_job(client, key, name="mia's")
    everything: Json = {"or": [{}, {"not": {"name": {"eq": "x"}}}], "archived": {}}
    assert await found(client, everything, key) == ["mia's"]
    assert await found(client, {"not": {"createdBy": {"eq": "Mia"}}}, key) == []
