"""Settings: read once, from the environment, and passed on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self, cast

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from yarl import URL

from signoff.auth import is_safe

ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")
DEFAULT_DATABASE = "sqlite://signoff.db"
ALGORITHM = "(RS|PS|ES)(256|384|512)"
MEANING = "[^=,]+=(VIEWER|MEMBER|ADMIN)"


def _base_url(text: str) -> str:
    """Without a slash at its end."""
    url = URL(text)
    complete = url.scheme in {"http", "https"} and url.host
    if not complete or url.user or url.password or url.query_string or url.fragment:
        raise ValueError("must be http:// or https://, a host, and perhaps a path")
    return str(url).rstrip("/")


class Settings(BaseSettings):
    """Environment variables `SIGNOFF_…`; the README's table is made of these descriptions."""

    model_config = SettingsConfigDict(
        env_prefix="SIGNOFF_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    database_url: str = Field(
        default=DEFAULT_DATABASE,
        description="`sqlite://FILE` (relative to the current folder; `sqlite:////…` is absolute) "
        "or `postgres://USER:PASSWORD@HOST:PORT/NAME`.",
    )
    nats_url: SecretStr | None = Field(
        default=None,
        description="`nats://HOST:4222`: processes on Postgres wake each other by NATS instead of "
        "Postgres' NOTIFY. Needs the extra `nats`.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8080, ge=0, le=65_535, description="Port to listen on.")
    worker_port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="Port of `signoff worker` for `/healthz`, `/readyz` and `/metrics`; without "
        "it, it has none.",
    )
    metrics_open: bool = Field(
        default=False, description="Show `/metrics` to everybody who can reach the port."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins of other sites whose pages may use `/graphql`, such as "
        "`https://app.example`; several with commas between.",
    )
    max_address_connections: int = Field(
        default=1000,
        ge=0,
        le=1_000_000,
        description="Connections of any kind from one address (IPv6: one /64) that one server "
        "keeps open; 0 for any number, as behind a proxy, whose address all of them have.",
    )
    max_client_connections: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="WebSockets and event streams of one user, or of one address without a key, "
        "that one server keeps open.",
    )
    max_client_operations: int = Field(
        default=1000,
        ge=1,
        le=1_000_000,
        description="Operations under way on them.",
    )
    members_see: Literal["own", "workspace"] = Field(
        default="own",
        description="`own` or `workspace`: whose jobs a MEMBER sees; they change own ones only.",
    )
    oidc_issuer: str | None = Field(
        default=None,
        description="Takes bearer tokens of this OpenID Connect issuer (`iss`, exactly as it stands"
        " there), with the extra `oidc`.",
    )
    oidc_audience: str | None = Field(
        default=None, description="What tokens must name in `aud`; needed with an issuer."
    )
    oidc_jwks_url: str | None = Field(
        default=None,
        description="Where the issuer's keys are. Default: as its "
        "`/.well-known/openid-configuration` says.",
    )
    oidc_algorithms: str = Field(
        default="RS256",
        pattern=f"^{ALGORITHM}(,{ALGORITHM})*$",
        description="Algorithms of signatures, with commas: RS, PS and ES with 256, 384 or 512.",
    )
    oidc_role_claim: str = Field(
        default="signoff_role",
        min_length=1,
        description="The claim that gives the role: a text or a list of them, by name or by a path "
        "such as `realm_access.roles`.",
    )
    oidc_roles: str = Field(
        default="VIEWER=VIEWER,MEMBER=MEMBER,ADMIN=ADMIN",
        pattern=f"^{MEANING}(,{MEANING})*$",
        description="What its values mean; of several the highest counts, without any the token is "
        "refused.",
    )
    oidc_workspace_claim: str | None = Field(
        default=None,
        description="The claim that names the workspace; then tokens without it, or of a workspace "
        "that does not exist, are refused. Unset: all are of the default one.",
    )
    oidc_leeway_seconds: int = Field(
        default=30, ge=0, le=300, description="How far the issuer's clock may be from ours."
    )
    secret_key: SecretStr | None = Field(
        default=None,
        description="Fernet key (32 bytes, URL-safe base64) that seals agents' secrets. Without "
        "it, a file with mode 0600 is made at the first start.",
    )
    key_file: Path = Field(
        default=Path("signoff.key"), description="That file, where no secret key is set."
    )
    allow_private_agents: bool | None = Field(
        default=None,
        description="Call agents on private and loopback addresses. Default: on for `serve` with "
        "SQLite on a loopback address, else off.",
    )
    public_url: Annotated[str, AfterValidator(_base_url)] | None = Field(
        default=None,
        description="Where agents reach this server, such as `https://signoff.example.com`. With "
        "it each request to an agent carries a one-time URL for its answer.",
    )
    allow_private_webhooks: bool | None = Field(
        default=None,
        description="The same for webhooks, which every member can make, not only admins.",
    )
    webhook_timeout_seconds: float = Field(
        default=15, ge=0.1, le=300, description="For one request to a webhook."
    )
    webhook_keep_days: int = Field(
        default=30,
        ge=2,
        le=3650,
        description="How long deliveries to webhooks are kept, and events for those disabled.",
    )
    agent_tries: int = Field(
        default=4, ge=1, le=20, description="Requests to an agent within one attempt, at most."
    )
    retry_initial_seconds: float = Field(
        default=0.5, gt=0, le=60, description="Pause before the second try; doubles, with jitter."
    )
    retry_max_seconds: float = Field(
        default=30, gt=0, le=600, description="Longest pause between two tries."
    )
    agent_max_response_bytes: int = Field(
        default=1_048_576, ge=1024, le=104_857_600, description="Largest response that is read."
    )
    max_executions: int = Field(
        default=200, ge=1, le=10_000, description="Executions under way in one process."
    )
    lease_seconds: float = Field(
        default=30,
        ge=1,
        le=3600,
        description="After how long without a sign of life a worker's executions are taken over.",
    )
    heartbeat_seconds: float = Field(
        default=5,
        gt=0,
        le=600,
        description="How often a worker gives a sign of life; at most a third of the lease.",
    )
    max_losses: int = Field(
        default=5,
        ge=0,
        le=100,
        description="How many workers may end with one attempt before it is stopped.",
    )
    max_queued: int = Field(
        default=100_000,
        ge=1,
        le=100_000_000,
        description="Executions that may wait, over all agents; who asks for more is refused.",
    )
    circuit_failures: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="After how many failed calls in a row an agent or a webhook is left alone for "
        "a while; 0 turns that off.",
    )
    circuit_seconds: float = Field(
        default=30,
        ge=0.1,
        le=600,
        description="For how long; doubles each time in a row, up to 10 minutes.",
    )
    max_document_chars: int = Field(
        default=65_536,
        ge=1000,
        le=2_097_152,
        description="Longest GraphQL document.",
    )
    max_tokens: int = Field(
        default=2_000, ge=200, le=20_000, description="Words and signs of a document, at most."
    )
    max_depth: int = Field(
        default=15, ge=15, le=100, description="Fields within fields; GraphiQL needs 15."
    )
    max_aliases: int = Field(default=50, ge=0, le=10_000, description="Aliases of an operation.")
    max_root_fields: int = Field(
        default=50, ge=1, le=1_000, description="Root fields of an operation."
    )
    max_directives: int = Field(
        default=50, ge=0, le=10_000, description="Directives of an operation."
    )
    max_filters: int = Field(
        default=200, ge=1, le=2_000, description="Filters in the variables of a request."
    )
    max_cost: int = Field(
        default=30_000,
        ge=10_000,
        le=100_000_000,
        description="Cost of an operation: a unit is about ten microseconds of a core.",
    )
    rate_per_minute: int = Field(
        default=3_600_000,
        ge=0,
        le=1_000_000_000,
        description="Cost that a caller may ask of one process in a minute, a sixth of it at once; "
        "0 is no limit.",
    )
    auth_failures_per_minute: int = Field(
        default=60,
        ge=0,
        le=1_000_000,
        description="Failed authentications of one address; 0 is no limit.",
    )
    document_cache_bytes: int = Field(
        default=33_554_432,
        ge=0,
        le=4_294_967_296,
        description="Memory for documents that were sent lately, parsed.",
    )
    introspection: Literal["VIEWER", "MEMBER", "ADMIN", "OFF"] = Field(
        default="VIEWER",
        description="The lowest role that may ask for the schema and is told of similar names; OFF "
        "for nobody.",
    )
    trusted_documents: Path | None = Field(
        default=None,
        description="Folder of `*.graphql` files and JSON manifests: no other document is run.",
    )
    shutdown_seconds: float = Field(
        default=12, ge=0, le=600, description="Time for running executions when asked to stop."
    )
    openai_api_key: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("OPENAI_API_KEY", "openai_api_key"),
        description="Turns the LLM judge on.",
    )
    openai_base_url: str | None = Field(
        default=None,
        validation_alias=AliasChoices("OPENAI_BASE_URL", "openai_base_url"),
        description="Any OpenAI-compatible API, such as `http://localhost:11434/v1`.",
    )
    judge_model: Annotated[str, StringConstraints(min_length=1)] = Field(
        default="gpt-5-mini", description="Model of the LLM judge."
    )
    judge_timeout_seconds: float = Field(
        default=120, gt=0, le=3600, description="For one question to the judge, retries included."
    )
    judge_max_output_tokens: int = Field(
        default=16_384,
        ge=256,
        le=1_000_000,
        description="What the judge may write for one question, its thoughts included.",
    )
    judge_input_usd_per_million: float | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="Price of a million tokens that the judge reads; unset: its cost is unknown.",
    )
    judge_output_usd_per_million: float | None = Field(
        default=None, ge=0, le=100_000, description="Of a million tokens that it writes."
    )
    sample_agent: bool = Field(
        default=True,
        description="Register a sample agent when `serve` finds SQLite on loopback without agents.",
    )
    log_level: str = Field(
        default="INFO",
        pattern="^(DEBUG|INFO|WARNING|ERROR)$",
        description="DEBUG, INFO, WARNING or ERROR.",
    )

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _exact_origins(cls, given: object) -> object:
        """As browsers write them; there is no way to say “all”."""
        listed = given.split(",") if isinstance(given, str) else given
        origins = [str(each).strip() for each in cast("Iterable[object]", listed)]
        for origin in filter(None, origins):
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"“{origin}” is no origin such as https://app.example")
        return tuple(filter(None, origins))

    @model_validator(mode="after")
    def _lease_outlives_delays(self) -> Self:
        """A worker that is alive must not lose its lease to a late heartbeat or two."""
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            raise ValueError(
                "SIGNOFF_HEARTBEAT_SECONDS must be at most a third of SIGNOFF_LEASE_SECONDS: "
                f"{self.heartbeat_seconds} is more than a third of {self.lease_seconds}"
            )
        return self

    @model_validator(mode="after")
    def _tokens_are_for_us(self) -> Self:
        """A token that was made for somebody else must open nothing here."""
        if self.oidc_issuer is not None and self.oidc_audience is None:
            raise ValueError("SIGNOFF_OIDC_ISSUER needs SIGNOFF_OIDC_AUDIENCE: whom tokens are for")
        for name, url in (("ISSUER", self.oidc_issuer), ("JWKS_URL", self.oidc_jwks_url)):
            if url is not None and not is_safe(url):
                raise ValueError(
                    f"SIGNOFF_OIDC_{name} must begin with https:// (http:// on loopback)"
                )
        return self

    @property
    def on_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite:")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return name.upper() if name.startswith("openai_") else f"SIGNOFF_{name.upper()}"


def table() -> str:
    """The settings as a Markdown table."""
    lines = ["| variable | default | what it does |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        lines.append(f"| `{variable(name)}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"
