"""Documents are parsed, measured and validated once, however often they are sent."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    TokenKind,
    parse,
)

from schema.limits import MAX_DIGITS, Limits, exceeded, too_much
from schema.plans import Operation, Reader
from schema.sharing import shared_variables
from schema.validation import validated
from services.errors import ErrorCode, SignoffError

BYTES_A_CHARACTER = 300
"""What a parsed document takes for each character of its text, about."""
MAX_COMMENTS = 1000
NUMBERS = frozenset({TokenKind.INT, TokenKind.FLOAT})
BEYOND = "Document contains more than"
"""How the parser begins to tell of a limit."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A document, what is wrong with it, its operations by name, and what it cost to check.

    `shared` are the variables of each subscription that make a difference to what it tells.
    """

    document: DocumentNode
    problems: list[GraphQLError]
    operations: Mapping[str | None, Operation]
    work: int
    shared: Mapping[str | None, frozenset[str]]


@dataclass
class Documents:
    """Those of one server: what they may be, and the valid ones that were sent lately.

    Where some are `trusted`, no other is taken.
    """

    schema: GraphQLSchema
    limits: Limits = field(default_factory=Limits)
    trusted: Mapping[str, Checked] | None = None
    bytes_kept: int = field(default=0, init=False)
    _kept: OrderedDict[str, Checked] = field(
        default_factory=OrderedDict[str, Checked], init=False, repr=False
    )

    def __post_init__(self) -> None:
        self._reader = Reader(self.schema, self.limits)

    def trusting(self, texts: Iterable[str]) -> Documents:
        """One that takes only these; raises `GraphQLError` for the first that is not valid."""
        return replace(self, trusted={text: self._valid(text) for text in texts})

    def known(self, text: str) -> Checked | None:
        """What need not be checked again. Raises `GraphQLError` for what is never taken."""
        if self.trusted is not None:
            return self._trusted(self.trusted, text)
        self._hold(text)
        if text in self._kept:
            self._kept.move_to_end(text)
            return self._kept[text]
        return None

    def check(self, text: str) -> Checked:
        """Keeps what is valid. Raises `GraphQLError` for what is beyond a limit, or no GraphQL."""
        checked = self._checked(text)
        if not checked.problems:
            self._keep(text, checked)
        return checked

    def again(self, text: str) -> Checked:
        """What was taken before, and may have been forgotten since."""
        return self.known(text) or self.check(text)

    def __len__(self) -> int:
        return len(self._kept)

    def _trusted(self, trusted: Mapping[str, Checked], text: str) -> Checked:
        if text in trusted:
            return trusted[text]
        raise GraphQLError(
            "This server runs only the documents that it was given, and this is none of them.",
            extensions={"code": ErrorCode.UNTRUSTED_DOCUMENT},
        )

    def _valid(self, text: str) -> Checked:
        checked = self._checked(text)
        for problem in checked.problems:
            raise problem
        return checked

    def _hold(self, text: str) -> None:
        if len(text) > self.limits.max_document_chars:
            raise exceeded("characters", len(text), self.limits.max_document_chars)

    def _checked(self, text: str) -> Checked:
        self._hold(text)
        document = self._parsed(text)
        try:
            operations = self._reader.read(document)
        except SignoffError as error:
            raise GraphQLError(str(error), original_error=error) from None
        problems, work = validated(self.schema, document, len(text))
        return Checked(document, problems, operations, work, shared_variables(document))

    def _parsed(self, text: str) -> DocumentNode:
        most = self.limits.max_tokens
        try:
            document = parse(text, max_lexical_tokens=most, max_comments=MAX_COMMENTS)
        except GraphQLSyntaxError as error:
            if BEYOND not in error.message:
                raise
            raise too_much(error) from None
        _hold_numbers(document)
        return document

    def _keep(self, text: str, checked: Checked) -> None:
        self._kept[text] = checked
        self.bytes_kept += _bytes(text)
        while self.bytes_kept > self.limits.cache_bytes:
            old, _ = self._kept.popitem(last=False)
            self.bytes_kept -= _bytes(old)


def _hold_numbers(document: DocumentNode) -> None:
    token = document.loc.start_token if document.loc else None
    while token is not None:
        if token.kind in NUMBERS and len(token.value or "") > MAX_DIGITS:
            raise exceeded("digits in a number", len(token.value or ""), MAX_DIGITS)
        token = token.next


def _bytes(text: str) -> int:
    return len(text) * BYTES_A_CHARACTER
