"""Who acts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from models import ActorKind, Job, Role


@dataclass(frozen=True, slots=True)
class Actor:
    kind: ActorKind
    id: str | None
    name: str


@dataclass(frozen=True, slots=True)
class Viewer:
    """The caller of an operation. `id` is stable over the keys that they use."""

    kind: ActorKind
    id: str
    name: str
    role: Role

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN

    def owns(self, job: Job) -> bool:
        return self.role is not Role.VIEWER and job.created_by_id == self.id

    @property
    def sees_all(self) -> bool:
        """A member sees own jobs; viewers and admins see every one."""
        return self.role is not Role.MEMBER

    def sees(self, job: Job) -> bool:
        return self.sees_all or self.owns(job)

    @property
    def scope(self) -> Viewer:
        """A viewer who sees just the same: who sees everything is not told apart by name.

        What is executed for one viewer of a scope holds for all of them.
        """
        return replace(self, id="", name="") if self.sees_all else replace(self, name="")

    @property
    def actor(self) -> Actor:
        return Actor(self.kind, self.id, self.name)


SYSTEM = Actor(ActorKind.SYSTEM, None, "Signoff")
LOCAL_ADMIN = Viewer(ActorKind.USER, "local", "Local admin", Role.ADMIN)
NOBODY = Viewer(ActorKind.USER, "", "Nobody", Role.MEMBER)
"""A caller before they said who they are: owns nothing, so sees nothing."""
RESERVED_NAMES = frozenset({"local", "system", "signoff"})
