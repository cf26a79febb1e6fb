"""What the files for deploying say is what the program knows, and the documented commands work."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Mapping
from configparser import ConfigParser
from contextvars import Context
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import asyncpg
import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.metrics import MetricWrapperBase

from models import JobStatus
from services.runtime import Runtime
from services.telemetry import Telemetry
from signoff import cli
from signoff.settings import Settings, variable
from signoff.wiring import runtime
from tests.fakes.agents import fake_agent
from tests.support import postgres
from tests.support.making import execute, make_agent, make_job, says_ok
from tests.support.running import settings_for

ROOT = Path(__file__).parent.parent
HOWTO = ROOT / "docs" / "howto"
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
PROGRAM = cast("Any", cli)
VARIABLES = {variable(name) for name in Settings.model_fields}
IN_THE_DOCUMENT = "postgres://signoff@db.example.com/signoff"
VARIABLE = re.compile(r"\b(?:SIGNOFF|OPENAI)_[A-Z_]*[A-Z]\b")


def parsed(*arguments: str) -> Any:
    """The command as the program understands it; it exits with 2 for one that it does not know."""
    return PROGRAM._parser().parse_args(arguments)


def block(document: str, name: str) -> str:
    """What stands between `<!-- name -->` and `<!-- /name -->`, without its fence."""
    text = (HOWTO / document).read_text("utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    inner = text[text.index(begin) + len(begin) : text.index(end)]
    return re.sub(r"\A```\w*\n|```\n\Z", "", inner)


# Docker


def test_compose_has_postgres_two_servers_and_two_workers() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"postgres", "migrate", "server", "worker"}
    assert services["server"]["deploy"] == services["worker"]["deploy"] == {"replicas": 2}
    for name in ("server", "worker"):
        waits = services[name]["depends_on"]["migrate"]
        assert waits == {"condition": "service_completed_successfully"}
    assert services["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}
    assert {mount.split(":")[0] for mount in services["postgres"]["volumes"]} == set(
        COMPOSE["volumes"]
    )


@pytest.mark.parametrize("service", ["migrate", "server", "worker"])
def test_commands_of_compose_are_commands_of_the_program(service: str) -> None:
    wanted = {"migrate": PROGRAM._migrate, "server": PROGRAM._serve, "worker": PROGRAM._worker}
    assert parsed(*COMPOSE["services"][service]["command"]).run == wanted[service]


@pytest.mark.parametrize("service", ["migrate", "server", "worker"])
def test_variables_of_compose_are_settings(service: str) -> None:
    environment = COMPOSE["services"][service]["environment"]
    ours = {name for name in environment if not name.startswith("OTEL_")}
    assert ours <= VARIABLES
    given = {
        field: re.sub(r"\$\{\w+:([-?])\}", lambda m: "x" if m[1] == "?" else "", value)
        for field in Settings.model_fields
        for value in (environment.get(variable(field)),)
        if value is not None
    }
    assert given.pop("database_url") == "postgres://signoff:x@postgres:5432/signoff"
    assert given.pop("secret_key") == "x"
    assert given.pop("max_address_connections") == "0"
    assert set(given.values()) == {""}


def test_processes_of_compose_get_longer_to_stop_than_their_executions() -> None:
    for name in ("server", "worker"):
        grace = int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace > Settings.model_fields["shutdown_seconds"].default + 10


def test_the_image_runs_as_nobody_special_on_one_port() -> None:
    assert set(VARIABLE.findall(DOCKERFILE)) == {
        "SIGNOFF_HOST",
        "SIGNOFF_PORT",
        "SIGNOFF_WORKER_PORT",
    }
    ports = re.findall(r"(?:_PORT=|EXPOSE |127\.0\.0\.1:)(\d+)", DOCKERFILE)
    assert set(ports) == {"8080"}
    last = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert last.index("USER signoff") < last.index("ENTRYPOINT")
    assert "pip" not in last
    assert parsed("serve").run == PROGRAM._serve


def test_what_the_image_installs_is_there() -> None:
    (command,) = re.findall(r"^RUN (pip .*)$", DOCKERFILE, re.MULTILINE)
    words = shlex.split(command)
    assert (ROOT / words[words.index("--constraint") + 1]).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (wanted,) = re.findall(r"^\.\[(\w+)\]$", words[-1])
    assert wanted in project["optional-dependencies"]


def test_a_wheel_can_be_built_of_what_docker_is_given(tmp_path: Path) -> None:
    patterns = (ROOT / ".dockerignore").read_text("utf-8").split()
    patterns += [".git", "*_cache", "*.egg-info"]

    def ignored(folder: str, names: list[str]) -> list[str]:
        within = Path(folder).relative_to(ROOT)
        return [name for name in names if _matches(str(within / name), patterns)]

    shutil.copytree(ROOT, tmp_path / "source", ignore=ignored)
    assert not (tmp_path / "source" / "tests").exists()
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", ".."]
    subprocess.run(build, cwd=tmp_path / "source", check=True, capture_output=True)  # noqa: S603
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("signoff/cli.py", "signoff/_app/schema/__init__.py", "signoff/static/graphiql"):
        assert any(name.startswith(needed) for name in names), needed


def _matches(path: str, patterns: list[str]) -> bool:
    """As Docker does, for the few forms of patterns that are used."""
    return any(
        path == pattern
        or ("/" not in path and fnmatch(path, pattern))
        or (pattern.startswith("**/") and fnmatch(Path(path).name, pattern[3:]))
        for pattern in patterns
    )


# Documents


@pytest.mark.parametrize("document", sorted(HOWTO.glob("*.md")), ids=lambda path: path.stem)
def test_documents_name_real_commands_and_settings(document: Path) -> None:
    text = document.read_text("utf-8")
    assert set(VARIABLE.findall(text)) <= VARIABLES | {"SIGNOFF_KEY_FILE"}
    fences = "\n".join(re.findall(r"```(?:sh|ini|text)\n(.*?)```", text, re.DOTALL))
    found = re.findall(
        r"^(?:ExecStart=)?(?:\S*/)?signoff +((?:serve|worker|migrate|keys)\b.*)$",
        fences,
        re.MULTILINE,
    )
    for command in found:
        parsed(*shlex.split(command.partition("#")[0]))


def test_the_unit_is_one_that_systemd_can_read() -> None:
    text = (HOWTO / "one-machine.md").read_text("utf-8")
    (unit,) = re.findall(r"```ini\n(.*?)```", text, re.DOTALL)
    parser = ConfigParser(strict=False, interpolation=None)
    parser.read_string(unit)
    assert parser.sections() == ["Unit", "Service", "Install"]
    patience = int(parser["Service"]["TimeoutStopSec"])
    assert patience > Settings.model_fields["shutdown_seconds"].default + 10


def test_the_table_of_metrics_is_that_of_the_program() -> None:
    assert block("monitoring.md", "metrics") == metrics_table()


def metrics_table() -> str:
    lines = ["| metric | type | labels | what it is |", "|---|---|---|---|"]
    for metric, labels in _declared():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        told = ", ".join(f"`{label}`" for label in labels)
        lines.append(f"| `{name}` | {metric.type} | {told} | {metric.documentation} |")
    return "\n".join(lines) + "\n"


def _declared() -> list[tuple[Metric, tuple[str, ...]]]:
    """Our own metrics, with the names of their labels."""
    declared = [each for each in vars(Telemetry()).values() if isinstance(each, MetricWrapperBase)]
    return [
        (metric, cast("Any", each)._labelnames) for each in declared for metric in each.collect()
    ]


def test_alerts_are_about_metrics_that_there_are() -> None:
    groups = yaml.safe_load(block("monitoring.md", "alerts"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert all(set(rule) == {"alert", "expr", "for", "annotations"} for rule in rules)
    known = {metric.name for metric, _ in _declared()}
    used = {name for rule in rules for name in re.findall(r"\bsignoff_\w+", rule["expr"])}
    assert {re.sub(r"_(count|total)$", "", name) for name in used} <= known


# Backup


@pytest.mark.parametrize("database_kind", ["sqlite"])
async def test_a_backup_of_a_running_server_is_restored_as_documented(
    rt: Runtime, database_url: str, tmp_path: Path
) -> None:
    folder = Path(database_url.removeprefix("sqlite://")).parent
    async with fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        done = await execute(rt, await make_job(rt, agent))
        await shell(folder, block("backup-and-restore.md", "backup"))
        await make_job(rt, agent)
    restored = tmp_path / "restored"
    restored.mkdir()
    shutil.copy(folder / "backup.db", restored / "backup.db")
    shutil.copy(folder / "signoff.db", restored / "signoff.db")
    await shell(restored, block("backup-and-restore.md", "restore"))
    with sqlite3.connect(restored / "signoff.db") as connection:
        rows = connection.execute("SELECT status FROM jobs").fetchall()
    connection.close()
    assert rows == [(done.status.value,)] == [(JobStatus.COMPLETED.value,)]
    settings = settings_for(f"sqlite://{restored}/signoff.db", tmp_path)
    await asyncio.create_task(_goes_on(settings))


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
async def test_a_backup_of_postgres_is_restored_as_documented(
    rt: Runtime, database_url: str, tmp_path: Path
) -> None:
    restored = f"{database_url}_restored"
    host = f"--host=127.0.0.1 --port={urlsplit(database_url).port} --username=signoff"
    names = {
        "--host=db.example.com": host,
        "--owner=signoff signoff": f"--owner=signoff {urlsplit(restored).path[1:]}",
    }
    async with fake_agent(says_ok) as endpoint:
        done = await execute(rt, await make_job(rt, await make_agent(rt, endpoint.url)))
        script = block("backup-and-restore.md", "backup of Postgres")
        await shell(tmp_path, replaced(script, {IN_THE_DOCUMENT: database_url}))
        await make_job(rt)
    script = block("backup-and-restore.md", "restore of Postgres")
    await shell(tmp_path, replaced(script, {IN_THE_DOCUMENT: restored} | names))
    connection = await cast("Any", asyncpg).connect(restored)
    rows = await connection.fetch("SELECT id, status FROM jobs")
    await connection.close()
    assert [tuple(row) for row in rows] == [(done.id, JobStatus.COMPLETED.value)]
    await asyncio.create_task(_goes_on(settings_for(restored, tmp_path)), context=Context())


def replaced(script: str, names: Mapping[str, str]) -> str:
    for name, real in names.items():
        assert name in script
        script = script.replace(name, real)
    return script


async def _goes_on(settings: Settings) -> None:
    """The restored system does work, with the agent and the secrets that it had."""
    async with runtime(settings, allow_private_agents=True) as rt, fake_agent(says_ok) as endpoint:
        agent = await make_agent(rt, endpoint.url)
        assert (await execute(rt, await make_job(rt, agent))).status is JobStatus.COMPLETED


async def shell(folder: Path, script: str) -> None:
    tools = postgres.find_binaries()
    path = os.environ["PATH"] if tools is None else f"{tools}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-ec", script, cwd=folder, env=os.environ | {"PATH": path}
    )
    assert await process.wait() == 0
