"""Builds the wheel so that our plain folder names cannot collide in site-packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDERS = ("schema", "resolvers", "services", "models")


class AppFolders(BuildHookInterface[Any]):
    """Moves the top-level folders to `signoff/_app/*` in standard wheels.

    PyPI's `schema` would overwrite ours, or ours would overwrite it, if both were installed as a
    plain `schema`. `signoff/__init__.py` puts `signoff/_app` first on the path.
    An editable install uses the checkout as it is.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "standard":
            return
        for folder in FOLDERS:
            source = Path(self.root, folder)
            build_data["force_include"][str(source)] = f"signoff/_app/{folder}"
