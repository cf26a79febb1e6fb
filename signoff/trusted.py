"""Trusted documents: those that a server was given, and the names they are asked for by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from graphql import GraphQLError

from schema.documents import Documents
from signoff.wiring import BadSettings

PREFIX = "sha256:"
"""Of a document identifier, by appendix A of the GraphQL over HTTP specification."""


@dataclass(frozen=True, slots=True)
class Found:
    """A document of a folder, where it was, and its key if that was a manifest."""

    text: str
    place: str
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Trusted:
    """Texts by their SHA-256, by `sha256:` and that, and by their key in a manifest."""

    texts: Mapping[str, str]
    count: int

    @classmethod
    def read(cls, folder: Path, documents: Documents) -> Trusted:
        """All `*.graphql` files and JSON manifests in and below `folder`.

        Raises `BadSettings` with the name of what cannot be used.
        """
        if not folder.is_dir():
            raise BadSettings(f"there is no folder {folder} of trusted documents")
        texts: dict[str, str] = {}
        every = list(_found(folder))
        for each in every:
            _check(each, documents)
            for name in _names(each):
                if texts.setdefault(name, each.text) != each.text:
                    raise BadSettings(f"{each.place}: another document has the same key")
        if not every:
            raise BadSettings(f"{folder} has no *.graphql file and no JSON manifest")
        return cls(texts, len({each.text for each in every}))


def _found(folder: Path) -> Iterator[Found]:
    for file in sorted(folder.rglob("*.graphql")):
        yield Found(_text(file), str(file))
    for file in sorted(folder.rglob("*.json")):
        yield from _manifest(file)


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{file} cannot be read: {error}") from None


def _manifest(file: Path) -> Iterator[Found]:
    """`{key: document}` as graphql-codegen and Relay write it, or Apollo's list of operations."""
    try:
        content: Any = json.loads(_text(file))
    except ValueError as error:
        raise BadSettings(f"{file} is not JSON: {error}") from None
    for key, text in _entries(content):
        if not isinstance(key, str) or not isinstance(text, str):
            raise BadSettings(f"{file} is no manifest: it must be {{key: document}}, or Apollo's")
        yield Found(text, f"{file}: {key}", key)


def _entries(content: Any) -> list[tuple[Any, Any]]:
    if not isinstance(content, dict):
        return [(None, None)]
    given = cast("dict[str, Any]", content)
    if not isinstance(given.get("operations"), list):
        return list(given.items())
    listed = cast("list[Any]", given["operations"])
    operations = [cast("dict[str, Any]", e) if isinstance(e, dict) else {} for e in listed]
    return [(each.get("id"), each.get("body")) for each in operations]


def _names(document: Found) -> list[str]:
    digest = hashlib.sha256(document.text.encode()).hexdigest()
    return [digest, PREFIX + digest, *([document.key] if document.key else [])]


def _check(document: Found, documents: Documents) -> None:
    try:
        problems = documents.check(document.text).problems
    except GraphQLError as error:
        problems = [error]
    if problems:
        raise BadSettings(f"{document.place}: {problems[0].message}")
