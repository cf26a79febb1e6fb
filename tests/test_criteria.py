"""Drafting acceptance criteria: what is split, refused and stored."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from models import CriterionKind
from services.criteria import (
    Checklist,
    CriteriaDraft,
    Criterion,
    CriterionDraft,
    checklist,
    split,
)
from services.values import RawJson

TEXTS = {
    "": [],
    "  \n ": [],
    "One sentence.": ["One sentence."],
    " Two lines\nof prose. ": ["Two lines\nof prose."],
    "- a\n- b": ["a", "b"],
    "* a\n• b\n- c": ["a", "b", "c"],
    "1. a\n2) b\n10. c": ["a", "b", "c"],
    "- [ ] a\n- [x] b\n- [X] c\n- [] d": ["a", "b", "c", "d"],
    "- [link](x)\n- [1, 2] is there": ["[link](x)", "[1, 2] is there"],
    "  - a\n  - b": ["a", "b"],
    "- a\n  and more\n- b": ["a\n  and more", "b"],
    "- a\nlazily continued\n- b": ["a\nlazily continued", "b"],
    "- a\n  - a1\n  - a2\n- b": ["a\n  - a1\n  - a2", "b"],
    "- a\n\n  second paragraph\n- b": ["a\n  second paragraph", "b"],
    "- a\n\nAlso in English.": ["a", "Also in English."],
    "The summary must:\n- be short\n- be true": [
        "The summary must: be short",
        "The summary must: be true",
    ],
    "The summary must:\n\n- be short\n\nThe title must:\n- rhyme": [
        "The summary must: be short",
        "The title must: rhyme",
    ],
    "In English.\n\n- short": ["In English.", "short"],
    "In English.\n- short": ["In English.", "short"],
    "# Summary\n- short\n## Title\n- rhymes": ["short", "rhymes"],
    "Acceptance criteria:\n- short": ["short"],
    "- short\n---\n- true": ["short", "true"],
    "- short\n\nAnd finally:": ["short", "And finally:"],
    "- \n- a\n-\n": ["a\n-"],
    "# Only a heading": ["# Only a heading"],
    "1.5 MB at most": ["1.5 MB at most"],
    "-5 degrees": ["-5 degrees"],
    "- a\r\n- b\r\n": ["a", "b"],
    "\t- a\n\t\t- nested\n\t- b": ["a\n    - nested", "b"],
    "- # not a heading": ["# not a heading"],
}


@pytest.mark.parametrize(("text", "items"), TEXTS.items())
def test_free_text_is_split(text: str, items: list[str]) -> None:
    assert split(text) == items


def test_free_text_is_kept_verbatim() -> None:
    text = "  - a\r\n  - b \n"

    assert checklist(CriteriaDraft(text=text)) == Checklist(
        text=text,
        items=(Criterion(key="c1", text="a"), Criterion(key="c2", text="b")),
        pass_threshold=0,
    )


def test_given_items_are_the_checklist_and_the_text_is_record() -> None:
    draft = CriteriaDraft(text="- not\n- these", items=[CriterionDraft(text="this")])

    assert checklist(draft).text == "- not\n- these"
    assert [item.text for item in checklist(draft).items] == ["this"]


def test_items_alone_make_the_text() -> None:
    draft = CriteriaDraft(items=[CriterionDraft(text="a"), CriterionDraft(text="b")])

    assert checklist(draft).text == "- a\n- b"


def test_keys_are_made_up_around_given_ones() -> None:
    items = [CriterionDraft(text="a", key=key) for key in (None, "c1", None, "x", "c3", None)]

    made = [item.key for item in checklist(CriteriaDraft(items=items)).items]

    assert made == ["c2", "c1", "c4", "x", "c3", "c5"]


def test_a_stored_criterion_reads_back() -> None:
    config = RawJson({"value": None, "pointer": "/n"})
    given = CriterionDraft(text="n", kind=CriterionKind.EXACT, config=config, weight=2)
    [item] = checklist(CriteriaDraft(items=[given])).items

    assert item.model_dump(mode="json") == {
        "key": "c1",
        "text": "n",
        "kind": "EXACT",
        "config": {"value": None, "pointer": "/n"},
        "weight": 2.0,
        "required": True,
    }
    assert Criterion(**item.model_dump(mode="json")) == item


def refusal(**draft: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as refused:
        CriteriaDraft.model_validate(draft)
    return [(".".join(map(str, e["loc"])), e["msg"]) for e in refused.value.errors()]


NUL = "Value error, must not contain the character U+0000"
OPTIONAL = {"text": "a", "required": False}
DRAFTS: list[tuple[dict[str, Any], str, str]] = [
    ({}, "", "Say what the result must be: give `text`, or at least one item"),
    ({"text": " "}, "", "Say what the result must be: give `text`, or at least one item"),
    ({"items": []}, "", "Say what the result must be: give `text`, or at least one item"),
    ({"text": "a\0"}, "text", NUL),
    ({"text": "a" * 20_001}, "text", "String should have at most 20000 characters"),
    (
        {"text": "- a\n" * 101},
        "",
        "The text has 101 list items, at most 100 are allowed",
    ),
    (
        {"items": [{"text": "a"}] * 101},
        "items",
        "List should have at most 100 items after validation, not 101",
    ),
    ({"items": [{"text": ""}]}, "items.0.text", "String should have at least 1 character"),
    ({"items": [{"text": " "}]}, "items.0.text", r"String should match pattern '\S'"),
    (
        {"items": [{"text": "a" * 2_001}]},
        "items.0.text",
        "String should have at most 2000 characters",
    ),
    ({"items": [{"text": "a\0"}]}, "items.0.text", NUL),
    (
        {"items": [{"text": "a", "key": "a b"}]},
        "items.0.key",
        "String should match pattern '^[A-Za-z0-9_-]+$'",
    ),
    (
        {"items": [{"text": "a", "key": "a\n"}]},
        "items.0.key",
        "String should match pattern '^[A-Za-z0-9_-]+$'",
    ),
    (
        {"items": [{"text": "a", "key": "k"}, {"text": "b", "key": "k"}]},
        "",
        "Keys must differ; given more than once: k",
    ),
    ({"items": [{"text": "a", "weight": 0}]}, "items.0.weight", "Input should be greater than 0"),
    (
        {"items": [{"text": "a", "weight": 1001}]},
        "items.0.weight",
        "Input should be less than or equal to 1000",
    ),
    (
        {"items": [{"text": "a", "weight": float("nan")}]},
        "items.0.weight",
        "Input should be a finite number",
    ),
    (
        {"items": [OPTIONAL]},
        "",
        (
            "No item is required and the pass threshold is 0, so nothing would decide: "
            "require an item or set a threshold"
        ),
    ),
    (
        {"text": "a", "pass_threshold": 1.1},
        "pass_threshold",
        "Input should be less than or equal to 1",
    ),
    (
        {"text": "a", "pass_threshold": -0.1},
        "pass_threshold",
        "Input should be greater than or equal to 0",
    ),
]


@pytest.mark.parametrize(("draft", "where", "why"), DRAFTS)
def test_refused_drafts(draft: dict[str, Any], where: str, why: str) -> None:
    assert refusal(**draft) == [(where, why)]


def test_optional_items_may_decide_by_a_threshold() -> None:
    assert checklist(CriteriaDraft.model_validate({"items": [OPTIONAL], "pass_threshold": 0.5}))


VALID: list[tuple[str, dict[str, Any]]] = [
    ("LLM", {}),
    ("LLM", {"instructions": "Be strict."}),
    ("EXACT", {"value": None}),
    ("EXACT", {"value": {"a": [1]}, "pointer": "/a~1b/~0"}),
    ("CONTAINS", {"value": "x", "ignoreCase": True}),
    ("REGEX", {"pattern": r"^\d{4}-\d{2}$", "pointer": ""}),
    ("JSON_SCHEMA", {"schema": {"type": "object", "properties": {"a": {"$ref": "#"}}}}),
    ("JSON_SCHEMA", {"schema": True, "pointer": "/a"}),
    ("JSON_PATH", {"path": "$.a[?@.b > 1]"}),
    ("JSON_PATH", {"path": "$..a", "value": None}),
    ("JSON_PATH", {"path": "$..a", "exists": False}),
    ("EXPRESSION", {"cel": "output.a > 1 && job.name != input"}),
    ("LATENCY", {"maxMs": 1}),
]


@pytest.mark.parametrize(("kind", "config"), VALID)
def test_a_config_is_stored_as_it_was_given(kind: str, config: dict[str, Any]) -> None:
    draft = CriteriaDraft.model_validate({"items": [{"text": "a", "kind": kind, "config": config}]})

    assert checklist(draft).items[0].config == config


REMOTE = "http://example.com/x.json"
INVALID: list[tuple[str, Any, str, str]] = [
    ("EXACT", None, "config.value", "config.value: Field required"),
    ("EXACT", [], "config", "config: Input should be a valid dictionary or instance of Ex"),
    ("EXACT", {"value": 1, "a": 1}, "config.a", "config.a: Extra inputs are not permitted"),
    (
        "EXACT",
        {"value": 1, "pointer": "a"},
        "config.pointer",
        "config.pointer: a JSON pointer is empty or begins with “/” (RFC 6901)",
    ),
    (
        "EXACT",
        {"value": 1, "pointer": "/~2"},
        "config.pointer",
        "config.pointer: in a JSON pointer “~” is written “~0”",
    ),
    ("EXACT", {"value": "a\0"}, "config", "config: the NUL character (U+0000) is not allowed"),
    ("EXACT", {"value": "a" * 20_000}, "config", "config: at most 20000 bytes of JSON"),
    ("EXACT", {"value": 2**64}, "config", "config: not JSON that can be stored: Integer exceeds"),
    ("EXACT", {"value": "\ud800"}, "config", "config: not JSON that can be stored: str is not"),
    ("CONTAINS", {"value": ""}, "config.value", "config.value: String should have at least 1"),
    ("CONTAINS", {"value": 1}, "config.value", "config.value: Input should be a valid string"),
    ("REGEX", {"pattern": "("}, "config.pattern", "config.pattern: missing ): ("),
    (
        "REGEX",
        {"pattern": "(?=a)"},
        "config.pattern",
        "config.pattern: invalid perl operator: (?=",
    ),
    (
        "REGEX",
        {"pattern": "((a{100}){100}){100}"},
        "config.pattern",
        "config.pattern: invalid repetition size: {100}",
    ),
    ("REGEX", {"pattern": "a" * 2_001}, "config.pattern", "config.pattern: at most 2000 char"),
    (
        "JSON_SCHEMA",
        {"schema": {"properties": {"a": {"type": "strin"}}}},
        "config.schema",
        "config.schema: at properties/a/type: the value is not valid under any of the schemas",
    ),
    (
        "JSON_SCHEMA",
        {"schema": {"$ref": REMOTE}},
        "config.schema",
        (
            f"config.schema: Resource '{REMOTE}' is not present in a registry and retrieving it "
            "failed: ValueError: only references inside the schema are followed"
        ),
    ),
    ("JSON_SCHEMA", {"schema": 1}, "config.schema", "config.schema: Input should be a valid"),
    (
        "JSON_PATH",
        {"path": "$["},
        "config.path",
        "config.path: unbalanced brackets, line 1, column 2",
    ),
    ("JSON_PATH", {"path": "a"}, "config.path", "config.path: expected '$', found 'a'"),
    ("JSON_PATH", {"path": "$[?" + "(" * 990}, "config.path", "config.path: "),
    (
        "JSON_PATH",
        {"path": "$", "value": 1, "exists": True},
        "config",
        "config: Give `value` or `exists`, not both",
    ),
    ("EXPRESSION", {"cel": "output."}, "config.cel", "config.cel: 1:8: Syntax error: "),
    (
        "EXPRESSION",
        {"cel": "ouput.a > 1"},
        "config.cel",
        "config.cel: 1:6: undeclared reference to 'ouput.a' (in container '')",
    ),
    (
        "EXPRESSION",
        {"cel": "1 + 1"},
        "config.cel",
        "config.cel: the expression must be true or false, this one is a int",
    ),
    (
        "EXPRESSION",
        {"cel": "(" * 500 + "true" + ")" * 500},
        "config.cel",
        "config.cel: CANCELLED: Expression recursion limit exceeded. limit: 32",
    ),
    ("EXPRESSION", {"cel": "true||" * 400 + "true"}, "config.cel", "config.cel: at most 2000 ch"),
    ("LATENCY", {"maxMs": 0}, "config.maxMs", "config.maxMs: Input should be greater than 0"),
    ("LATENCY", {"maxMs": "5"}, "config.maxMs", "config.maxMs: Input should be a valid integer"),
    ("LLM", {"model": "x"}, "config.model", "config.model: Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("kind", "config", "where", "why"), INVALID)
def test_a_bad_config_is_refused_with_its_place(
    kind: str, config: Any, where: str, why: str
) -> None:
    items = [{"text": "fine"}, {"text": "a", "kind": kind, "config": config}]

    [(loc, message), *more] = refusal(items=items)

    assert loc == f"items.1.{where}"
    assert message.startswith(why)
    assert len(message) < 600
    assert all(loc.startswith(f"items.1.{where}") for loc, _ in more)
