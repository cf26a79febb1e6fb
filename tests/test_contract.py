"""What clients and databases rely on: the committed schema, the examples, the migrations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from graphql import (
    GraphQLObjectType,
    GraphQLUnionType,
    OperationDefinitionNode,
    build_schema,
    find_breaking_changes,
    get_variable_values,
    parse,
    validate,
)
from tortoise import Tortoise, connections
from tortoise.context import TortoiseContext
from tortoise.migrations.autodetector import MigrationAutodetector

from schema import sdl
from signoff import database, graphiql
from tests.support.graphql import SCHEMA, SDL_FILE, root

OBVIOUS = {"job", "agent"}
"""Root fields whose name says it all."""


def test_no_change_of_the_schema_breaks_clients() -> None:
    committed = build_schema(SDL_FILE.read_text("utf-8"))
    broken = find_breaking_changes(committed, build_schema(sdl()))
    assert not broken, "\n".join(change.description for change in broken)


def test_the_committed_schema_is_the_schema() -> None:
    assert SDL_FILE.read_text("utf-8") == sdl(), "run: signoff schema > schema.graphql"


OUTCOMES = {
    *("Job", "Agent", "JobLog", "AgentTest"),
    *("NewWebhook", "Webhook", "WebhookDelivery"),
    *("NewApiKey", "ApiKey"),
}


def test_each_mutation_returns_a_union_of_its_own_whose_failures_are_errors() -> None:
    error = SCHEMA.type_map["Error"]
    for name, field in root("Mutation").items():
        union = cast("Any", field.type).of_type
        assert isinstance(union, GraphQLUnionType), name
        assert union.name == f"{name[0].upper()}{name[1:]}Result"
        errors = [each for each in union.types if error in each.interfaces]
        (outcome,) = [each for each in union.types if each not in errors]
        assert outcome.name in OUTCOMES, name
        assert "Forbidden" in {each.name for each in errors}


def test_each_failure_has_a_code_and_a_message() -> None:
    error = SCHEMA.type_map["Error"]
    for each in SCHEMA.type_map.values():
        if isinstance(each, GraphQLObjectType) and error in each.interfaces:
            assert str(each.fields["code"].type) == "ErrorCode!"
            assert str(each.fields["message"].type) == "String!"


def test_each_root_field_says_what_it_is_for() -> None:
    silent = {
        name
        for kind in ("Query", "Mutation", "Subscription")
        for name, field in root(kind).items()
        if not field.description
    }
    assert silent == OBVIOUS


def test_each_list_has_a_limit() -> None:
    for each in SCHEMA.type_map.values():
        if isinstance(each, GraphQLObjectType):
            for name, field in each.fields.items():
                if str(field.type).endswith("Connection!"):
                    assert "first" in field.args, f"{each.name}.{name}"


@pytest.mark.parametrize(
    "file", sorted(graphiql.EXAMPLES.glob("*.graphql")), ids=lambda file: cast("Path", file).stem
)
def test_an_example_and_its_variables_fit_the_schema(file: Path) -> None:
    document = parse(file.read_text("utf-8"))
    assert validate(SCHEMA, document) == []
    variables = file.with_suffix(".json")
    given: dict[str, Any] = json.loads(variables.read_text("utf-8")) if variables.exists() else {}
    for operation in document.definitions:
        assert isinstance(operation, OperationDefinitionNode)
        definitions = operation.variable_definitions or ()
        assert not isinstance(get_variable_values(SCHEMA, definitions, given), list)
        assert set(given) <= {each.variable.name.value for each in definitions}


# The database

POSTGRES_INDEXES = (
    "SELECT tablename AS table, indexdef AS sql FROM pg_indexes WHERE schemaname = 'public'"
)
SQLITE_INDEXES = """
SELECT m.name AS "table", i.name AS "index", group_concat(c.name) AS columns
FROM sqlite_master AS m, pragma_index_list(m.name) AS i, pragma_index_info(i.name) AS c
WHERE m.type = 'table' GROUP BY 1, 2"""


async def indexes(url: str) -> dict[str, list[list[str]]]:
    """The columns of each index, by table."""
    found: dict[str, list[list[str]]] = {}
    async with database.connected(url):
        connection = connections.get("default")
        if database.is_sqlite(url):
            for row in await connection.execute_query_dict(SQLITE_INDEXES):
                found.setdefault(row["table"], []).append(row["columns"].split(","))
        else:
            for row in await connection.execute_query_dict(POSTGRES_INDEXES):
                columns = row["sql"].rpartition("(")[2].rstrip(")").replace('"', "")
                found.setdefault(row["table"], []).append(columns.split(", "))
    return found


ORDERS = {
    "agents": ["workspace_id", "created_at", "id"],
    "jobs": ["workspace_id", "created_at", "id"],
    "job_logs": ["workspace_id", "seq"],
    "criteria_sets": ["job_id", "version"],
    "attempts": ["job_id", "number"],
    "verdicts": ["attempt_id", "created_at", "id"],
    "job_tags": ["tag", "job_id"],
    "idempotency_keys": ["created_at"],
    "api_keys": ["key_hash"],
    "audit_entries": ["workspace_id", "seq"],
    "agent_gates": ["agent_id"],
    "pruned_logs": ["until_seq"],
    "queue_entries": ["state", "agent_id", "rank", "queued_at"],
    "workers": ["id"],
    "timers": ["at", "id"],
    "long_calls": ["attempt_id"],
    "job_dependencies": ["job_id", "depends_on_id"],
    "webhooks": ["workspace_id", "created_at", "id"],
    "webhook_deliveries": ["webhook_id", "state", "next_attempt_at", "seq"],
    "workspaces": ["id"],
}
"""What each table is read by, most of the time."""


async def test_every_foreign_key_and_default_order_has_an_index(database_url: str) -> None:
    found = await indexes(database_url)
    for model in database._tables():  # pyright: ignore[reportPrivateUsage]
        table = cast("dict[str, Any]", model.describe())
        has = found.get(table["table"], [])
        if table["table"] == "workspaces" and database.is_sqlite(database_url):
            has = [*has, ["id"]]  # the row id
        assert [i for i in has if i[: len(ORDERS[table["table"]])] == ORDERS[table["table"]]]
        for key in table["fk_fields"]:
            column = key["raw_field"]
            assert [i for i in has if i[0] == column], f"{table['table']}.{column}"


async def test_the_migrations_make_the_tables_that_the_models_describe() -> None:
    config = database.config("sqlite://nowhere.db")
    async with TortoiseContext() as context:
        await context.init(config=config, init_connections=False)
        assert Tortoise.apps is not None
        detector = MigrationAutodetector(Tortoise.apps, config["apps"])
        writers = await detector.changes()
    assert [writer.as_string() for writer in writers] == []
