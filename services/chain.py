"""What a transaction adds to a log, tied to what was there before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models import AuditEntry, Job, JobLog, Workspace, hashes
from models.statements import Statement

Entry = dict[str, Any]
"""The columns of an entry; its `hash` is known after the commit."""


@dataclass(slots=True)
class Chain:
    """What a transaction adds to one log, of a job or of a workspace.

    The owner's row keeps where the log ends, in `log_head`; `head` is that as it was read.
    The statement that writes the new end is the `carrier`: its values have the new end at
    `place` and, if it is guarded, the old one as the last; `seen` is what else it guards.
    `end` is where the log ends with the entries, once they are linked.
    """

    owner: Job | Workspace
    table: type[JobLog | AuditEntry]
    head: str
    entries: list[Entry] = field(default_factory=list[Entry])
    carrier: Statement | None = None
    place: int = 0
    seen: Mapping[str, Any] = field(default_factory=dict[str, Any])
    end: str = ""

    @property
    def is_new(self) -> bool:
        """Whether the log begins in this transaction, so that nobody else can write to it."""
        return self.carrier is not None and not self.carrier.guarded

    def link(self) -> None:
        """Give the entries their hashes, and the carrier both ends."""
        digest = hashes.of_job if self.table is JobLog else hashes.of_workspace
        head = self.head
        for entry in self.entries:
            head = entry["hash"] = digest(head, entry)
        assert self.carrier is not None  # noqa: S101 - the transaction gave it one
        self.carrier.values[self.place] = self.end = head
        if self.carrier.guarded:
            self.carrier.values[-1] = self.head

    def grew(self, now: Job | Workspace | None) -> bool:
        """Whether somebody else's entries are all that has changed; then these come behind."""
        if now is None or any(getattr(now, name) != value for name, value in self.seen.items()):
            return False
        self.head = now.log_head
        return True
