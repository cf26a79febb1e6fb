"""The wheel works beside a stranger's package called `schema`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
FOLDERS = {"schema", "resolvers", "services", "models"}
STRANGER = "raise RuntimeError('a stranger was imported')\n"
WHERE = "import signoff, schema, models; print(schema.__file__, models.__file__, sep='\\n')"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel made of the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    _run("-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=ROOT)
    with tarfile.open(_only(folder, "*.tar.gz")) as archive:
        archive.extractall(folder / "source", filter="data")
    source = _only(folder / "source", "signoff-*")
    _run("-m", "hatchling", "build", "--target", "wheel", "--directory", folder, cwd=source)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return _only(dist, "*.whl")


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment's Python: our wheel, strangers beside it, and this one's packages."""
    home = tmp_path_factory.mktemp("environment")
    _run("-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    site = _only(home, "lib/python*/site-packages")
    _install(wheel, python)
    for folder in FOLDERS:
        (site / f"{folder}.py").write_text(STRANGER)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_only_signoff_is_at_the_top_of_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"signoff"}
    assert {name.split("/")[2] for name in names if name.startswith("signoff/_app/")} == FOLDERS
    assert not [name for name in names if "__pycache__" in name or "node_modules" in name]


def test_the_page_and_its_licences_are_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "signoff/static/graphiql/index.html" in names
    assert "signoff/static/graphiql/LICENSES.txt" in names
    assert "signoff/examples/1-viewer.graphql" in names


def test_our_folders_win_over_strangers_in_site_packages(environment: Path) -> None:
    imported = _run("-c", WHERE, python=environment, cwd=environment.parent).splitlines()
    app = _only(environment.parent.parent, "lib/python*/site-packages/signoff/_app")
    assert imported == [str(app / "schema/__init__.py"), str(app / "models/__init__.py")]


def test_a_stranger_imported_first_is_refused(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.py").touch()
    with pytest.raises(subprocess.CalledProcessError) as failure:
        _run("-c", "import schema, signoff", python=environment, cwd=tmp_path)
    assert "signoff must be imported before the package 'schema'" in failure.value.stderr


def test_the_command_runs(environment: Path) -> None:
    command = environment.parent / "signoff"
    assert "signoff" in _run(command, "--help", python=environment, cwd=environment.parent)
    printed = _run(command, "schema", python=environment, cwd=environment.parent)
    assert "type Mutation {" in printed


def test_the_checkout_wins_over_strangers_too(tmp_path: Path) -> None:
    """What an editable install does: the checkout comes after site-packages on the path."""
    (tmp_path / "schema.py").write_text(STRANGER)
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    imported = _run("-c", WHERE, cwd=tmp_path, env=paths).splitlines()
    assert imported == [str(ROOT / "schema/__init__.py"), str(ROOT / "models/__init__.py")]


def _run(
    *arguments: str | Path,
    cwd: Path,
    python: Path = Path(sys.executable),
    env: dict[str, str] | None = None,
) -> str:
    """What the program printed. Isolated from the checkout: no working directory on the path."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(  # noqa: S603
        [python, *arguments],
        cwd=cwd,
        env={**inherited, **(env or {})},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def _install(wheel: Path, python: Path) -> None:
    _run("-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=ROOT)


def _only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_ci_has_an_exact_version_of_everything_that_it_installs() -> None:
    """What is not installed here, as the tools may be, is at least looked for by its own name."""
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted: set[tuple[str, str]] = set()
    for line in [line for lines in given for line in lines]:
        wanted |= set(_needed(Requirement(line), wanted))
    assert {name for name, _ in wanted} - {"signoff"} - pinned == set()


def _needed(requirement: Requirement, seen: set[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Names with each of their extras, of what is not in `seen`, which it is added to."""
    for extra in ("", *requirement.extras):
        package = (canonicalize_name(requirement.name), extra)
        if package in seen:
            continue
        seen.add(package)
        yield package
        for line in _requires(requirement.name):
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                yield from _needed(needed, seen)


def _requires(name: str) -> list[str]:
    try:
        return requires(name) or []
    except PackageNotFoundError:
        return []
