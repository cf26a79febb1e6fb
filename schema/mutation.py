from __future__ import annotations

from typing import Annotated, TypeAlias

import strawberry

from resolvers import agents, jobs, keys, webhooks
from resolvers.context import Info
from schema.enums import AgentAvailability
from schema.errors import (
    AgentUnavailable,
    BudgetExceeded,
    DependencyProblem,
    Forbidden,
    IdempotencyConflict,
    IllegalTransition,
    InvalidInput,
    LimitExceeded,
    NotFound,
    SchemaMismatch,
    VersionConflict,
)
from schema.permissions import ADMINS, MEMBERS
from schema.types.agent import Agent, AgentTest
from schema.types.api_key import ApiKey, NewApiKey
from schema.types.job import Job
from schema.types.job_log import JobLog
from schema.types.webhook import NewWebhook, Webhook, WebhookDelivery
from services.agents import SaveAgent
from services.assignment import AssignJob, ReassignJob
from services.decisions import CancelJob, ForceComplete, ResubmitJob, Review
from services.execution import ExecuteJob
from services.jobs import CreateJob, UpdateJob
from services.keys import CreateApiKey
from services.values import Json
from services.webhooks.hooks import OVERLAP_SECONDS, SaveWebhook

Change: TypeAlias = Job | InvalidInput | NotFound | Forbidden | IllegalTransition | VersionConflict
"""What every change of a job can end in."""

CreateJobResult: TypeAlias = Annotated[
    Job
    | InvalidInput
    | Forbidden
    | NotFound
    | SchemaMismatch
    | AgentUnavailable
    | LimitExceeded
    | IdempotencyConflict,
    strawberry.union("CreateJobResult"),
]
UpdateJobResult: TypeAlias = Annotated[
    Change | LimitExceeded | SchemaMismatch | DependencyProblem,
    strawberry.union("UpdateJobResult"),
]
AssignJobResult: TypeAlias = Annotated[
    Change | LimitExceeded | SchemaMismatch | AgentUnavailable,
    strawberry.union("AssignJobResult"),
]
UnassignJobResult: TypeAlias = Annotated[Change, strawberry.union("UnassignJobResult")]
ReassignJobResult: TypeAlias = Annotated[
    Change | LimitExceeded | SchemaMismatch | AgentUnavailable | IdempotencyConflict,
    strawberry.union("ReassignJobResult"),
]
Start: TypeAlias = (
    Change | AgentUnavailable | BudgetExceeded | LimitExceeded | DependencyProblem | SchemaMismatch
)
"""What a change can end in that starts an execution."""

ExecuteJobResult: TypeAlias = Annotated[
    Start | IdempotencyConflict, strawberry.union("ExecuteJobResult")
]
ResubmitJobResult: TypeAlias = Annotated[Start, strawberry.union("ResubmitJobResult")]
ForceCompleteResult: TypeAlias = Annotated[
    Change | IdempotencyConflict, strawberry.union("ForceCompleteResult")
]
CancelJobResult: TypeAlias = Annotated[Change, strawberry.union("CancelJobResult")]
ReopenJobResult: TypeAlias = Annotated[Change | LimitExceeded, strawberry.union("ReopenJobResult")]
ReviewAttemptResult: TypeAlias = Annotated[Change, strawberry.union("ReviewAttemptResult")]
ArchiveJobResult: TypeAlias = Annotated[Change, strawberry.union("ArchiveJobResult")]
UnarchiveJobResult: TypeAlias = Annotated[Change, strawberry.union("UnarchiveJobResult")]
AddJobNoteResult: TypeAlias = Annotated[
    JobLog | InvalidInput | NotFound | Forbidden, strawberry.union("AddJobNoteResult")
]
SaveAgentResult: TypeAlias = Annotated[
    Agent | InvalidInput | NotFound | Forbidden, strawberry.union("SaveAgentResult")
]
SetAgentAvailabilityResult: TypeAlias = Annotated[
    Agent | InvalidInput | NotFound | Forbidden, strawberry.union("SetAgentAvailabilityResult")
]
ResetAgentCircuitResult: TypeAlias = Annotated[
    Agent | NotFound | Forbidden, strawberry.union("ResetAgentCircuitResult")
]
TestAgentResult: TypeAlias = Annotated[
    AgentTest | InvalidInput | NotFound | Forbidden | SchemaMismatch,
    strawberry.union("TestAgentResult"),
]
SaveWebhookResult: TypeAlias = Annotated[
    NewWebhook | InvalidInput | NotFound | Forbidden | LimitExceeded,
    strawberry.union("SaveWebhookResult"),
]
RotateWebhookSecretResult: TypeAlias = Annotated[
    NewWebhook | InvalidInput | NotFound | Forbidden,
    strawberry.union("RotateWebhookSecretResult"),
]
DeleteWebhookResult: TypeAlias = Annotated[
    Webhook | NotFound | Forbidden, strawberry.union("DeleteWebhookResult")
]
TestWebhookResult: TypeAlias = Annotated[
    WebhookDelivery | InvalidInput | NotFound | Forbidden, strawberry.union("TestWebhookResult")
]
RedeliverWebhookResult: TypeAlias = Annotated[
    WebhookDelivery | InvalidInput | NotFound | Forbidden,
    strawberry.union("RedeliverWebhookResult"),
]
CreateApiKeyResult: TypeAlias = Annotated[
    NewApiKey | InvalidInput | Forbidden, strawberry.union("CreateApiKeyResult")
]
RevokeApiKeyResult: TypeAlias = Annotated[
    ApiKey | NotFound | Forbidden, strawberry.union("RevokeApiKeyResult")
]


@strawberry.type
class Mutation:
    @strawberry.mutation(extensions=[MEMBERS], description="Write down work to be done.")
    async def create_job(self, info: Info, input: CreateJob) -> CreateJobResult:
        return Job.of(await jobs.create(info, input))

    @strawberry.mutation(extensions=[MEMBERS], description="Change a job that is not running.")
    async def update_job(self, info: Info, input: UpdateJob) -> UpdateJobResult:
        return Job.of(await jobs.update(info, input))

    @strawberry.mutation(extensions=[MEMBERS], description="Give a pending job to an agent.")
    async def assign_job(self, info: Info, input: AssignJob) -> AssignJobResult:
        return Job.of(await jobs.assign(info, input))

    @strawberry.mutation(extensions=[MEMBERS], description="Take a job from its agent.")
    async def unassign_job(
        self,
        info: Info,
        id: strawberry.ID,
        reason: str | None = None,
        expected_version: int | None = None,
    ) -> UnassignJobResult:
        return Job.of(await jobs.unassign(info, id, reason, expected_version))

    @strawberry.mutation(extensions=[MEMBERS], description="Give a job to another agent.")
    async def reassign_job(self, info: Info, input: ReassignJob) -> ReassignJobResult:
        return Job.of(await jobs.reassign(info, input))

    @strawberry.mutation(
        extensions=[MEMBERS],
        description="Ask the agent to do the job; the judge then completes it or sends it back.",
    )
    async def execute_job(self, info: Info, input: ExecuteJob) -> ExecuteJobResult:
        return Job.of(await jobs.execute(info, input))

    @strawberry.mutation(extensions=[ADMINS], description="Send a completed or running job back.")
    async def resubmit_job(self, info: Info, input: ResubmitJob) -> ResubmitJobResult:
        return Job.of(await jobs.resubmit(info, input))

    @strawberry.mutation(
        extensions=[ADMINS], description="Sign a job off by hand, whatever its judge said."
    )
    async def force_complete(self, info: Info, input: ForceComplete) -> ForceCompleteResult:
        return Job.of(await jobs.force_complete(info, input))

    @strawberry.mutation(extensions=[MEMBERS], description="Give a job up; it can be reopened.")
    async def cancel_job(self, info: Info, input: CancelJob) -> CancelJobResult:
        return Job.of(await jobs.cancel(info, input))

    @strawberry.mutation(extensions=[MEMBERS], description="Take a cancelled job up again.")
    async def reopen_job(
        self,
        info: Info,
        id: strawberry.ID,
        reason: str,
        expected_version: int | None = None,
    ) -> ReopenJobResult:
        return Job.of(await jobs.reopen(info, id, reason, expected_version))

    @strawberry.mutation(
        extensions=[ADMINS], description="Settle an attempt that waits for a person's verdict."
    )
    async def review_attempt(self, info: Info, input: Review) -> ReviewAttemptResult:
        return Job.of(await jobs.review(info, input))

    @strawberry.mutation(extensions=[MEMBERS], description="Write a remark into a job's log.")
    async def add_job_note(self, info: Info, id: strawberry.ID, message: str) -> AddJobNoteResult:
        return JobLog.of(await jobs.add_note(info, id, message))

    @strawberry.mutation(extensions=[MEMBERS], description="Keep a finished job out of lists.")
    async def archive_job(self, info: Info, id: strawberry.ID) -> ArchiveJobResult:
        return Job.of(await jobs.archive(info, id))

    @strawberry.mutation(extensions=[MEMBERS], description="Show an archived job in lists again.")
    async def unarchive_job(self, info: Info, id: strawberry.ID) -> UnarchiveJobResult:
        return Job.of(await jobs.unarchive(info, id))

    @strawberry.mutation(extensions=[ADMINS], description="Make or change an agent.")
    async def save_agent(self, info: Info, input: SaveAgent) -> SaveAgentResult:
        saved = await agents.save(info, input)
        return Agent.of(saved.agent, secret=saved.new_secret)

    @strawberry.mutation(extensions=[ADMINS], description="Pause, disable or activate an agent.")
    async def set_agent_availability(
        self, info: Info, id: strawberry.ID, availability: AgentAvailability
    ) -> SetAgentAvailabilityResult:
        return Agent.of(await agents.set_availability(info, id, availability))

    @strawberry.mutation(
        extensions=[ADMINS], description="Let work through again to an agent that kept failing."
    )
    async def reset_agent_circuit(self, info: Info, id: strawberry.ID) -> ResetAgentCircuitResult:
        return Agent.of(await agents.reset_circuit(info, id))

    @strawberry.mutation(
        extensions=[ADMINS], description="Call an agent outside of any job, to see what it says."
    )
    async def test_agent(self, info: Info, id: strawberry.ID, input: Json) -> TestAgentResult:
        return AgentTest.of(await agents.test(info, id, input))

    @strawberry.mutation(
        extensions=[MEMBERS],
        description="Make or change a webhook. A new one comes with its secret, told only here.",
    )
    async def save_webhook(self, info: Info, input: SaveWebhook) -> SaveWebhookResult:
        return NewWebhook.of(await webhooks.save(info, input))

    @strawberry.mutation(
        extensions=[MEMBERS],
        description="Give a webhook a new secret; the one before it signs too for the overlap.",
    )
    async def rotate_webhook_secret(
        self, info: Info, id: strawberry.ID, overlap_seconds: int = OVERLAP_SECONDS
    ) -> RotateWebhookSecretResult:
        return NewWebhook.of(await webhooks.rotate_secret(info, id, overlap_seconds))

    @strawberry.mutation(
        extensions=[MEMBERS], description="Remove a webhook and its deliveries; shows it as it was."
    )
    async def delete_webhook(self, info: Info, id: strawberry.ID) -> DeleteWebhookResult:
        return Webhook.of(await webhooks.delete(info, id))

    @strawberry.mutation(
        extensions=[MEMBERS], description="Send a webhook an event that tells of nothing."
    )
    async def test_webhook(self, info: Info, id: strawberry.ID) -> TestWebhookResult:
        return WebhookDelivery.of(await webhooks.test(info, id))

    @strawberry.mutation(
        extensions=[MEMBERS],
        description="Deliver an event again, at once; the receiver knows it by the same id.",
    )
    async def redeliver_webhook(
        self, info: Info, delivery_id: strawberry.ID
    ) -> RedeliverWebhookResult:
        return WebhookDelivery.of(await webhooks.redeliver(info, delivery_id))

    @strawberry.mutation(
        extensions=[ADMINS], description="Make an API key of the caller's workspace; told once."
    )
    async def create_api_key(self, info: Info, input: CreateApiKey) -> CreateApiKeyResult:
        made = await keys.create(info, input)
        return NewApiKey(api_key=ApiKey.of(made.key), key=made.text)

    @strawberry.mutation(
        extensions=[ADMINS],
        description="Take an API key back: it opens nothing any more, from this moment on.",
    )
    async def revoke_api_key(self, info: Info, id: strawberry.ID) -> RevokeApiKeyResult:
        return ApiKey.of(await keys.revoke(info, id))
