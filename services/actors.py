"""Who acts, and what they may see."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from tortoise.expressions import Q

from models import DEFAULT_WORKSPACE, ActorKind, Agent, Job, Role


@dataclass(frozen=True, slots=True)
class Actor:
    kind: ActorKind
    id: str | None
    name: str


class Sight(NamedTuple):
    """Which jobs a caller sees: those of a workspace, of these owners; None for all of them."""

    workspace_id: int
    owners: frozenset[str] | None

    def holds(self, job: Job) -> bool:
        return job.workspace_id == self.workspace_id and (
            self.owners is None or job.created_by_id in self.owners
        )

    def condition(self, prefix: str = "") -> Q:
        """The same for a query of jobs, or of rows that `prefix` leads from to their job."""
        given: dict[str, Any] = {f"{prefix}workspace_id": self.workspace_id}
        if self.owners is not None:
            one = len(self.owners) == 1
            name = f"{prefix}created_by_id" + ("" if one else "__in")
            given[name] = next(iter(self.owners)) if one else sorted(self.owners)
        return Q(**given)


@dataclass(frozen=True, slots=True)
class Viewer:
    """The caller of an operation. `id` is stable over the keys that they use.

    `agents` are those that they may give work to, and `owners` those whose jobs they see and
    act on beside their own: None where their key narrows nothing. `sees_workspace` lets a
    member see everybody's jobs there. `key_id` is the key's that they came with, and
    `expires_at` when that, or their token, ends.
    """

    kind: ActorKind
    id: str
    name: str
    role: Role
    workspace_id: int = DEFAULT_WORKSPACE
    agents: frozenset[UUID] | None = None
    owners: frozenset[str] | None = None
    sees_workspace: bool = False
    key_id: UUID | None = None
    expires_at: datetime | None = None

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN

    @property
    def is_scoped(self) -> bool:
        """Whether their key narrows what its role may do."""
        return self.agents is not None or self.owners is not None

    @property
    def sight(self) -> Sight:
        """The one place where it is decided which jobs a caller sees.

        A member sees own jobs, or the workspace's; viewers and admins see all of these; `owners`
        narrows it for each.
        """
        own_only = self.role is Role.MEMBER and not self.sees_workspace
        everybody = self.owners is None and not own_only
        return Sight(self.workspace_id, None if everybody else self._as_own)

    @property
    def _as_own(self) -> frozenset[str]:
        return (self.owners or frozenset()) | {self.id}

    def sees(self, job: Job) -> bool:
        return self.sight.holds(job)

    def owns(self, job: Job) -> bool:
        """Whether they may act on it as its owner does."""
        mine = job.workspace_id == self.workspace_id and job.created_by_id in self._as_own
        return mine and self.role is not Role.VIEWER

    def sees_agent(self, agent: Agent) -> bool:
        return agent.workspace_id == self.workspace_id

    def may_use(self, agent_id: UUID) -> bool:
        """Whether they may give work to this agent of their workspace."""
        return self.agents is None or agent_id in self.agents

    @property
    def budget(self) -> str:
        """Whose use of the server this counts as: all keys of one name are one user's."""
        return f"{self.workspace_id}:{self.kind}:{self.id}"

    @property
    def scope(self) -> Viewer:
        """A viewer who is shown just the same: what is executed for one holds for the other.

        Who sees all jobs of a workspace is not told apart by id, except a member: what they may
        do with a job depends on whose it is.
        """
        alike = self.sight.owners is None and self.role is not Role.MEMBER
        id = "" if alike else self.id
        return replace(self, id=id, name="", key_id=None, expires_at=None)

    @property
    def actor(self) -> Actor:
        return Actor(self.kind, self.id, self.name)


SYSTEM = Actor(ActorKind.SYSTEM, None, "Signoff")
LOCAL_ADMIN = Viewer(ActorKind.USER, "local", "Local admin", Role.ADMIN)
NOBODY = Viewer(ActorKind.USER, "", "Nobody", Role.MEMBER, workspace_id=0)
"""A caller before they said who they are: owns nothing, so sees nothing."""
RESERVED_NAMES = frozenset({"local", "system", "signoff"})
TOKEN_PREFIX = "oidc:"  # noqa: S105
"""Begins the ids of those who come with a token, so that none of them is a key's user."""
