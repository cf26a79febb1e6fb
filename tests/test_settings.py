"""Settings come from the variables that the README's table names, and from nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from signoff.settings import Settings, table, variable


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)


def test_the_table_names_every_setting_once_with_its_default() -> None:
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table().splitlines()[2:]]
    assert [row[0].lstrip("| ") for row in rows] == [
        f"`{variable(name)}`" for name in Settings.model_fields
    ]
    for (name, field), row in zip(Settings.model_fields.items(), rows, strict=True):
        assert row[1] == ("" if field.default in (None, ()) else f"`{field.default}`"), name
        assert row[2].endswith(". |"), name


VALUES: dict[str, tuple[str, object]] = {
    "database_url": ("postgres://a@b/c", "postgres://a@b/c"),
    "host": ("::1", "::1"),
    "port": ("0", 0),
    "key_file": ("/tmp/x.key", Path("/tmp/x.key")),  # noqa: S108
    "allow_private_agents": ("true", True),
    "agent_tries": ("1", 1),
    "max_executions": ("40", 40),
    "worker_port": ("0", 0),
    "metrics_open": ("1", True),
    "lease_seconds": ("15", 15.0),
    "openai_base_url": ("http://localhost/v1", "http://localhost/v1"),
    "judge_model": ("m", "m"),
    "sample_agent": ("0", False),
    "members_see": ("workspace", "workspace"),
    "oidc_algorithms": ("ES256,RS512", "ES256,RS512"),
    "oidc_roles": ("ops team=ADMIN", "ops team=ADMIN"),
    "log_level": ("DEBUG", "DEBUG"),
}


def test_a_variable_sets_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (text, value) in VALUES.items():
        monkeypatch.setenv(variable(name), text)
        assert getattr(Settings(), name) == value


def test_a_key_is_not_shown_where_settings_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("secret_key", "openai_api_key"):
        monkeypatch.setenv(variable(name), "s3cret")
    assert "s3cret" not in repr(Settings())


def test_values_out_of_bounds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("port", "-1"),
        ("agent_tries", "0"),
        ("lease_seconds", "0.5"),
        ("retry_max_seconds", "nan"),
        ("judge_timeout_seconds", "inf"),
        ("log_level", "debug"),
        ("members_see", "everything"),
        ("oidc_algorithms", "HS256"),
        ("oidc_algorithms", "none"),
        ("oidc_algorithms", "RS256,HS256"),
        ("oidc_roles", "admins=KING"),
        ("oidc_issuer", "https://id.example.com"),
        ("oidc_jwks_url", "http://id.example.com/keys"),
    ):
        with monkeypatch.context() as set_one:
            set_one.setenv(variable(name), text)
            with pytest.raises(ValidationError):
                Settings()


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1
