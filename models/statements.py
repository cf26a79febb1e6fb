"""SQL whose text is made once a shape, from Tortoise's own description of the tables.

Building a query through Tortoise costs a few hundred microseconds, and each one sent is a trip
to the database or its thread. What an execution reads by key and writes goes by these, the
writes in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar, cast
from uuid import UUID

from tortoise.context import require_context
from tortoise.fields import BigIntField, CharField, FloatField, IntField, TextField, UUIDField
from tortoise.fields.base import Field
from tortoise.models import Model

M = TypeVar("M", bound=Model)


@dataclass(frozen=True, slots=True)
class Statement:
    """`sql` with placeholders `$1`… that writes into `table`.

    A `guarded` one must change exactly one row; a `returning` one tells the first column of
    the first row it wrote, and `appends` says that it makes new rows only.
    """

    sql: str
    values: list[Any]
    table: str
    guarded: bool = False
    returning: bool = False
    appends: bool = False


class GuardMissed(Exception):
    """Statement number `index` changed no row; nothing of its batch was written."""

    def __init__(self, index: int) -> None:
        super().__init__(f"statement {index} changed no row")
        self.index = index


class Unavailable(Exception):
    """The database did not answer, or could not take it; trying again may help.

    What was to be written may have been written: the answer can be what got lost.
    """


Row = Sequence[Any]


class Connection(Protocol):
    """A transaction under way; statements see what those before them wrote."""

    async def fetch(self, sql: str, *values: Any) -> Sequence[Row]: ...


class Database(Protocol):
    """What the two backends have beside Tortoise's own. All of it raises `Unavailable`."""

    async def fetch(self, sql: str, *values: Any) -> Sequence[Row]:
        """Rows found by a key or an index: on SQLite the event loop waits for them."""
        ...

    async def fetch_row(self, sql: str, *values: Any) -> Row | None:
        """What a SELECT with LIMIT 1 finds; on Postgres with others that ask the same.

        Without the limit a row too many would be taken for what another one asked.
        """
        ...

    async def fetch_vital(self, sql: str, *values: Any) -> Sequence[Row]:
        """The same for signs of life: it waits for no other work of this process."""
        ...

    async def execute_batch(self, statements: Sequence[Statement]) -> list[Any]:
        """Run statements in one transaction; what each `returning` one returned, else None.

        Raises `GuardMissed`, or Tortoise's `IntegrityError`.
        """
        ...

    def exclusive(self, key: int) -> AbstractAsyncContextManager[Connection]:
        """A transaction that no other process has at the same time under this key.

        Short, and nothing but the database is awaited in it.
        """
        ...


def database() -> Database:
    return cast("Database", require_context().connections.get("default"))


def is_sqlite() -> bool:
    return require_context().connections.get("default").capabilities.dialect == "sqlite"


Encode = Callable[[Any], Any]
Decode = Callable[[Any], Any]
PLAIN = (CharField, TextField, IntField, BigIntField, FloatField)


@lru_cache(maxsize=1000)
def _columns(model: type[Model], names: tuple[str, ...]) -> tuple[tuple[str, Encode | None], ...]:
    """The column of each attribute, and what makes a driver's value of the attribute's."""
    described = model._meta  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    fields = cast("Any", described.fields_map)
    return tuple((described.fields_db_projection[name], _encoder(fields[name])) for name in names)


def _encoder(field: Field[Any]) -> Encode | None:
    if isinstance(field, UUIDField):
        return _text
    return _value if hasattr(field, "enum_type") else None


@lru_cache(maxsize=10_000)
def _text(value: UUID | None) -> str | None:
    """Remembered, since an execution writes the same few keys some forty times."""
    return None if value is None else str(value)


@lru_cache(maxsize=10_000)
def _uuid(value: str | UUID) -> UUID:
    return value if isinstance(value, UUID) else UUID(value)


def _value(value: Any) -> Any:
    return None if value is None else value._value_


@lru_cache(maxsize=100)
def attributes(model: type[Model]) -> tuple[str, ...]:
    """The attributes of a new row; a key that the database makes is not among them."""
    described = model._meta  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return tuple(
        name for name in described.fields_db_projection if not described.fields_map[name].generated
    )


@lru_cache(maxsize=1000)
def _insert_sql(
    model: type[Model], names: tuple[str, ...], rows: int, returning: str | None
) -> str:
    columns = [column for column, _ in _columns(model, names)]
    named = ", ".join(f'"{column}"' for column in columns)
    width = len(columns)
    marks = ", ".join(
        f"({', '.join(f'${row * width + n}' for n in range(1, width + 1))})" for row in range(rows)
    )
    back = f' RETURNING "{returning}"' if returning else ""
    return f'INSERT INTO "{_table(model)}" ({named}) VALUES {marks}{back}'  # noqa: S608


@lru_cache(maxsize=1000)
def _update_sql(model: type[Model], changed: tuple[str, ...], where: tuple[str, ...]) -> str:
    sets = [f'"{c}" = ${n}' for n, (c, _) in enumerate(_columns(model, changed), 1)]
    return f'UPDATE "{_table(model)}" SET {", ".join(sets)}' + _where(model, where, len(changed))  # noqa: S608


def _where(model: type[Model], where: tuple[str, ...], offset: int) -> str:
    found = [f'"{c}" = ${n}' for n, (c, _) in enumerate(_columns(model, where), offset + 1)]
    return f" WHERE {' AND '.join(found)}" if found else ""


def _table(model: type[Model]) -> str:
    return model._meta.db_table  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


@lru_cache(maxsize=100)
def _select_sql(models: tuple[type[Model], ...], source: str) -> str:
    columns = [
        f't{n}."{column}"'
        for n, model in enumerate(models)
        for column, _ in _columns(model, _everything(model))
    ]
    return f"SELECT {', '.join(columns)} FROM {source}"  # noqa: S608


@lru_cache(maxsize=100)
def _everything(model: type[Model]) -> tuple[str, ...]:
    described = model._meta  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return tuple(described.fields_db_projection)


async def fetch(model: type[M], **where: Any) -> M | None:
    """The row whose columns have these values; the same as Tortoise's `get_or_none`."""
    rows = await fetch_joined((model,), *_sourced(model, where))
    return rows[0] if rows else None


async def fetch_of(sql: str, keys: Sequence[UUID]) -> Sequence[Row]:
    """Rows of SQL with `{ids}` where the keys are to stand, one or more."""
    marks = ", ".join(f"${n}" for n in range(1, len(keys) + 1))
    return await database().fetch(sql.format(ids=marks), *map(str, keys))


async def exists(model: type[Model], where: Mapping[str, Any]) -> bool:
    """Whether there is a row with these values."""
    source, *values = _sourced(model, where)
    return bool(await fetch_all((model,), source + " LIMIT 1", *values))


def _sourced(model: type[Model], where: Mapping[str, Any]) -> tuple[str, *tuple[Any, ...]]:
    source = f'"{_table(model)}" t0' + _where(model, tuple(where), 0)
    return source, *_values(model, where)


async def fetch_joined(models: tuple[type[Model], ...], source: str, *values: Any) -> list[Any]:
    """One row of several tables, as an object of each: None for one that a left join missed.

    `source` is what follows FROM, with the tables as `t0`, `t1`… in the order of `models`.
    Empty where there is no row.
    """
    row = await database().fetch_row(_select_sql(models, source + " LIMIT 1"), *values)
    return _objects(models, row) if row else []


async def fetch_all(models: tuple[type[Model], ...], source: str, *values: Any) -> list[list[Any]]:
    """The same of every row."""
    rows = await database().fetch(_select_sql(models, source), *values)
    return [_objects(models, row) for row in rows]


def _objects(models: tuple[type[Model], ...], row: Row) -> list[Any]:
    found: list[Any] = []
    start = 0
    for model in models:
        names = _everything(model)
        found.append(_object(model, names, row[start : start + len(names)]))
        start += len(names)
    return found


def _object(model: type[Model], names: tuple[str, ...], values: Row) -> Model | None:
    """The same object as Tortoise makes of a row, without a call of `setattr` a column."""
    read, key = _reader(model)
    if values[key] is None:
        return None
    made = model.__new__(model)
    attributes = vars(made)
    attributes |= _state(model)
    for name, decode, value in zip(names, read, values, strict=True):
        attributes[name] = value if decode is None or value is None else decode(value)
    return made


def _state(model: type[Model]) -> dict[str, Any]:
    """What Tortoise notes in each object that it reads."""
    described = model._meta  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    made_here = described.db_pk_column not in described.generated_db_fields
    return {
        "_partial": False,
        "_saved_in_db": True,
        "_custom_generated_pk": made_here,
        "_await_when_save": {},
    }


@lru_cache(maxsize=100)
def _reader(model: type[Model]) -> tuple[tuple[Decode | None, ...], int]:
    """What makes an attribute's value of each column's, and where the key stands."""
    described = model._meta  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    names = _everything(model)
    decoders = tuple(_decoder(described.fields_map[name]) for name in names)
    return decoders, names.index(described.pk_attr)


def _decoder(field: Any) -> Decode | None:
    """Text and whole numbers come from both databases as they are."""
    if type(field) in PLAIN:
        return None
    if isinstance(field, UUIDField):
        return _uuid
    return getattr(field, "enum_type", None) or field.to_python_value


@lru_cache(maxsize=2000)
def numbered(sql: str) -> str:
    """The text for SQLite, whose placeholders are `?1`; nothing else here has a dollar sign."""
    return sql.replace("$", "?")


def _values(model: type[Model], given: Mapping[str, Any]) -> list[Any]:
    values = list(given.values())
    for position, encode in _encoders(model, tuple(given)):
        values[position] = encode(values[position])
    return values


@lru_cache(maxsize=1000)
def _encoders(model: type[Model], names: tuple[str, ...]) -> tuple[tuple[int, Encode], ...]:
    """The places of the attributes that a driver must be given as something else."""
    encoders = [encode for _, encode in _columns(model, names)]
    return tuple((place, encode) for place, encode in enumerate(encoders) if encode)


def insert(model: type[Model], *rows: Mapping[str, Any], returning: str | None = None) -> Statement:
    """New rows, which all give the same attributes."""
    names = tuple(rows[0])
    values = [value for row in rows for value in _values(model, row)]
    sql = _insert_sql(model, names, len(rows), returning)
    return Statement(sql, values, _table(model), returning=returning is not None, appends=True)


def update(
    model: type[Model],
    where: Mapping[str, Any],
    changes: Mapping[str, Any],
    *,
    guarded: bool = False,
) -> Statement:
    """Rows whose columns have the values of `where`; no value of it may be None."""
    sql = _update_sql(model, tuple(changes), tuple(where))
    values = _values(model, changes) + _values(model, where)
    return Statement(sql, values, _table(model), guarded=guarded)


def delete(model: type[Model], where: Mapping[str, Any]) -> Statement:
    """Rows whose columns have the values of `where`."""
    sql = f'DELETE FROM "{_table(model)}"' + _where(model, tuple(where), 0)  # noqa: S608
    return Statement(sql, _values(model, where), _table(model))
