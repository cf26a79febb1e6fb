"""What `signoff serve` makes of settings that are unusual, not wrong."""

from __future__ import annotations

import re
from pathlib import Path

import aiohttp
import pytest

from tests.support import commands

LAST_BUT_HINT = "  Judge  "
NO_JUDGE = "  Judge      checks only; set OPENAI_API_KEY for criteria in plain language"


async def lines_of_a_start(folder: Path, *arguments: str, **settings: str) -> list[str]:
    """What a server prints, which must answer at the address that it prints."""
    given = commands.environment(**settings)
    async with commands.process(folder, given, "serve", *arguments) as server:
        lines = await commands.until_line(server, LAST_BUT_HINT)
        found = re.search(r"http://127\.0\.0\.1:(\d+)/healthz", "\n".join(lines))
        assert found, lines
        assert found[1] != "0"
        async with aiohttp.ClientSession() as session, session.get(found[0]) as answer:
            assert answer.status == 200
    return lines


async def test_a_server_that_calls_no_private_agents_starts_without_a_sample(
    tmp_path: Path,
) -> None:
    lines = await lines_of_a_start(tmp_path, "--port", "0", SIGNOFF_ALLOW_PRIVATE_AGENTS="false")
    assert lines[0].endswith(" is ready.")
    assert not [line for line in lines if "gent" in line]


async def test_port_0_takes_a_free_port_whatever_the_setting_says(tmp_path: Path) -> None:
    lines = await lines_of_a_start(tmp_path, "--port", "0", SIGNOFF_PORT="1")
    assert re.fullmatch(r"  GraphQL    http://127\.0\.0\.1:\d{2,5}/graphql .*", lines[1])
    assert ":1/" not in lines[1]


@pytest.mark.parametrize("key", ["", "sk-test"])
async def test_an_empty_api_key_is_none(tmp_path: Path, key: str) -> None:
    lines = await lines_of_a_start(tmp_path, "--port", "0", OPENAI_API_KEY=key)
    assert (lines[-1] == NO_JUDGE) is (key == "")


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.parametrize("command", ["serve", "migrate"])
async def test_a_database_url_without_a_file_is_refused_in_one_line(
    tmp_path: Path, command: str
) -> None:
    given = commands.environment(SIGNOFF_DATABASE_URL="sqlite://", SIGNOFF_PORT="0")
    folder = tmp_path / "empty"
    folder.mkdir()
    assert await commands.run(folder, given, command) == (
        1,
        "",
        "signoff: SIGNOFF_DATABASE_URL must name a file, for example sqlite://signoff.db\n",
    )
    assert (files(folder), files(tmp_path)) == ([], [folder])
