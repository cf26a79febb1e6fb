"""The commands about keys and workspaces: they work on the database, beside a server or not."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import re
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar
from uuid import UUID

from models import DEFAULT_WORKSPACE, ActorKind, ApiKey, Role
from services import keys, workspaces
from services.actors import Actor
from services.values import parse_id
from services.workspaces import DEFAULT_NAME
from signoff import database
from signoff.settings import Settings

T = TypeVar("T")

Command = argparse.ArgumentParser
Run = Callable[[argparse.Namespace], None]


class Refused(Exception):
    """The command cannot be done; the message is one line that says what to do."""


class Add(Protocol):
    """Makes a command."""

    def __call__(self, name: str, run: Run, help: str) -> Command: ...


def add(command: Add) -> None:
    """The commands `keys` and `workspaces`."""
    made = command("keys", _list_keys, "make, list and revoke API keys")
    actions = made.add_subparsers(metavar="ACTION")
    _describe_key(actions.add_parser("create", help="make a key and show it once"))
    actions.add_parser("list", help="list all keys").set_defaults(run=_list_keys)
    revoke = actions.add_parser("revoke", help="revoke a key")
    revoke.add_argument("prefix", help="how the key begins, as `keys list` shows it")
    revoke.set_defaults(run=_revoke_key)
    grouped = command("workspaces", _list_workspaces, "make and list workspaces")
    actions = grouped.add_subparsers(metavar="ACTION")
    create = actions.add_parser("create", help="make a workspace; then make keys for it")
    create.add_argument("name", help="what it is called")
    create.set_defaults(run=_create_workspace)
    actions.add_parser("list", help="list all workspaces").set_defaults(run=_list_workspaces)


def _describe_key(create: Command) -> None:
    create.add_argument("--role", required=True, type=str.upper, choices=[r.value for r in Role])
    create.add_argument("--name", required=True, help="the user; several keys may share it")
    create.add_argument("--workspace", default=DEFAULT_NAME, help="what it is for")
    create.add_argument("--expires", type=_span, help="after how long it ends, such as 30d or 12h")
    create.add_argument(
        "--agents", type=_agent_ids, help="ids of those it may give work to, with commas"
    )
    create.add_argument(
        "--owners", type=_names, help="users whose jobs it sees and acts on, with commas"
    )
    create.set_defaults(run=_create_key)


SPAN = re.compile(r"([1-9]\d{0,5})([dhms])")
UNITS = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def _span(text: str) -> timedelta:
    """A length of time such as `30d`."""
    found = SPAN.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError("must be a number and d, h, m or s, such as 30d")
    return timedelta(**{UNITS[found[2]]: int(found[1])})


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _agent_ids(text: str) -> list[UUID]:
    try:
        return [parse_id("agent", each) for each in _names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"each {error}") from None


def _create_key(given: argparse.Namespace) -> None:
    async def make() -> str:
        workspace = await workspaces.named(given.workspace)
        if workspace is None:
            raise Refused(
                f"there is no workspace “{given.workspace}”; see: signoff workspaces list"
            )
        _, text = await keys.create(
            given.name,
            Role(given.role),
            workspace_id=workspace.id,
            expires_at=given.expires and datetime.now(UTC) + given.expires,
            agents=given.agents,
            owners=given.owners,
            by=operator(),
        )
        return text

    print(with_database(make))
    print("Keep it now: it is not shown again.", file=sys.stderr)


def _list_keys(given: argparse.Namespace) -> None:
    async def look() -> tuple[list[ApiKey], dict[int, str]]:
        return await keys.newest(), {each.id: each.name for each in await workspaces.oldest()}

    made, names = with_database(look)
    if not made:
        print("No keys yet. Make one with: signoff keys create --role admin --name you")
    for key in made:
        where = "" if key.workspace_id == DEFAULT_WORKSPACE else f"  in {names[key.workspace_id]}"
        print(f"{key.prefix}…  {key.role:6}  {_state(key):18}  {_used(key)}  {key.name}{where}")


def _state(key: ApiKey) -> str:
    if key.revoked_at:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    if key.expires_at is None:
        return "active"
    ended = key.expires_at <= datetime.now(UTC)
    return f"{'expired' if ended else 'until'} {key.expires_at:%Y-%m-%d}"


def _used(key: ApiKey) -> str:
    return f"used {key.last_used_at:%Y-%m-%d}" if key.last_used_at else f"{'never used':15}"


def _revoke_key(given: argparse.Namespace) -> None:
    revoked = with_database(lambda: keys.revoke(given.prefix, operator()))
    if not revoked:
        raise Refused(f"no active key begins with {given.prefix}; see: signoff keys list")
    print(f"Revoked the key of {revoked[0].name}.")


def _create_workspace(given: argparse.Namespace) -> None:
    made = with_database(lambda: workspaces.create(given.name, operator()))
    print(f"Made the workspace “{made.name}”.")
    hint = f"signoff keys create --workspace '{made.name}' --role admin --name you"
    print(f"Make keys for it with: {hint}", file=sys.stderr)


def _list_workspaces(given: argparse.Namespace) -> None:
    for each in with_database(workspaces.oldest):
        print(f"{each.created_at:%Y-%m-%d}  {each.name}")


def operator() -> Actor:
    """Whoever is at the command line: the system knows them by this name."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container's user needs no name
        name = "somebody"
    return Actor(ActorKind.USER, None, f"{name} at the command line"[:200])


def with_database(do: Callable[[], Awaitable[T]]) -> T:
    """What `do` makes, with the database up to date and open."""

    async def work() -> T:
        url = Settings().database_url
        await database.migrate(url)
        async with database.connected(url):
            return await do()

    return asyncio.run(work())
