"""Answers as JSON."""

from __future__ import annotations

import json

import orjson


def encoded(data: object) -> bytes:
    try:
        return orjson.dumps(data)
    except TypeError:  # an agent's response near orjson's depth, deeper by the answer's levels
        return json.dumps(data, allow_nan=False).encode()
