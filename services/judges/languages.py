"""The languages users write checks in: CEL, JSONPath, regular expressions, JSON Schema.

The sandbox's child imports this module and nothing else of ours, so it stays
light: the languages are loaded when first used. Compiling is bounded and may be
done anywhere; evaluating what somebody wrote on what an agent answered may take
for ever, and is done in the sandbox unless it is known to be small.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import orjson

if TYPE_CHECKING:
    from cel_expr_python import cel
    from jsonpath_rfc9535 import JSONPathQuery
    from jsonschema_rs import Validator

MAX_SOURCE = 2_000
VARIABLES = ("input", "output", "job")
REGEX_MEMORY = 1 << 20
SHOWN = 200

# What an expression says of the output it was given; any other code is a failure to evaluate.
ABOUT_THE_DATA = {"NOT_FOUND", "INVALID_ARGUMENT", "OUT_OF_RANGE", "UNKNOWN"}
CARET_LINE = re.compile(r"\s*\n\s*\|[^\n]*")
CEL_NOISE = re.compile(r"ERROR: <input>:|^INVALID_ARGUMENT: |\s*\[[A-Z_]+\]\s*$")


class Regex(Protocol):
    """`programsize` is the number of states: what a character of text costs at worst."""

    @property
    def programsize(self) -> int: ...

    def search(self, text: str) -> re.Match[str] | None: ...


class BadSource(ValueError):
    """The text does not compile; the message is the language's own reason."""


class NotEvaluated(Exception):
    """The check came to no answer, which says nothing about the output."""


def shown(value: Any) -> str:
    """A value as people read it, cut to a line."""
    return cut(compact(value))


def cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def compact(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError as e:  # nested more deeply than can be written
        raise NotEvaluated(f"the value cannot be read: {e}") from None


def same(a: Any, b: Any) -> bool:
    """JSON equality: 1 is 1.0, true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        left, right = cast("dict[str, Any]", a), cast("dict[str, Any]", b)
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(a, list) and isinstance(b, list):
        some, other = cast("list[Any]", a), cast("list[Any]", b)
        return len(some) == len(other) and all(map(same, some, other))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


@lru_cache(maxsize=512)
def expression(source: str) -> cel.Expression:
    """A CEL expression that can be true or false. Parsing is bounded by cel-cpp (32 levels)."""
    _short(source)
    try:
        compiled = _cel_env().compile(source)
    except RuntimeError as e:
        raise BadSource(_cel_reason(str(e))) from None
    kind = compiled.return_type().name()
    if kind not in {"BOOL", "DYN"}:
        raise BadSource(f"the expression must be true or false, this one is a {kind.lower()}")
    return compiled


def evaluate(source: str, variables: dict[str, Any]) -> tuple[bool, str]:
    """Whether the expression holds, and if not, why."""
    try:
        result = expression(source).eval(data=variables)
    except RuntimeError as e:
        raise NotEvaluated(_cel_reason(str(e))) from None
    kind, value = result.type().name(), result.value()
    if kind == "ERROR":
        code, _, reason = str(value).partition(": ")
        if code not in ABOUT_THE_DATA:
            raise NotEvaluated(cut(str(value)))
        return False, cut(reason)
    if kind != "BOOL":
        raise NotEvaluated(f"the expression gave a {kind.lower()}, not true or false")
    return bool(value), ""


@lru_cache(maxsize=512)
def json_path(source: str) -> JSONPathQuery:
    from jsonpath_rfc9535 import JSONPathError, compile  # noqa: A004, PLC0415 - see the module

    _short(source)
    try:
        return compile(source)
    except JSONPathError as e:
        raise BadSource(cut(str(e))) from None
    except RecursionError:
        raise BadSource("the path is nested too deeply") from None


def find(source: str, value: Any, wanted: list[Any]) -> dict[str, Any]:
    """The first place the path selects; with `wanted`, a list of one, the first that equals it."""
    from jsonpath_rfc9535 import JSONPathError  # noqa: PLC0415 - see the module

    first: dict[str, Any] | None = None
    try:
        for node in json_path(source).finditer(value):
            place = {"location": list(node.location), "shown": shown(node.value)}
            first = first or place
            if not wanted or same(node.value, wanted[0]):
                return {"found": place, "first": first}
    except (JSONPathError, RecursionError) as e:
        raise NotEvaluated(cut(str(e))) from None
    return {"found": None, "first": first}


@lru_cache(maxsize=128)
def regex(pattern: str) -> Regex:
    """Linear in the text, whatever the pattern; the memory one may take is bounded."""
    re2 = cast("Any", import_module("re2"))  # it has no types
    _short(pattern)
    options = re2.Options()
    options.max_mem = REGEX_MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as e:
        reason = e.args[0]
        raise BadSource(cut(reason.decode(errors="replace"))) from None


def search(pattern: str, text: str) -> tuple[int, int] | None:
    match = regex(pattern).search(text)
    return None if match is None else match.span()


@lru_cache(maxsize=256)
def schema(text: str) -> Validator:
    """A JSON Schema; 2020-12 unless `$schema` says otherwise. Nothing is ever fetched."""
    import jsonschema_rs as rs  # noqa: PLC0415 - see the module

    try:
        return rs.validator_for(
            orjson.loads(text),
            retriever=_refuse_remote,
            pattern_options=rs.RegexOptions(size_limit=REGEX_MEMORY),
            mask="the value",
        )
    except rs.ValidationError as e:
        raise BadSource(_schema_reason(e)) from None
    except (rs.ReferencingError, ValueError, TypeError) as e:
        raise BadSource(cut(str(e))) from None


def mismatch(text: str, value: Any) -> dict[str, Any] | None:
    """The first place where a value does not fit a schema."""
    import jsonschema_rs as rs  # noqa: PLC0415 - see the module

    validator = schema(text)
    try:
        validator.validate(value)
    except rs.ValidationError as e:
        return {"message": cut(e.message), "path": list(e.instance_path), "keyword": e.kind.name}
    return None


def _short(source: str) -> None:
    if len(source) > MAX_SOURCE:
        raise BadSource(f"at most {MAX_SOURCE} characters are allowed")


@lru_cache(maxsize=1)
def _cel_env() -> cel.Env:
    from cel_expr_python import cel  # noqa: PLC0415 - see the module

    return cel.NewEnv(variables=dict.fromkeys(VARIABLES, cel.Type.DYN))


def _cel_reason(message: str) -> str:
    """The library's reason in one line: “1:5: undeclared reference to 'x'”."""
    first = CARET_LINE.sub("", message).split("\nERROR:")[0]
    return CEL_NOISE.sub("", CEL_NOISE.sub("", first)).strip()[: 2 * SHOWN]


def _refuse_remote(uri: str) -> Any:
    raise ValueError("only references inside the schema are followed")


def _schema_reason(e: Any) -> str:
    """Where and why; the library's own message may quote the whole schema."""
    where = "/".join(map(str, e.instance_path))
    return f"{f'at {where}: ' if where else ''}{e.message[: 2 * SHOWN]}"
