"""Deterministic criteria, and what they do when the check itself is hostile."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from models import CriterionKind, VerdictOutcome, jsontext
from services import json_schemas
from services.criteria import CriteriaDraft, Criterion, checklist
from services.json_schemas import BadSource, Mismatch, NotEvaluated, TooCostly
from services.judges import languages, pointers
from services.judges.base import CriterionResult, Evidence, Subject
from services.judges.checks import run_checks
from services.judges.sandbox import Sandbox

PASS, FAIL, ERROR = VerdictOutcome.PASS, VerdictOutcome.FAIL, VerdictOutcome.ERROR

OUTPUT: dict[str, Any] = {
    "title": "Héllo World",
    "score": 3,
    "ok": True,
    "none": None,
    "items": [{"a": 1}, {"a": 2.5, "b": "x"}],
    "a/b": {"~": 1},
}


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    sandbox = Sandbox(children=1, deadline=1)
    yield sandbox
    await sandbox.close()


def drafted(kind: str, config: dict[str, Any]) -> Criterion:
    draft = {"items": [{"text": "t", "kind": kind, "config": config}]}
    return checklist(CriteriaDraft.model_validate(draft)).items[0]


async def run(
    sandbox: Sandbox, kind: str, config: dict[str, Any], output: Any = OUTPUT, *, latency: int = 5
) -> CriterionResult:
    subject = Subject({"q": [1, 2]}, output, {"name": "N"}, latency)
    [result] = await run_checks(subject, [drafted(kind, config)], sandbox)
    return result


LONG = "x" * 1_000
CASES: list[tuple[str, dict[str, Any], VerdictOutcome, str]] = [
    ("EXACT", {"value": 3, "pointer": "/score"}, PASS, "The output at /score is 3."),
    ("EXACT", {"value": 3.0, "pointer": "/score"}, PASS, "The output at /score is 3.0."),
    ("EXACT", {"value": None, "pointer": "/none"}, PASS, "The output at /none is null."),
    ("EXACT", {"value": OUTPUT}, PASS, "The output is {"),
    (
        "EXACT",
        {"value": 1, "pointer": "/ok"},
        FAIL,
        "Expected the output at /ok to be 1, it is true.",
    ),
    (
        "EXACT",
        {"value": "3", "pointer": "/score"},
        FAIL,
        'Expected the output at /score to be "3", it is 3.',
    ),
    (
        "EXACT",
        {"value": [{"a": 1}], "pointer": "/items"},
        FAIL,
        'Expected the output at /items to be [{"a":1}], it is [{"a":1},{"a":2.5,"b":"x"}].',
    ),
    ("EXACT", {"value": 1, "pointer": "/a~1b/~0"}, PASS, "The output at /a~1b/~0 is 1."),
    (
        "EXACT",
        {"value": 1, "pointer": "/missing/x"},
        FAIL,
        "There is nothing at /missing/x in the output.",
    ),
    (
        "EXACT",
        {"value": 1, "pointer": "/items/2"},
        FAIL,
        "There is nothing at /items/2 in the output.",
    ),
    (
        "EXACT",
        {"value": 1, "pointer": "/items/-1"},
        FAIL,
        "There is nothing at /items/-1 in the output.",
    ),
    (
        "CONTAINS",
        {"value": "World", "pointer": "/title"},
        PASS,
        'The output at /title contains "World".',
    ),
    (
        "CONTAINS",
        {"value": "world", "pointer": "/title"},
        FAIL,
        'Expected the output at /title to contain "world", it is "Héllo World".',
    ),
    (
        "CONTAINS",
        {"value": "HÉLLO", "pointer": "/title", "ignoreCase": True},
        PASS,
        'The output at /title contains "HÉLLO".',
    ),
    ("CONTAINS", {"value": '{"a":1}'}, PASS, 'The output contains "{\\"a\\":1}".'),
    (
        "REGEX",
        {"pattern": "W.*d$", "pointer": "/title"},
        PASS,
        'The output at /title matches W.*d$ with "World".',
    ),
    (
        "REGEX",
        {"pattern": "^World", "pointer": "/title"},
        FAIL,
        'Expected the output at /title to match ^World, it is "Héllo World".',
    ),
    (
        "JSON_SCHEMA",
        {"schema": {"required": ["title"], "properties": {"score": {"minimum": 1}}}},
        PASS,
        "The output fits the schema.",
    ),
    (
        "JSON_SCHEMA",
        {"schema": {"items": {"properties": {"a": {"type": "integer"}}}}, "pointer": "/items"},
        FAIL,
        (
            "The output at /items/1/a does not fit the schema (type): "
            'the value is not of type "integer".'
        ),
    ),
    ("JSON_PATH", {"path": "$.items[?@.a > 2].b"}, PASS, '$.items[?@.a > 2].b selects "x".'),
    ("JSON_PATH", {"path": "$.items[*].a", "value": 2.5}, PASS, "$.items[*].a selects 2.5."),
    (
        "JSON_PATH",
        {"path": "$.items[*].a", "value": 7},
        FAIL,
        "Expected $.items[*].a to select 7, it selects 1.",
    ),
    ("JSON_PATH", {"path": "$.none", "value": None}, PASS, "$.none selects null."),
    ("JSON_PATH", {"path": "$.x"}, FAIL, "Expected $.x to select something, it selects nothing."),
    ("JSON_PATH", {"path": "$.x", "exists": False}, PASS, "$.x selects nothing."),
    (
        "JSON_PATH",
        {"path": "$.ok", "exists": False},
        FAIL,
        "Expected $.ok to select nothing, it selects true.",
    ),
    ("EXPRESSION", {"cel": "output.score > 2"}, PASS, "output.score > 2 is true."),
    ("EXPRESSION", {"cel": "size(input.q) == 2 && job.name == 'N'"}, PASS, "size(input.q)"),
    ("EXPRESSION", {"cel": "output.score > 3"}, FAIL, "output.score > 3 is false."),
    (
        "EXPRESSION",
        {"cel": "output.missing > 3"},
        FAIL,
        'output.missing > 3 cannot be computed of this output: Key not found in map : "missing".',
    ),
    (
        "EXPRESSION",
        {"cel": "output.title > 3"},
        FAIL,
        (
            "output.title > 3 cannot be computed of this output: "
            "No matching overloads found : _>_(string, int64)."
        ),
    ),
    (
        "EXPRESSION",
        {"cel": "output.items[7].a == 1"},
        FAIL,
        "output.items[7].a == 1 cannot be computed of this output: Index error: index=7 size=2.",
    ),
    (
        "EXPRESSION",
        {"cel": "output.score"},
        ERROR,
        "The check came to no answer: the expression gave a int, not true or false.",
    ),
    ("LATENCY", {"maxMs": 5}, PASS, "The agent answered in 5 ms, within 5 ms."),
    ("LATENCY", {"maxMs": 4}, FAIL, "Expected an answer within 4 ms, the agent took 5 ms."),
]


@pytest.mark.parametrize(("kind", "config", "outcome", "reason"), CASES)
async def test_checks(
    sandbox: Sandbox, kind: str, config: dict[str, Any], outcome: VerdictOutcome, reason: str
) -> None:
    result = await run(sandbox, kind, config)

    assert result.outcome is outcome
    assert result.score == {PASS: 1.0, FAIL: 0.0}.get(outcome)
    assert result.reason.startswith(reason)
    assert result.error == (result.reason if outcome is ERROR else None)
    assert CriterionResult.from_json(orjson.loads(orjson.dumps(result.to_json()))) == result


async def test_evidence_points_at_the_place(sandbox: Sandbox) -> None:
    schema = {"properties": {"score": {"maximum": 1}}}

    exact = await run(sandbox, "EXACT", {"value": "no", "pointer": "/title"})
    fits = await run(sandbox, "JSON_SCHEMA", {"schema": schema})
    path = await run(sandbox, "JSON_PATH", {"path": "$['a/b']['~']"})

    assert exact.evidence == (Evidence("/title", "Héllo World", verified=True),)
    assert fits.evidence == (Evidence("/score", "3", verified=True),)
    assert path.evidence == (Evidence("/a~1b/~0", "1", verified=True),)


async def test_long_values_are_shortened(sandbox: Sandbox) -> None:
    exact = await run(sandbox, "EXACT", {"value": LONG + "y"}, LONG)
    contains = await run(sandbox, "CONTAINS", {"value": "y"}, [LONG])
    schema = await run(sandbox, "JSON_SCHEMA", {"schema": {"const": LONG}}, LONG + "y")
    path = await run(sandbox, "JSON_PATH", {"path": "$", "value": 1}, LONG)

    for result in (exact, contains, schema, path):
        assert result.outcome is FAIL
        assert len(result.reason) < 600
        assert len(result.evidence[0].quote or "") <= 201


async def test_only_what_code_can_check(sandbox: Sandbox) -> None:
    subject = Subject(None, 1, {}, 1)
    llm = Criterion(key="l", text="nice")
    one = Criterion(key="o", text="1", kind=CriterionKind.EXACT, config={"value": 1})

    results = await run_checks(subject, [llm, one, llm], sandbox)

    assert [result.key for result in results] == ["o"]


async def test_a_check_that_breaks_is_an_error(sandbox: Sandbox) -> None:
    broken = Criterion(key="b", text="1", kind=CriterionKind.EXACT, config={})

    [result] = await run_checks(Subject(None, 1, {}, 1), [broken], sandbox)

    assert result.outcome is ERROR
    assert result.reason == "The check broke; this is a bug of Signoff."


def test_pointers() -> None:
    value = {"": 1, "a": {"b/c": [10, {"~": 2}]}, "01": 3}

    assert pointers.resolve(value, "") is value
    assert pointers.resolve(value, "/") == 1
    assert pointers.resolve(value, "/a/b~1c/1/~0") == 2
    assert pointers.resolve(value, "/01") == 3
    assert pointers.of(["a", "b/c", 1, "~"]) == "/a/b~1c/1/~0"
    for missing in (
        "a",
        "/a/b~1c/2",
        "/a/b~1c/00",
        "/a/b~1c/-",
        "/x",
        "//x",
        "/~",
        f"/a/b~1c/{'1' * 30}",
    ):
        with pytest.raises(LookupError):
            pointers.resolve(value, missing)


# ---------- JSON Schema ----------


def test_a_mismatch_names_its_place_and_keyword() -> None:
    schema = '{"properties":{"a/b":{"items":{"maxLength":2}}}}'

    assert json_schemas.check(schema, {"a/b": ["ok"]}) is None
    assert json_schemas.check(schema, {"a/b": ["ok", "x" * 100_000]}) == Mismatch(
        "the value is longer than 2 characters", "/a~1b/1", "maxLength"
    )
    assert json_schemas.check("{}", None) is None
    assert json_schemas.check("false", 1) == Mismatch(
        "False schema does not allow the value", "", "falseSchema"
    )


def test_a_message_is_short_however_long_the_schema() -> None:
    mismatch = json_schemas.check(jsontext.dumps({"enum": ["x" * 5_000]}), "y" * 5_000)

    assert mismatch
    assert len(mismatch.message) <= 201


def test_drafts_are_recognised() -> None:
    draft4 = {"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 1}
    exclusive = jsontext.dumps(draft4 | {"exclusiveMaximum": True})

    assert json_schemas.check(exclusive, 1)
    assert json_schemas.check('{"exclusiveMaximum": 1}', 1)
    assert json_schemas.check('{"prefixItems": [{"type": "string"}]}', [1])


BAD_SCHEMAS = {
    "{": "not JSON: ",
    "NaN": "not JSON: ",
    "5": 'the value is not of types "boolean", "object"',
    '{"type": "strin"}': "at type: the value is not valid under any of the schemas",
    '{"pattern": "(?=a)"}': 'at pattern: the value is not a "regex"',
    '{"pattern": "((a{100}){100}){100}"}': 'at pattern: the value is not a "regex"',
    '{"$ref": "http://127.0.0.1:9/x"}': "Resource 'http://127.0.0.1:9/x' is not present",
    '{"$ref": "file:///etc/passwd"}': "Resource 'file:///etc/passwd' is not present",
    '{"$ref": "#/$defs/x"}': "Pointer '/$defs/x' does not exist",
    '{"$schema": "http://example.com/meta"}': "Unknown meta-schema: 'http://example.com/meta'",
    '{"items":' * 80 + "{}" + "}" * 80: "a schema is nested at most 64 levels deep",
    "[" * 5_000 + "]" * 5_000: "not JSON: depth limit exceeded",
    jsontext.dumps({"title": "x" * 64_000}): "a schema has at most 64000 bytes",
}


@pytest.mark.parametrize(("schema", "why"), BAD_SCHEMAS.items())
def test_bad_schemas_are_refused(schema: str, why: str) -> None:
    with pytest.raises(BadSource) as refused:
        json_schemas.compile(schema)

    assert str(refused.value).startswith(why)
    assert len(str(refused.value)) < 500


def chain(length: int) -> str:
    """Alternatives that refer to alternatives: 2 to the power of `length` ways to look at it."""
    links: dict[str, Any] = {
        f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(length)
    }
    return jsontext.dumps({"$defs": links | {f"a{length}": {"type": "null"}}, "$ref": "#/$defs/a0"})


TREE = jsontext.dumps(
    {
        "$defs": {
            "node": {
                "anyOf": [
                    {"type": "object", "properties": {"x": {"$ref": "#/$defs/node"}}},
                    {"type": "object", "properties": {"x": {"$ref": "#/$defs/node"}}},
                    {"type": "null"},
                ]
            }
        },
        "$ref": "#/$defs/node",
    }
)
MODELS = jsontext.dumps(
    {
        "$defs": {"p": {"type": "object", "properties": {"n": {"type": "string"}}}},
        "properties": {"a": {"$ref": "#/$defs/p"}, "b": {"$ref": "#/$defs/p"}},
    }
)


def tree(depth: int, leaf: Any) -> Any:
    return {"x": tree(depth - 1, leaf)} if depth else leaf


async def test_schemas_that_may_take_long_go_to_the_sandbox(sandbox: Sandbox) -> None:
    for schema in (TREE, chain(40), '{"$id": "http://x/y", "$ref": "#"}'):
        with pytest.raises(TooCostly):
            json_schemas.check(schema, None)
    assert json_schemas.check(MODELS, {"a": {"n": 1}}) == Mismatch(
        'the value is not of type "string"', "/a/n", "type"
    )

    assert await json_schemas.check_within(sandbox, TREE, tree(30, None)) is None
    assert await json_schemas.check_within(sandbox, TREE, tree(3, 1)) == Mismatch(
        "the value is not valid under any of the schemas listed in the 'anyOf' keyword", "", "anyOf"
    )


@pytest.mark.parametrize(("schema", "value"), [(chain(40), 1), (TREE, tree(60, 1))])
async def test_an_exponential_schema_ends(sandbox: Sandbox, schema: str, value: Any) -> None:
    with pytest.raises(NotEvaluated, match="it took longer than 1 s"):
        await json_schemas.check_within(sandbox, schema, value)


async def test_what_is_checked_here_is_quick() -> None:
    """The costliest that still counts as cheap."""
    pattern = {"pattern": "[ab]*a[ab]{900}x"}
    schemas = [
        (chain(8), 1),
        (jsontext.dumps({"allOf": [pattern] * 2}), "abba" * 1_000),
        (jsontext.dumps({"items": {"anyOf": [{"const": n} for n in range(50)]}}), [99] * 100_000),
        ('{"uniqueItems": true}', [{"a": n} for n in range(100_000)]),
    ]
    for schema, value in schemas:
        started = time.perf_counter()
        json_schemas.check(schema, value)
        assert time.perf_counter() - started < 0.5


# ---------- hostile checks ----------

BIG = list(range(5_000))
SLOW = "$[?search(@, '(a|a)*c')]"
HOSTILE: list[tuple[str, dict[str, Any], Any]] = [
    ("EXPRESSION", {"cel": "output.map(a, output.map(b, output.map(c, a + b + c))) != []"}, BIG),
    ("EXPRESSION", {"cel": "output.all(a, output.all(b, output.all(c, a + b + c >= 0)))"}, BIG),
    ("EXPRESSION", {"cel": "output.map(a, output + output + output) != []"}, BIG),
    (
        "EXPRESSION",
        {
            "cel": "[1,2,3,4,5,6,7,8,9].all(a, [1,2,3,4,5,6,7,8,9].all(b, "
            "[1,2,3,4,5,6,7,8,9].all(c, !output.contains('aaab'))))"
        },
        "a" * 3_000_000,
    ),
    (
        "EXPRESSION",
        {
            "cel": "[1,2,3,4,5,6,7,8,9].map(x, [1,2,3,4,5,6,7,8,9].map(y, "
            "[1,2,3,4,5,6,7,8,9].map(z, output + output + output))) != []"
        },
        "a" * 3_000_000,
    ),
    ("JSON_PATH", {"path": "$" + "..*" * 9 + "[?@ == 'no']"}, tree(120, 1)),
    ("JSON_PATH", {"path": SLOW}, ["a" * 60 + "dc"]),
    ("JSON_PATH", {"path": "$[?match(@, '(a|a)*c')]"}, ["a" * 60 + "dc"]),
    ("JSON_PATH", {"path": "$[?count($..*) > count($..*)]"}, BIG),
]


@pytest.mark.parametrize(("kind", "config", "output"), HOSTILE)
async def test_hostile_checks_end(
    sandbox: Sandbox, kind: str, config: dict[str, Any], output: Any
) -> None:
    started = time.monotonic()

    result = await run(sandbox, kind, config, output)

    assert result.outcome is ERROR, result
    assert time.monotonic() - started < 5
    assert (await run(sandbox, "EXPRESSION", {"cel": "output == 1"}, 1)).outcome is PASS


async def test_a_slow_regex_over_much_text_is_bounded(sandbox: Sandbox) -> None:
    result = await run(sandbox, "REGEX", {"pattern": "(a?){900}(.*b){90}x"}, "ab" * 1_000_000)

    assert result.outcome in {FAIL, ERROR}


NESTED = [
    "(",
    "[",
    "{",
    "!",
    "-",
    "a(",
    "a.",
    "a[",
    "1+",
    "a?",
    "true?true:",
    "[1].map(a,",
    "'",
    "a&&",
]


@pytest.mark.parametrize("part", NESTED)
@pytest.mark.parametrize("compile", [languages.expression, languages.json_path, languages.regex])
def test_deep_nesting_neither_crashes_nor_hangs_a_parser(part: str, compile: Any) -> None:
    for times in (10, 100, 2_000 // len(part) - 4):
        for source in (part * times, f"$[?{part * times}"):
            started = time.perf_counter()
            refused = _refusal(compile, source)
            assert len(refused) < 500
            assert time.perf_counter() - started < 0.3


def _refusal(compile: Any, source: str) -> str:
    try:
        compile(source)
    except BadSource as e:
        return str(e)
    return ""


async def test_an_output_nested_as_deep_as_json_allows(sandbox: Sandbox) -> None:
    deep = orjson.loads("[" * 1_000 + "]" * 1_000)

    for kind, config in (
        ("EXPRESSION", {"cel": "output != null"}),
        ("JSON_PATH", {"path": "$..x"}),
        ("CONTAINS", {"value": "x"}),
        ("REGEX", {"pattern": "x"}),
        ("JSON_SCHEMA", {"schema": {"items": {"$ref": "#"}}}),
        ("EXACT", {"value": 1}),
    ):
        result = await run(sandbox, kind, config, deep)
        assert result.outcome in {FAIL, ERROR}
        assert "bug" not in result.reason


# ---------- the sandbox itself ----------


def children() -> list[int]:
    """The processes this one has started and that are still there."""
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for file in found for pid in file.read_text().split()]


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


async def holds(sandbox: Sandbox, source: str = "output == 1", output: Any = 1) -> bool:
    return (await sandbox.evaluate(source, {"input": None, "output": output, "job": {}}))[0]


async def test_children_are_warm_and_ended(sandbox: Sandbox) -> None:
    before = children()
    assert await holds(sandbox)
    [child] = set(children()) - set(before)
    assert await holds(sandbox)
    assert child in children()

    await sandbox.close()

    assert children() == before


async def test_a_child_that_died_is_replaced(sandbox: Sandbox) -> None:
    before = children()
    assert await holds(sandbox)
    [child] = set(children()) - set(before)
    os.kill(child, signal.SIGKILL)

    assert await holds(sandbox)


async def test_an_abandoned_call_leaves_no_answer_behind(sandbox: Sandbox) -> None:
    assert await holds(sandbox)
    slow = asyncio.create_task(sandbox.find(SLOW, ["a" * 60 + "dc"], []))
    await asyncio.sleep(0.05)
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow

    assert await holds(sandbox)


async def test_a_child_sees_no_secrets(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    before = children()
    assert await holds(sandbox)
    [child] = set(children()) - set(before)

    assert b"sk-secret" not in environment(child)


async def test_a_child_is_not_waited_for_for_ever() -> None:
    sandbox = Sandbox(children=1, deadline=1, patience=0.1)
    slow = asyncio.create_task(sandbox.find(SLOW, ["a" * 60 + "dc"], []))
    await asyncio.sleep(0)

    with pytest.raises(NotEvaluated, match="too many other checks"):
        await holds(sandbox)
    with pytest.raises(NotEvaluated, match="it took longer than 1 s"):
        await slow
    await sandbox.close()


async def test_many_at_once(sandbox: Sandbox) -> None:
    answers = await asyncio.gather(*(holds(sandbox, output=n % 2) for n in range(500)))

    assert answers == [False, True] * 250
