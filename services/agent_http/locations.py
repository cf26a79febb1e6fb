"""Where an agent says that it will tell how far it is: a path of its own, nobody else's."""

from __future__ import annotations

from yarl import URL

from services.agent_http.addresses import MAX_URL_LENGTH


def path_of(location: str, endpoint_url: str) -> str:
    """The path and query of a `Location`, relative to the endpoint or absolute.

    Raises `ValueError`, which does not quote it, unless it is on the endpoint's own origin: the
    agent's auth header goes there.
    """
    if len(location) > MAX_URL_LENGTH:
        raise ValueError(f"it has more than {MAX_URL_LENGTH} characters")
    if not location.isascii() or not location.isprintable() or " " in location:
        raise ValueError("it is not a URL")
    if "\\" in location:
        raise ValueError("it has a backslash")
    endpoint = URL(endpoint_url)
    found = _joined(endpoint, location)
    if found.user is not None or found.password is not None:
        raise ValueError("it has a user or password")
    if _origin(found) != _origin(endpoint):
        raise ValueError("it is not on the endpoint's own scheme, host and port")
    return found.raw_path_qs


def url_at(path: str, endpoint_url: str) -> URL:
    """The URL of such a path, where the agent is now."""
    return URL(str(URL(endpoint_url).origin()) + path, encoded=True)


def _origin(url: URL) -> URL:
    """In one spelling, without the port where it is the scheme's own."""
    return URL(str(url.origin()))


def _joined(endpoint: URL, location: str) -> URL:
    try:
        found = endpoint.join(URL(location, encoded=True))
        _origin(found)
    except ValueError:
        raise ValueError("it is not a URL") from None
    return found
