"""GraphQL over HTTP as its specification has it: the audits of npm's `graphql-http`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import commands, node

PROJECT = Path(__file__).parent / "audits"
IDS = (PROJECT / "ids.txt").read_text().split()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each audit said of a server as `signoff serve` runs it."""
    packages = tmp_path_factory.mktemp("packages")
    node.installed(PROJECT, packages)
    return asyncio.run(_audited(packages, tmp_path_factory.mktemp("server")))


async def _audited(packages: Path, folder: Path) -> dict[str, dict[str, Any]]:
    settings = commands.environment(SIGNOFF_SAMPLE_AGENT="false")
    async with commands.process(folder, settings, "serve", "--port", "0") as server:
        lines = await commands.until_line(server, "  GraphQL")
        url = lines[-1].split()[1]
        done = await asyncio.to_thread(node.run, packages, "node", "run.mjs", url)
    assert done.returncode == 0, done.stderr
    return {each["id"]: each for each in json.loads(done.stdout)}


def test_there_are_no_more_audits_than_are_asked_for(found: dict[str, dict[str, Any]]) -> None:
    assert (list(found), len(IDS)) == (IDS, 61)


@pytest.mark.parametrize("id", IDS)
def test_an_audit_passes(found: dict[str, dict[str, Any]], id: str) -> None:
    assert (found[id]["status"], found[id]["reason"]) == ("ok", None), found[id]["name"]
