"""GraphQL over HTTP as its specification has it: the audits of npm's `graphql-http`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import commands, node

PROJECT = Path(__file__).parent / "audits"
IDS = """
22EB 4655 47DE 80D8 82A3 BF61 78D5 2C94 5A70 9C48 9ABE 03D4 A5BF 423L LKJ0 LKJ1 LKJ2 LKJ3 34A2
13EE 6C00 6C01 6C02 6C03 8161 B8B3 94B0 0220 94B1 0221 94B2 0222 4760 4761 4762 4763 2EA1 28B9
D6D5 6A70 58B0 58B1 58B2 58B3 428F 1B7A B6DC BCF8 B7N8 8764 3E3A 572B FDE2 7B9B 865D 556A D586
51FE 74FF 5E5B 86EE
""".split()


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
