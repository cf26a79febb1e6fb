"""What stands between a request and its execution: documents, limits, failed authentications."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field

from models import Role
from resolvers.context import Context
from schema import Schema, schema
from schema.documents import Documents
from schema.limits import Limits
from services.actors import Viewer
from services.errors import Unauthenticated, UnknownDocument
from services.rates import Rates
from signoff.asked import Asked
from signoff.auth import Gate
from signoff.settings import Settings
from signoff.trusted import Trusted

BYTES_A_UNIT = 100
"""Of a body or frame: what it takes to read it."""
IPV6_NETWORK = 64
"""Bits of an address that its holder does not choose."""


@dataclass
class Attempts:
    """Lets callers in, and slows down addresses from which too many fail.

    Good credentials are let in all the same: others behind the same address do not suffer.
    """

    gate: Gate
    rates: Rates = field(default_factory=Rates)

    async def viewer(
        self, authorization: str | None, headers: Mapping[str, str], address: str | None
    ) -> Viewer:
        """Raises `Unauthenticated`, or `RateLimited` where that was raised too often."""
        try:
            return await self.gate.viewer(authorization, headers)
        except Unauthenticated:
            self.rates.charge(network(address or ""))
            raise


def network(address: str) -> str:
    """Whose failures count together: an IPv4 address, or the network of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_NETWORK), strict=False))


@dataclass(frozen=True)
class Guard:
    """The schema under a server's limits, and the documents that it was given."""

    schema: Schema = schema
    trusted: Trusted | None = None

    @classmethod
    def of(cls, settings: Settings) -> Guard:
        """Raises `BadSettings` with the name of a trusted document that cannot be used."""
        limits = limits_of(settings)
        if settings.trusted_documents is None:
            return cls(schema.limited(limits))
        documents = Documents(schema.documents.schema, limits)
        trusted = Trusted.read(settings.trusted_documents, documents)
        return cls(schema.limited(limits, set(trusted.texts.values())), trusted)

    def admitted(self, asked: Asked, context: Context) -> str:
        """The document of a request, which is charged for its size.

        Raises `RateLimited` or `UnknownDocument`.
        """
        context.rt.rates.charge(context.viewer.budget, asked.size // BYTES_A_UNIT)
        return self.text(asked)

    def text(self, asked: Asked) -> str:
        """The document of a request that was admitted before; raises `UnknownDocument`."""
        if asked.document_id is None:
            return asked.query
        if self.trusted is None:
            raise UnknownDocument("This server was given no documents; send the query itself.")
        text = self.trusted.texts.get(asked.document_id)
        if text is None:
            raise UnknownDocument("This server was given no document of this id.")
        return text


def limits_of(settings: Settings) -> Limits:
    return Limits(
        max_document_chars=settings.max_document_chars,
        max_tokens=settings.max_tokens,
        max_depth=settings.max_depth,
        max_aliases=settings.max_aliases,
        max_root_fields=settings.max_root_fields,
        max_directives=settings.max_directives,
        max_filters=settings.max_filters,
        max_cost=settings.max_cost,
        cache_bytes=settings.document_cache_bytes,
        introspection=None if settings.introspection == "OFF" else Role(settings.introspection),
    )


def failures_of(settings: Settings) -> Rates:
    """A minute's worth may fail at once."""
    most = settings.auth_failures_per_minute
    return Rates(most or None, burst=most or None)
