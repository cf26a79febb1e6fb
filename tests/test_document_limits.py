"""What a document may be and cost: each limit at its edge and beyond, before anything ran."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from graphql import GraphQLError, get_introspection_query

from models import Role
from schema import schema
from schema.documents import Documents
from schema.failures import MAX_MESSAGE, shown
from schema.limits import Limits
from schema.plans import SPARE_VARIABLES
from schema.validation import MAX_COMPARISONS, MAX_PROBLEMS
from services.errors import InvalidInput
from signoff import graphiql
from signoff.app import create_app
from tests.support.graphql import Json, answer, gql, make_key, new_job
from tests.support.running import AiohttpClient, Client, settings_for
from tests.support.sockets import connected

COUNT_JOBS = "{ jobs { totalCount } }"
CREATE = """mutation($input: CreateJobInput!) {
    %s
}"""
INPUT = {"name": "x", "acceptanceCriteria": {"text": "y"}}


@pytest.fixture
def database_kind() -> str:
    """None of this depends on the database."""
    return "sqlite"


async def error_of(client: Client, query: str, /, **variables: Any) -> Json:
    """The only error of an operation of which nothing was executed."""
    body = await answer(client, query, **variables)
    assert body.get("data") is None, body
    (error,) = body["errors"]
    return error


async def exceeded(client: Client, query: str, /, **variables: Any) -> tuple[str, int, int]:
    """The message, and by how much."""
    error = await error_of(client, query, **variables)
    extensions = error["extensions"]
    assert extensions["code"] == "LIMIT_EXCEEDED"
    return error["message"], extensions["requested"], extensions["maximum"]


def aliased(number: int) -> str:
    return "{ " + " ".join(f"a{n}: viewer {{ id }}" for n in range(number)) + " }"


async def test_as_many_aliases_as_may_be(client: Client) -> None:
    assert len(await gql(client, aliased(50))) == 50
    assert await exceeded(client, aliased(51)) == (
        "This has 51 aliases; at most 50 are taken.",
        51,
        50,
    )


async def test_ten_thousand_aliases_are_refused_by_their_length_or_tokens(client: Client) -> None:
    error = await error_of(client, "{" + " ".join(f"a{n}:viewer{{id}}" for n in range(7_000)) + "}")
    assert error["extensions"]["code"] == "LIMIT_EXCEEDED"
    assert "65536" in error["message"]
    error = await error_of(client, aliased(500))
    assert "Document contains more than 2000 tokens" in error["message"]


async def test_as_many_root_fields_as_may_be_and_none_is_run_beyond(client: Client) -> None:
    names = [f"a{n}" for n in range(20)]
    fields = " ".join(f"{n}: createJob(input: $input) {{ __typename }}" for n in names)
    await gql(client, CREATE % fields, input=INPUT)
    assert (await gql(client, COUNT_JOBS))["jobs"]["totalCount"] == 20
    spread = "createJob(input: $input) { __typename } " * 30 + "...F ...F"
    fragment = " fragment F on Mutation { " + "archiveJob(id: 1) { __typename } " * 11 + "}"
    message, requested, maximum = await exceeded(client, CREATE % spread + fragment, input=INPUT)
    assert (message, requested, maximum) == (
        "This has 52 root fields; at most 50 are taken.",
        52,
        50,
    )
    assert (await gql(client, COUNT_JOBS))["jobs"]["totalCount"] == 20


def deep(levels: int) -> str:
    """So many fields within each other, over edges and agents."""
    around = ("jobs(first: 0)", "nodes", "agent")
    names = ["jobs(first: 0)", "nodes", "agent", *(around[n % 3] for n in range(levels))]
    names = names[: levels - 1]
    return "{ " + " { ".join([*names, "__typename"]) + " }" * levels


async def test_as_deep_as_may_be(client: Client) -> None:
    assert await gql(client, deep(15)) == {"jobs": {"nodes": []}}
    assert await exceeded(client, deep(16)) == (
        "This has 16 levels of fields; at most 15 are taken.",
        16,
        15,
    )
    error = await error_of(client, "{a" * 900)
    assert error["extensions"]["code"] in {"GRAPHQL_ERROR", "LIMIT_EXCEEDED"}


async def test_directives_count_wherever_they_are(client: Client) -> None:
    def fields(number: int) -> str:
        parts = [f"v{n}: viewer {{ id @include(if: true) }}" for n in range(number)]
        return "query @skip(if: false) { " + " ".join(parts) + " }"

    body = await answer(client, fields(49))
    assert body["errors"][0]["message"].startswith("Directive '@skip' may not be used")
    parts = "{ viewer { ...F } } fragment F on Viewer { " + "id @include(if: true) " * 26 + "}"
    assert len(await gql(client, parts)) == 1
    doubled = parts.replace("{ viewer { ...F } }", "{ viewer { ...F ...F } }")
    assert await exceeded(client, doubled) == (
        "This has 52 directives; at most 50 are taken.",
        52,
        50,
    )


async def test_a_name_is_not_repeated_without_end(client: Client) -> None:
    assert await gql(client, "{ viewer {" + "id " * 30 + "} }") == {"viewer": {"id": "local"}}
    assert await exceeded(client, "{ viewer { ... on Viewer {" + "id " * 31 + "} } }") == (
        "This has 31 times “id” in one place; at most 30 are taken.",
        31,
        30,
    )


def doubling(levels: int, last: str) -> str:
    fragments = [f"fragment F{n} on Query {{ ...F{n + 1} ...F{n + 1} }}" for n in range(levels)]
    return "{ ...F0 } " + " ".join(fragments) + f" fragment F{levels} on Query {{ {last} }}"


async def test_fragments_that_double_are_counted_in_one_pass(client: Client) -> None:
    message, requested, _ = await exceeded(client, doubling(59, "a: viewer { id }"))
    assert message == "This has 1000000000 aliases; at most 50 are taken."
    assert requested == 1_000_000_000  # where counting stops
    chain = "{ ...F0 }" + " ".join(f"fragment F{n} on Query {{ ...F{n + 1} }}" for n in range(50))
    assert (await gql(client, chain + " fragment F50 on Query { viewer { id } }"))["viewer"]


async def test_a_document_has_so_many_fragments(client: Client) -> None:
    beside = " ".join(f"...F{n}" for n in range(61))
    every = f"{{ viewer {{ {beside} }} }} " + " ".join(
        f"fragment F{n} on Viewer {{ id }}" for n in range(61)
    )
    assert await exceeded(client, every) == (
        "This has 61 fragments; at most 60 are taken.",
        61,
        60,
    )
    fewer = every.replace("...F60", "").replace("fragment F60 on Viewer { id }", "")
    assert await gql(client, fewer) == {"viewer": {"id": "local"}}


async def test_fragments_in_a_circle_are_told_as_such(client: Client) -> None:
    circle = "{ ...A } fragment A on Query { ...B } fragment B on Query { ...A viewer { id } }"
    error = await error_of(client, circle)
    assert error["message"] == "Cannot spread fragment 'A' within itself via 'B'."


# Cost

PAGE = "query($n: Int) { jobs(first: $n) { nodes { id name agent { id } } } }"


async def cost_of(client: Client, query: str, /, **variables: Any) -> Json:
    body = {"query": query, "variables": variables, "extensions": {"cost": True}}
    async with client.post("/graphql", json=body) as response:
        return (await response.json())["extensions"]["cost"]


async def test_page_sizes_multiply_whatever_tells_them(client: Client) -> None:
    async def requested(query: str, **variables: Any) -> int:
        return (await cost_of(client, query, **variables))["requested"]

    # 10 for the operation, 50 for the page, 5 fields for each job
    assert await requested(PAGE, n=1) == 10 + 50 + 5
    assert await requested(PAGE, n=100) == 10 + 50 + 500
    assert await requested(PAGE) == 10 + 50 + 100  # 20 where nothing is said
    assert await requested(PAGE, n=None) == 160
    assert await requested(PAGE.replace("$n: Int", "$n: Int = 7"), n=100) == 560
    assert await requested(PAGE.replace("$n: Int", "$n: Int = 7")) == 10 + 50 + 35
    assert await requested("{ jobs(last: 3) { edges { node { id } } } }") == 10 + 50 + 9
    assert await requested("{ jobLogs { nodes { id } } }") == 10 + 50 + 100  # its own default
    entries = "query($n: Int) { jobLogs(first: $n) { nodes { id } } }"
    assert await requested(entries) == 10 + 50 + 100
    assert await requested(entries, n=7) == 10 + 50 + 14
    assert await requested(PAGE, n=50.0) == 10 + 50 + 250  # an Int in JSON too
    counted = "{ jobs { totalCount pageInfo { hasNextPage } } }"
    assert await requested(counted) == 10 + 50 + 100 + 2
    through = "{ jobs(first: 50) { ...P } } fragment P on JobConnection { nodes { ...J } }"
    inner = " fragment J on Job { id logs(first: 5) { nodes { id } } }"
    assert await requested(through + inner) == 10 + 50 + 50 * (2 + 50 + 5 * 2)


async def test_what_is_out_of_range_is_told_by_the_page(client: Client) -> None:
    error = (await answer(client, PAGE, n=1_000_000))["errors"][0]
    assert error["extensions"]["fields"] == [
        {"path": ["first"], "message": "must be between 0 and 100"}
    ]


TOO_DEAR = """query($n: Int) {
  jobs(first: $n) { nodes { logs(first: $n) { nodes { id type createdAt } } } }
}"""


async def test_too_dear_is_refused_before_anything_ran(client: Client) -> None:
    assert (await cost_of(client, TOO_DEAR, n=80))["requested"] == 10 + 50 + 80 * (51 + 80 * 4)
    error = await error_of(client, TOO_DEAR, n=100)
    assert error["extensions"] == {
        "code": "COST_EXCEEDED",
        "requested": 45_160,
        "maximum": 30_000,
    }
    assert error["message"] == "This costs 45160; at most 30000 may be asked for at once."


async def test_too_dear_a_mutation_changes_nothing(client: Client) -> None:
    dear = "... on Job { dependsOn { job { dependsOn { job { id logs { nodes { id } } } } } } }"
    query = CREATE % f"createJob(input: $input) {{ {dear} }}"
    error = await error_of(client, query, input=INPUT)
    assert error["extensions"]["code"] == "COST_EXCEEDED"
    assert (await gql(client, COUNT_JOBS))["jobs"]["totalCount"] == 0


async def test_costs_are_told_where_asked_for(client: Client) -> None:
    assert await answer(client, "{ viewer { id } }") == {"data": {"viewer": {"id": "local"}}}
    told = await cost_of(client, "{ viewer { id } }")
    assert (told["requested"], told["maximum"]) == (12, 30_000)
    assert 590_000 < told["remaining"] < 600_000
    async with connected(client) as socket:
        payload = {"query": "{ viewer { id } }", "extensions": {"cost": True}}
        await socket.send({"id": "1", "type": "subscribe", "payload": payload})
        message = await socket.receive()
        assert message["payload"]["extensions"]["cost"]["requested"] == 12


async def test_introspection_is_bounded_by_what_it_lists(client: Client) -> None:
    every = get_introspection_query(
        specified_by_url=True, directive_is_repeatable=True, input_value_deprecation=True
    )
    assert (await gql(client, every))["__schema"]["queryType"]["name"] == "Query"
    loop = "{ __schema { types { fields { args { type { inputFields { name } } } } } } }"
    assert (await cost_of(client, loop))["requested"] < 30_000
    wide = "{ __schema { types { fields { type { " + " ".join(
        f"a{n}: fields {{ args {{ type {{ name }} }} }}" for n in range(40)
    )
    error = await error_of(client, wide + " } } } } }")
    assert error["extensions"]["code"] in {"COST_EXCEEDED", "GRAPHQL_ERROR"}


@pytest.mark.parametrize("document", [each["query"] for each in graphiql.examples()])
def test_every_example_is_within_the_limits(document: str) -> None:
    checked = Documents(schema.documents.schema, Limits()).check(document)
    assert checked.problems == []
    (operation,) = checked.operations.values()
    assert operation.requested({}, 200) < 5_000


# Variables and arguments

WHERE = "query($where: JobFilter) { jobs(where: $where) { nodes { id } } }"


async def problem_of(client: Client, query: str, /, **variables: Any) -> Json:
    error = await error_of(client, query, **variables)
    assert error["extensions"]["code"] == "VALIDATION"
    (problem,) = error["extensions"]["fields"]
    return problem


async def test_ten_thousand_filters_are_refused_where_they_are(client: Client) -> None:
    told = {"path": ["where", "or"], "message": "there are more than 200 filters in all"}
    branches = [{"name": {"eq": "x"}}] * 10_000
    assert (await problem_of(client, WHERE, where={"or": branches[:210]})) == told
    too_many = {"path": ["where", "or"], "message": "there are more than 2000 input values in all"}
    assert (await problem_of(client, WHERE, where={"or": branches})) == too_many
    given = "query($a: JobFilter!, $b: JobFilter)"
    two = given + "{ jobs(where: {and: [$a], not: $b}) { nodes { id } } }"
    half = {"or": branches[:110]}
    assert (await problem_of(client, two, a=half, b=half))["path"] == ["b", "or"]
    literal = "{ jobs(where: {or: [" + "{}," * 201 + "]}) { nodes { id } } }"
    assert (await problem_of(client, literal)) == told
    nested = {"and": [{"or": branches[:20]}] * 12}
    assert (await problem_of(client, WHERE, where=nested))["path"] == ["where", "and", "9", "or"]


async def test_no_input_has_values_without_end(client: Client) -> None:
    items = [{"text": "a"}] * 5_000
    given = {"name": "x", "acceptanceCriteria": {"items": items}}
    query = CREATE % "createJob(input: $input) { __typename }"
    assert await problem_of(client, query, input=given) == {
        "path": ["input", "acceptanceCriteria", "items"],
        "message": "there are more than 2000 input values in all",
    }
    ids = "query($ids: [ID!]) { jobs(where: {id: {in: $ids}}) { nodes { id } } }"
    assert (await problem_of(client, ids, ids=["job_x"] * 3_000))["path"] == ["ids"]
    assert (await gql(client, COUNT_JOBS))["jobs"]["totalCount"] == 0


async def test_json_is_not_counted_it_has_limits_of_its_own(client: Client) -> None:
    made = await new_job(client, input={"rows": [{"n": n} for n in range(5_000)]})
    assert made["__typename"] == "Job"


async def test_members_that_a_type_does_not_know_count_as_well(client: Client) -> None:
    many = {f"x{n}": 1 for n in range(3_000)}
    too_many = "there are more than 2000 input values in all"
    assert await problem_of(client, WHERE, where=many) == {"path": ["where"], "message": too_many}
    inside: Json = {"and": [{"status": {}}, many]}
    assert (await problem_of(client, WHERE, where=inside))["path"] == ["where", "and", "1"]
    few = await error_of(client, WHERE, where={"x": 1})
    assert few["extensions"]["code"] == "GRAPHQL_ERROR"


async def test_few_variables_are_taken_that_the_document_does_not_declare(client: Client) -> None:
    spare = {f"x{n}": n for n in range(SPARE_VARIABLES)}
    assert (await gql(client, PAGE, n=1, **spare))["jobs"] == {"nodes": []}
    taken = SPARE_VARIABLES + 1
    message = f"This has {taken + 1} variables; at most {taken} are taken."
    assert await exceeded(client, PAGE, n=1, m=2, **spare) == (message, taken + 1, taken)
    created = CREATE % "createJob(input: $input) { __typename }"
    assert await exceeded(client, created, input=INPUT, m=2, **spare) == (message, taken + 1, taken)
    assert (await gql(client, COUNT_JOBS))["jobs"]["totalCount"] == 0


NUMBERS = ["9" * 5_000, "-" + "9" * 400, "1." + "0" * 400, "1e" + "0" * 400]


@pytest.mark.parametrize("number", NUMBERS, ids=["long", "negative", "fraction", "exponent"])
async def test_a_number_in_a_document_has_so_many_digits(client: Client, number: str) -> None:
    for document in (
        f"{{ jobs(first: {number}) {{ totalCount }} }}",
        f"query($n: Int = {number}) {{ jobs(first: $n) {{ totalCount }} }}",
        f"mutation {{ {MAKES % number} }}",
    ):
        _, requested, maximum = await exceeded(client, document)
        assert (requested, maximum) == (len(number), 400)
    assert (await gql(client, COUNT_JOBS))["jobs"]["totalCount"] == 0


MAKES = """createJob(input: {name: "x", acceptanceCriteria: {text: "y"}, input: {n: %s}}) {
  __typename ... on Job { input }
}"""


async def test_numbers_of_so_many_digits_are_no_fault_of_ours(client: Client) -> None:
    for number in ("9" * 400, "1e400", "-1e400"):
        body = await answer(client, f"mutation {{ {MAKES % number} }}")
        codes = [each["extensions"]["code"] for each in body.get("errors", ())]
        assert "INTERNAL" not in codes, (number, body)
        body = await answer(client, f"{{ jobs(first: {number}) {{ totalCount }} }}")
        assert body["errors"][0]["extensions"]["code"] == "GRAPHQL_ERROR"


# What is kept

TEXTS = ["{ viewer { id } } # " + "x" * 280 + str(n) for n in range(200, 300)]


def test_parsed_documents_are_kept_up_to_so_many_bytes() -> None:
    documents = Documents(schema.documents.schema, Limits(cache_bytes=10 * 300 * len(TEXTS[0])))
    for text in TEXTS:
        documents.check(text)
    assert len(documents) == 10
    assert documents.bytes_kept == 10 * 300 * len(TEXTS[0])
    assert documents.known(TEXTS[89]) is None
    assert documents.known(TEXTS[90]) is not None
    documents.check("{ viewer { name } }")
    assert documents.known(TEXTS[90]) is not None  # it was used since
    assert documents.known(TEXTS[91]) is None


def test_what_is_wrong_is_not_kept() -> None:
    documents = Documents(schema.documents.schema)
    assert documents.check("{ nothing }").problems
    assert (len(documents), documents.bytes_kept) == (0, 0)


def test_the_schema_introspects_itself() -> None:
    names = {each["name"] for each in schema.introspect()["__schema"]["types"]}
    assert {"Job", "Agent", "JobFilter"} <= names


# Who is shown the schema

HINTED = {
    "{ viewr { id } }": "Cannot query field 'viewr' on type 'Query'.",
    "{ job(idd: 1) { id } }": "Unknown argument 'idd' on field 'Query.job'.",
    "{ jobs(where: {stats: {}}) { nodes { id } } }": "Expected value of type 'JobFilter' not to "
    "include unknown field 'stats'.",
    "{ node(id: 1) { ... on Jobb { id } } }": "Unknown type 'Jobb'.",
    "{ jobs(where: {status: {eq: PENDIN}}) { nodes { id } } }": "Value 'PENDIN' does not exist in "
    "'JobStatus' enum.",
    "{ viewer }": "Field 'viewer' of type 'Viewer!' must have a selection of subfields.",
    "query($x: JobFiltr) { jobs(where: $x) { nodes { id } } }": "Unknown type 'JobFiltr'.",
    "{ viewer @skipp(if: true) { id } }": "Unknown directive '@skipp'.",
}


@pytest.mark.parametrize("setting", ["ADMIN", "OFF"])
async def test_who_may_not_see_the_schema_gets_no_hints(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient, setting: str
) -> None:
    app = create_app(settings_for(database_url, tmp_path, introspection=setting))
    client = await aiohttp_client(app)
    keys = {role: await make_key(database_url, role, role) for role in Role}
    for role, key in keys.items():
        allowed = setting == "ADMIN" and role is Role.ADMIN
        for query in (
            "{ __schema { queryType { name } } }",
            '{ ...F } fragment F on Query { a: __type(name: "Job") { name } }',
        ):
            body = await answer(client, query, key)
            if allowed:
                assert "errors" not in body
            else:
                (error,) = body["errors"]
                assert error["extensions"] == {"code": "INTROSPECTION_OFF"}
                assert error["message"] == "The schema is not shown to you here."
        assert await answer(client, "{ __typename }", key) == {"data": {"__typename": "Query"}}
        for query, plain in HINTED.items():
            messages = [each["message"] for each in (await answer(client, query, key))["errors"]]
            assert any(m.startswith(plain) for m in messages), messages
            assert any("Did you mean" in m for m in messages) == (allowed and "skipp" not in query)
        body = await answer(
            client,
            "query($s: JobStatus) { jobs(where: {status: {eq: $s}}) { nodes { id } } }",
            key,
            s="PENDIN",
        )
        assert ("Did you mean" in body["errors"][0]["message"]) == allowed


async def test_every_caller_is_shown_the_schema_by_default(
    client: Client, database_url: str
) -> None:
    key = await make_key(database_url, "v", Role.VIEWER)
    assert (await gql(client, "{ __schema { queryType { name } } }", key))["__schema"]
    body = await answer(client, "{ viewr { id } }", key)
    assert body["errors"][0]["message"].endswith("Did you mean 'viewer'?")


async def test_of_a_wrong_document_a_few_mistakes_are_told(client: Client) -> None:
    wrong = "{ viewer { " + " ".join(f"x{n}" for n in range(300)) + " } }"
    messages = [each["message"] for each in (await answer(client, wrong))["errors"]]
    assert len(messages) == MAX_PROBLEMS + 1
    assert messages[-1].endswith("error limit reached. Validation aborted.")


async def test_an_answer_has_a_hundred_errors_at_most(
    database_url: str, tmp_path: Path, aiohttp_client: AiohttpClient
) -> None:
    wide = {"max_aliases": 1_000, "max_root_fields": 1_000, "max_tokens": 10_000}
    client = await aiohttp_client(create_app(settings_for(database_url, tmp_path, **wide)))
    viewer = await make_key(database_url, "Vera", Role.VIEWER)
    for number, told in ((99, 99), (100, 100), (200, 100)):
        fields = " ".join(f'a{n}: webhook(id: "{n}") {{ id }}' for n in range(number))
        body = await answer(client, f"{{ {fields} }}", viewer)
        assert body["data"] == {f"a{n}": None for n in range(number)}
        codes = [error["extensions"]["code"] for error in body["errors"]]
        assert codes == ["FORBIDDEN"] * told


async def test_no_message_is_longer_than_a_thousand_characters(client: Client) -> None:
    names = [f"{'x' * 90}{n}" for n in range(600)]
    literal = ", ".join(f"{name}: 1" for name in names)
    for each in (await answer(client, f"{{ jobs(where: {{{literal}}}) {{ totalCount }} }}"))[
        "errors"
    ]:
        assert len(each["message"]) <= MAX_MESSAGE
    error = await error_of(client, PAGE, n="x" * 1_000_000)
    assert len(error["message"]) <= MAX_MESSAGE
    given = {**INPUT, "acceptanceCriteria": {"passThreshold": "1" * 1_000_000}}
    error = await error_of(client, CREATE % "createJob(input: $input) { __typename }", input=given)
    assert len(error["message"]) <= MAX_MESSAGE
    problem = InvalidInput.at("x" * 1_000_000, message="y" * 1_000_000)
    told = json.dumps(shown(GraphQLError("", original_error=problem)).formatted)
    assert len(told) < 4 * MAX_MESSAGE
    assert (await gql(client, COUNT_JOBS))["jobs"]["totalCount"] == 0


# Comparing fields that come together


def side_by_side(fragments: int, fields: int) -> str:
    spread = " ".join(f"...F{n}" for n in range(fragments))
    inside = "agent { id } " * fields
    each = " ".join(f"fragment F{n} on Job {{ {inside} }}" for n in range(fragments))
    return f"{{ jobs {{ nodes {{ {spread} }} }} }} {each}"


async def test_fields_that_take_long_to_compare_are_refused(client: Client) -> None:
    assert await gql(client, side_by_side(6, 5)) == {"jobs": {"nodes": []}}
    error = await error_of(client, side_by_side(40, 10))
    assert error["extensions"] == {"code": "LIMIT_EXCEEDED"}
    assert error["message"].startswith("To tell whether this document's fields can go together")


def test_a_document_costs_the_work_that_it_made() -> None:
    documents = Documents(schema.documents.schema)
    assert documents.check("{ viewer { id } }").work == 0
    assert documents.check(side_by_side(6, 5)).work > 1_000
    assert documents.check(side_by_side(40, 10)).work > MAX_COMPARISONS // 2
    literal = ", ".join(f"x{n}: 1" for n in range(600))
    text = f"{{ jobs(where: {{{literal}}}) {{ totalCount }} }}"
    assert documents.check(text).work >= MAX_PROBLEMS * len(text) // 20
