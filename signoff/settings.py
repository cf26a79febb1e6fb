"""Settings: read once, from the environment, and passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretStr,
    StringConstraints,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from yarl import URL

DEFAULT_DATABASE = "sqlite://signoff.db"


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
        description="After how many failed calls in a row an agent is left alone for a while; 0 "
        "turns that off.",
    )
    circuit_seconds: float = Field(
        default=30,
        ge=0.1,
        le=600,
        description="For how long; doubles each time in a row, up to 10 minutes.",
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

    @model_validator(mode="after")
    def _lease_outlives_delays(self) -> Self:
        """A worker that is alive must not lose its lease to a late heartbeat or two."""
        if self.heartbeat_seconds * 3 > self.lease_seconds:
            raise ValueError(
                "SIGNOFF_HEARTBEAT_SECONDS must be at most a third of SIGNOFF_LEASE_SECONDS: "
                f"{self.heartbeat_seconds} is more than a third of {self.lease_seconds}"
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
        default = "" if field.default is None else f"`{field.default}`"
        lines.append(f"| `{variable(name)}` | {default} | {field.description} |")
    return "\n".join(lines) + "\n"
