from __future__ import annotations

import strawberry


@strawberry.interface(description="Anything with an id, to be found by `node`.")
class Node:
    id: strawberry.ID
