"""What an operation costs, before it runs: one unit is about ten microseconds of a core.

A field is one unit, a page or a list as many times what is in it as it may be long. What
depends on variables is left open in a document's plan, and filled in for each request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.dependencies import MAX_DEPENDENCIES
from services.listening import MAX_SNAPSHOT, REPLAYED
from services.paging import DEFAULT_SIZE, MAX_SIZE

OPERATION = 10
MUTATION = 20
"""A field that changes something: its transaction."""
PAGE = 50
"""A page is a query of its own for each of its parents."""
COUNT = 100
INPUT = 2
"""An input object or a listed value: converted and checked each time it is used."""
LIST = 10
"""Of a list without pages, where nothing else is known."""
LISTS = {
    ("Job", "dependsOn"): MAX_DEPENDENCIES,
    ("DependencyProblem", "jobs"): MAX_DEPENDENCIES,
    ("JobEventBatch", "events"): REPLAYED,
    ("JobEventBatch", "snapshot"): MAX_SNAPSHOT,
}
CEILING = 1_000_000_000
"""Where counting stops."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a request gives: its variables, and how many values are in each."""

    variables: Mapping[str, Any]
    counts: Mapping[str, int]


Times = Callable[[Given], int]


@dataclass(frozen=True, slots=True)
class Term:
    """A number, and what is added to it by the step of this index."""

    fixed: int = 0
    step: int | None = None


NOTHING = Term()
Factor = int | Times
Step = tuple[int, tuple[tuple[Factor, int], ...]]
"""A number, and factors of earlier steps to add."""


@dataclass(slots=True)
class Sums:
    """Sums of products, each written once however often it is used: evaluating is linear."""

    steps: list[Step] = field(default_factory=list[Step])

    def total(self, fixed: int, parts: Iterable[tuple[Factor, Term]]) -> Term:
        open_: list[tuple[Factor, int]] = []
        for times, term in parts:
            if not isinstance(times, int):
                open_.append((times, self._step_of(term)))
                continue
            fixed = min(CEILING, fixed + times * term.fixed)
            if term.step is not None:
                open_.append((times, term.step))
        return Term(fixed, self._added(0, tuple(open_)) if open_ else None)

    def _step_of(self, term: Term) -> int:
        return self._added(term.fixed, () if term.step is None else ((1, term.step),))

    def _added(self, fixed: int, parts: tuple[tuple[Factor, int], ...]) -> int:
        self.steps.append((fixed, parts))
        return len(self.steps) - 1


def evaluate(term: Term, steps: list[Step], given: Given) -> int:
    """The number that a term comes to in a request."""
    if term.step is None:
        return term.fixed
    found: list[int] = []
    for fixed, parts in steps[: term.step + 1]:
        total = fixed
        for times, index in parts:
            total += (times if isinstance(times, int) else times(given)) * found[index]
        found.append(min(total, CEILING))
    return min(term.fixed + found[term.step], CEILING)


@dataclass(frozen=True, slots=True)
class PageSize:
    """How long a page may be: a number, or the variable that says so, or else `default`.

    What is out of range is refused when the page is read.
    """

    first: str | int | None = None
    last: str | int | None = None
    default: int = DEFAULT_SIZE

    def __call__(self, given: Given) -> int:
        for named in (self.last, self.first):
            size = self._value(named, given)
            if size is not None:
                return size
        return self.default

    @property
    def is_fixed(self) -> bool:
        return not isinstance(self.first, str) and not isinstance(self.last, str)

    def _value(self, named: str | int | None, given: Given) -> int | None:
        value: Any = given.variables.get(named) if isinstance(named, str) else named
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return int(min(max(value, 0), MAX_SIZE))


@dataclass(frozen=True, slots=True)
class Counted:
    """How many values are in a variable."""

    variable: str

    def __call__(self, given: Given) -> int:
        return given.counts.get(self.variable, 0)
