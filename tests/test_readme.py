"""What the README shows is what is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from models import CriterionKind
from services import criteria
from services.criteria import CriteriaDraft, CriterionDraft
from signoff import settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def block(name: str) -> str:
    """What stands between the markers `<!-- name -->` and `<!-- /name -->`, without its fence."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    text = README[README.index(begin) + len(begin) : README.index(end)]
    return re.sub(r"\A```\w*\n|```\n\Z", "", text)


def test_the_settings_are_those_of_the_program() -> None:
    assert block("settings") == settings.table()


def test_the_example_agent_is_the_file_that_is_tested() -> None:
    assert block("agent") == (ROOT / "docs/examples/agent.py").read_text("utf-8")


def test_every_kind_of_criterion_is_shown_and_valid() -> None:
    items = TypeAdapter(list[CriterionDraft]).validate_json(block("criteria"))
    assert [item.kind for item in items] == [
        CriterionKind.EXACT,
        CriterionKind.CONTAINS,
        CriterionKind.REGEX,
        CriterionKind.JSON_SCHEMA,
        CriterionKind.JSON_PATH,
        CriterionKind.EXPRESSION,
        CriterionKind.LATENCY,
        CriterionKind.LLM,
    ]
    checklist = criteria.checklist(CriteriaDraft(items=items))
    assert [item.key for item in checklist.items] == [f"c{n}" for n in range(1, 9)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document: Path) -> None:
    missing = [
        link
        for link in LINK.findall(document.read_text("utf-8"))
        if not (document.parent / link).exists()
    ]
    assert missing == []
