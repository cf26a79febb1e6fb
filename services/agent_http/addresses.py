"""Which addresses a request may go to.

What decides is the address really dialled, when its socket is made: a name, a literal in an odd
spelling and a second DNS answer all end there.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TypeAlias

from yarl import URL

MAX_URL_LENGTH = 2000
MAX_LABEL_LENGTH = 63
# As `getaddrinfo` gives them: family, kind, protocol, canonical name, address.
AddrInfo: TypeAlias = tuple[
    int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]
]


@dataclass(frozen=True, slots=True)
class Peer:
    """What kind of server is called, in words, and what lets it be in one's own network."""

    kind: str
    setting: str
    instead_of_password: str

    @property
    def not_public(self) -> str:
        return (
            f"The {self.kind}'s address is not on the public internet, so nothing was sent. "
            f"Set {self.setting}=true to allow {self.kind}s in your own network."
        )

    @property
    def never(self) -> str:
        return (
            f"The {self.kind}'s address is a group's or a cloud's metadata service, never "
            f"{self.a_kind}'s, so nothing was sent."
        )

    @property
    def a_kind(self) -> str:
        return f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"


AGENT = Peer("agent", "SIGNOFF_ALLOW_PRIVATE_AGENTS", "use the agent's auth header")
WEBHOOK = Peer("webhook", "SIGNOFF_ALLOW_PRIVATE_WEBHOOKS", "let it verify the signature")


def _v4(*texts: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(text) for text in texts)


def _v6(*texts: str) -> tuple[IPv6Network, ...]:
    return tuple(IPv6Network(text) for text in texts)


# IANA's registries of special-purpose addresses. `is_global` of `ipaddress` differs between the
# patch releases of Python 3.11, so they are written down here.
SPECIAL_V4 = _v4(
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
GLOBAL_V6 = IPv6Network("2000::/3")
# Teredo and 6to4 carry an IPv4 address to somewhere else; no agent lives behind them.
SPECIAL_V6 = _v6("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
NAT64 = IPv6Network("64:ff9b::/96")

# Not somebody's server, whatever the settings say: groups, and the addresses at which clouds hand
# out the credentials of the machine we run on.
NEVER_V4 = _v4(
    "224.0.0.0/4",
    "255.255.255.255/32",
    "169.254.169.0/24",  # most clouds
    "169.254.170.0/24",  # tasks and pods at AWS
    "169.254.0.23/32",  # Tencent
    "169.254.10.10/32",
    "169.254.42.42/32",  # Scaleway
    "100.100.100.200/32",  # Alibaba
    "168.63.129.16/32",  # Azure
    "192.0.0.192/32",  # Oracle
)
NEVER_V6 = _v6(
    "ff00::/8",
    "fd00:ec2::/32",  # AWS
    "fd20:ce::254/128",  # Google
    "fd00:c1::a9fe:a9fe/128",  # Oracle
    "fd00:42::42/128",  # Scaleway
    "fd00:100::100:200/128",  # Alibaba
    "fd00:a9fe:a9fe::1/128",  # Akamai
    "fe80::a9fe:a9fe/128",  # Akamai, OpenStack
)
# Networks whose addresses carry one of IPv4, and by how many bits it is moved in them: compatible,
# mapped and translated ones, 6to4, and translators (RFC 6052), whose local network may be divided.
# Teredo is read by `ipaddress`.
CARRIERS = (
    (IPv6Network("::/96"), 0),
    (IPv6Network("::ffff:0:0/96"), 0),
    (IPv6Network("::ffff:0:0:0/96"), 0),
    (IPv6Network("2002::/16"), 80),
    (NAT64, 0),
)
LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")


class AddressBlocked(OSError):
    """An `OSError`, because only those pass through aiohttp's connector unharmed."""


def allowed(address: str, *, allow_private: bool) -> bool:
    """Whether a numeric address, as a socket takes it, may be dialled."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return _may_be_dialled_v4(ip, allow_private=allow_private)
    if _within(ip, NEVER_V6) or any(_within(each, NEVER_V4) for each in _carried(ip)):
        return False
    wrapped = ip.ipv4_mapped or (_v4_at(ip, 0) if ip in NAT64 else None)
    if wrapped is not None:
        return _may_be_dialled_v4(wrapped, allow_private=allow_private)
    return allow_private or (ip in GLOBAL_V6 and not _within(ip, SPECIAL_V6))


def _may_be_dialled_v4(ip: IPv4Address, *, allow_private: bool) -> bool:
    return not _within(ip, NEVER_V4) and (allow_private or not _within(ip, SPECIAL_V4))


def guarded_sockets(
    *, allow_private: bool, peer: Peer = AGENT
) -> Callable[[AddrInfo], socket.socket]:
    """A `socket_factory` that raises `AddressBlocked` for what may not be dialled."""

    def make(info: AddrInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        if not allowed(str(address[0]), allow_private=allow_private):
            raise AddressBlocked(peer.never if allow_private else peer.not_public)
        return socket.socket(family, kind, protocol)

    return make


def check_endpoint_url(text: str, allow_private: bool, peer: Peer = AGENT) -> None:  # noqa: FBT001
    """Raise `ValueError` for a URL that can never work, or plainly points into a network of ours.

    It helps who registers a server; what protects is `guarded_sockets`.
    """
    if len(text) > MAX_URL_LENGTH:
        raise ValueError(f"An endpoint URL has at most {MAX_URL_LENGTH} characters.")
    if not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("An endpoint URL has no spaces, backslashes or control characters.")
    if "#" in text:
        raise ValueError("An endpoint URL has no fragment (#…): it would never be sent.")
    url = _parse(text)
    authority = text.partition("://")[2].partition("/")[0].partition("?")[0]
    if "@" in authority:
        raise ValueError(f"An endpoint URL has no user or password: {peer.instead_of_password}.")
    _check_host(url.host or "", allow_private=allow_private, peer=peer)


def _parse(text: str) -> URL:
    try:
        url = URL(text)
    except ValueError as error:
        raise ValueError(f"The endpoint URL cannot be read: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError("An endpoint URL is complete, such as https://agent.example.com/run.")
    if url.port == 0:
        raise ValueError("The port of an endpoint URL is between 1 and 65535.")
    return url


def _check_host(host: str, *, allow_private: bool, peer: Peer) -> None:
    labels = host.removesuffix(".").split(".")
    if "%" in host or any(not 0 < len(label) <= MAX_LABEL_LENGTH for label in labels):
        raise ValueError("The host of the endpoint URL is not a valid name.")
    if _is_legacy_ipv4(host):
        raise ValueError("Write the IP address of the endpoint URL as four numbers: 192.0.2.1.")
    local = not allow_private and labels[-1] == "localhost"
    if local or (_is_ip(host) and not allowed(host, allow_private=allow_private)):
        raise ValueError(
            "This is the address of a group or of a cloud's metadata service, never of "
            f"{peer.a_kind}."
            if allow_private
            else "This address is not on the public internet. "
            f"Set {peer.setting}=true to allow {peer.kind}s in your own network."
        )


def _carried(ip: IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses at which packets to `ip` may arrive, if it wraps one."""
    found = [_v4_at(ip, bits) for network, bits in CARRIERS if ip in network]
    if ip in LOCAL_NAT64:
        found += [_v4_at(ip, 0), *_v4_in_the_midst(ip)]
    return [*found, *(ip.teredo or ())]


def _v4_at(ip: IPv6Address, bits: int) -> IPv4Address:
    return IPv4Address(int(ip) >> bits & 0xFFFFFFFF)


def _v4_in_the_midst(ip: IPv6Address) -> list[IPv4Address]:
    """For networks of 48, 56 and 64 bits; the ninth byte is none of its own."""
    packed = ip.packed[:8] + ip.packed[9:]
    return [IPv4Address(packed[start : start + 4]) for start in (6, 7, 8)]


def _within(
    ip: IPv4Address | IPv6Address, networks: Iterable[IPv4Network] | Iterable[IPv6Network]
) -> bool:
    return any(ip in network for network in networks)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_legacy_ipv4(host: str) -> bool:
    """`127.1`, `0x7f000001` and `2130706433` are 127.0.0.1 to the C library."""
    try:
        socket.inet_aton(host.rstrip("."))
    except OSError:
        return False
    return not _is_ip(host)
