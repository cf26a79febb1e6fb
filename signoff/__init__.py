"""Makes `schema`, `resolvers`, `services` and `models` importable before anything asks for them.

In the wheel they live in `signoff/_app`, in a checkout beside `signoff`. Either folder goes first
on the path, so that another package called `schema` in site-packages does not win.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOLDERS = ("schema", "resolvers", "services", "models")


def _home() -> Path:
    package = Path(__file__).resolve().parent
    bundled = package / "_app"
    return bundled if bundled.is_dir() else package.parent


def _put_first(home: Path) -> None:
    sys.path[:] = [str(home), *(entry for entry in sys.path if entry != str(home))]


def _refuse_strangers(home: Path) -> None:
    """Mixing another package's modules with ours would fail later and far from the cause."""
    for name in FOLDERS:
        loaded = sys.modules.get(name)
        origin = getattr(loaded, "__file__", None)
        if origin is not None and not Path(origin).resolve().is_relative_to(home):
            message = f"signoff must be imported before the package {name!r} of {origin}"
            raise ImportError(message)


_put_first(_home())
_refuse_strangers(_home())
