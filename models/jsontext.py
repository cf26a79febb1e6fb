"""JSON as the text it is stored as.

Columns named `…_json` hold JSON text on every database: Postgres's JSONB
reorders keys, rewrites numbers and refuses U+0000, and an audit log must give
back what was received. SQL NULL is "nothing there"; the text `null` is a JSON null.
"""

from __future__ import annotations

from typing import Any

import orjson


def dumps(value: Any) -> str:
    """Compact JSON. Raises `TypeError` for what JSON cannot say, an integer over 64 bits too."""
    return orjson.dumps(value).decode()


def loads(text: str | bytes) -> Any:
    """Strict JSON: `ValueError` for NaN, for trailing text, for anything that is not JSON."""
    return orjson.loads(text)


def loads_or_none(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)
