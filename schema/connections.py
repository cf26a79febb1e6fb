"""Pages as Relay connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import strawberry

from services.paging import Page

NodeT = TypeVar("NodeT")


@strawberry.type(description="Where a page begins and ends, and whether there is more.")
class PageInfo:
    has_next_page: bool
    has_previous_page: bool
    start_cursor: str | None
    end_cursor: str | None


@strawberry.type(description="A node and its place in the list.")
class Edge(Generic[NodeT]):
    cursor: str
    node: NodeT


@strawberry.type(description="A page of a list.")
class Connection(Generic[NodeT]):
    edges: list[Edge[NodeT]]
    page_info: PageInfo
    count: strawberry.Private[Callable[[], Awaitable[int]]]

    @strawberry.field
    def nodes(self) -> list[NodeT]:
        return [edge.node for edge in self.edges]

    @strawberry.field(description="All that match. Counted only when selected.")
    async def total_count(self) -> int:
        return await self.count()


def connection(
    page: Page[Any],
    of: Callable[[Any], NodeT],
    cursor: Callable[[Any], str] | None = None,
) -> Connection[NodeT]:
    """`cursor` tells a row's place where that is not the page's own keyset."""
    place = cursor or page.cursor
    edges = [Edge(cursor=place(row), node=of(row)) for row in page.rows]
    return Connection(
        edges=edges,
        page_info=PageInfo(
            has_next_page=page.has_next_page,
            has_previous_page=page.has_previous_page,
            start_cursor=edges[0].cursor if edges else None,
            end_cursor=edges[-1].cursor if edges else None,
        ),
        count=page.total,
    )
