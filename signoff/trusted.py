"""Trusted documents: those that a server was given, and the names they are asked for by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from graphql import GraphQLError

from schema import Schema, schema
from schema.limits import Limits
from services.errors import UnknownDocument
from signoff.wiring import BadSettings

PREFIX = "sha256:"
"""Of a document identifier, by the GraphQL over HTTP specification's appendix A."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """Texts by their SHA-256, by `sha256:` and that, and by the key of a manifest."""

    texts: Mapping[str, str]

    @classmethod
    def read(cls, folder: Path) -> Trusted:
        """All `*.graphql` and `*.json` files in and below `folder`.

        Raises `BadSettings` with the name of a file that cannot be used.
        """
        if not folder.is_dir():
            raise BadSettings(f"there is no folder {folder} of trusted documents")
        found: dict[str, str] = {}
        for name, text in _documents(folder):
            digest = hashlib.sha256(text.encode()).hexdigest()
            found |= {digest: text, PREFIX + digest: text} | ({name: text} if name else {})
        if not found:
            raise BadSettings(f"the folder {folder} has no *.graphql file and no JSON manifest")
        return cls(found)

    def __len__(self) -> int:
        return len(set(self.texts.values()))


def limited(limits: Limits, folder: Path | None) -> tuple[Schema, Trusted | None]:
    """The schema of a server; raises `BadSettings` with the name of a document that is not valid."""
    if folder is None:
        return schema.limited(limits), None
    trusted = Trusted.read(folder)
    for name, text in _documents(folder):
        ...
    return schema.limited(limits, set(trusted.texts.values())), trusted
