"""The house keeps its plan: packages, folders, the direction of imports, and an `import elm_neuro` that brings nothing optional."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "elm_neuro"

TOP_LEVEL = {
    "adapters", "benchmarks", "elm_neuro", "examples", "export", "tests",
    "CITATION.cff", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml",
}  # fmt: skip
TOP_LEVEL_OPTIONAL = {"docs", "CHANGELOG.md", "CONTRIBUTING.md", "MANIFEST.in", "setup.py"}

# What a room may import, itself aside. "elm_neuro" is the list of public names in __init__.py, which stands above the
# rooms it lists.
BELOW_NN = {"events", "files", "functional", "backends"}
NEURON = BELOW_NN | {"nn", "checkpoints", "elm_neuro"}
MAY_IMPORT: dict[str, set[str]] = {
    "events": set(),
    "files": set(),
    "functional": {"events"},
    "backends": {"events", "files", "functional"},
    "nn": BELOW_NN | {"checkpoints"},  # inside the methods save_pretrained and from_pretrained only
    "datasets": {"events", "files", "functional"},
    "pretrained": BELOW_NN | {"nn", "checkpoints"},
    "checkpoints": BELOW_NN | {"nn", "pretrained"},
    "elm_neuro": BELOW_NN | {"nn", "checkpoints"},
    "plotting": NEURON | {"datasets"},
    "training": NEURON | {"datasets", "plotting"},
    "demo": NEURON | {"datasets", "plotting", "training"},
    "adapters": NEURON | {"datasets"},
    "export": NEURON | {"datasets"},
    "cli": NEURON | {"datasets", "plotting", "training", "demo", "adapters", "export"},
}


class Import(NamedTuple):
    """One import statement of the package."""

    where: str  # file:line
    room: str  # the part of the package that it stands in
    target: str  # the part of the package that it names
    lazy: bool  # inside a function


def pyproject() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def modules() -> Iterator[tuple[str, Path]]:
    """(room, file) of every module of the package, adapters and export by their folders at the top."""
    rooms = {
        path.name: path
        for path in PACKAGE.iterdir()
        if path.is_dir() and not path.is_symlink() and path.name != "__pycache__"
    }
    rooms |= {name: REPOSITORY / name for name in ("adapters", "export")}
    for room, folder in sorted(rooms.items()):
        for path in sorted(folder.rglob("*.py")):
            yield room, path
    for path in sorted(PACKAGE.glob("*.py")):
        yield ("elm_neuro" if path.stem == "__init__" else path.stem), path


def names_imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        # `from elm_neuro import nn` names a room, `from elm_neuro import ELM` a public name
        return (
            [f"{node.module}.{alias.name}" for alias in node.names]
            if node.module == "elm_neuro"
            else [node.module or ""]
        )
    return []


def imports() -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, room: str, path: Path, lazy: bool) -> None:
        for name in names_imported(node):
            first, *rest = name.split(".")
            if first == "elm_neuro":
                target = rest[0] if rest and rest[0] in MAY_IMPORT else "elm_neuro"
                found.append(Import(f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', 0)}", room, target, lazy))
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, room, path, inside)

    for room, path in modules():
        visit(ast.parse(path.read_text(encoding="utf-8")), room, path, lazy=False)
    return found


def test_pyproject_names_every_package_on_the_disk() -> None:
    on_disk = {"elm_neuro"}
    for prefix, folder in (
        ("elm_neuro", PACKAGE),
        ("elm_neuro.adapters", REPOSITORY / "adapters"),
        ("elm_neuro.export", REPOSITORY / "export"),
    ):
        on_disk |= {
            ".".join((prefix, *path.parent.relative_to(folder).parts))
            for path in folder.rglob("*.py")
            if "__pycache__" not in path.parts
        }
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == on_disk


def test_adapters_and_export_are_reached_through_links() -> None:
    for name in ("adapters", "export"):
        link = PACKAGE / name
        assert link.is_symlink()
        assert link.readlink() == Path("..") / name
        assert pyproject()["tool"]["setuptools"]["package-dir"][f"elm_neuro.{name}"] == name


def test_the_top_level_is_the_one_of_the_plan() -> None:
    ignored = [line.strip("/") for line in (REPOSITORY / ".gitignore").read_text(encoding="utf-8").splitlines() if line]
    names = {path.name for path in REPOSITORY.iterdir() if not path.name.startswith(".")}
    names = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
    assert names - TOP_LEVEL_OPTIONAL == TOP_LEVEL


def test_every_room_has_its_place_in_the_order_of_imports() -> None:
    assert {room for room, _ in modules()} <= set(MAY_IMPORT)


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_point_one_way(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    wrong = [
        f"{found.where}: {room} imports {found.target}"
        for found in imports()
        if found.room == room and found.target not in allowed
    ]
    assert not wrong


def test_only_the_command_line_imports_hosts_and_only_when_asked() -> None:
    """adapters and export are for users; the demo's report is exported by the command, not by training."""
    faces = {"adapters", "export"}
    for found in imports():
        if found.target in faces and found.room != found.target:
            assert found.room == "cli", f"{found.where}: {found.room} imports {found.target}"
            assert found.lazy, f"{found.where}: import {found.target} inside the function that needs it"


@pytest.mark.parametrize("room", ["functional", "backends", "nn", "datasets"])
def test_implementation_files_are_private(room: str) -> None:
    public = [
        path.name
        for path in (PACKAGE / room).rglob("*.py")
        if path.name != "__init__.py" and not path.name.startswith("_")
    ]
    assert not public


def test_typing_marker_ships() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert pyproject()["tool"]["setuptools"]["package-data"]["elm_neuro"] == ["py.typed"]


def test_core_needs_torch_numpy_and_safetensors_only() -> None:
    assert {requirement_name(line) for line in pyproject()["project"]["dependencies"]} == {
        "torch",
        "numpy",
        "safetensors",
    }


def test_all_is_every_extra_but_dev() -> None:
    extras = pyproject()["project"]["optional-dependencies"]
    (line,) = extras["all"]
    assert set(re.findall(r"\w+", line.partition("[")[2])) == set(extras) - {"all", "dev"}


def test_constraints_pin_every_requirement() -> None:
    project = pyproject()["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pinned = {
        requirement_name(line)
        for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    assert {requirement_name(line) for line in lines} - {"elm-neuro"} <= pinned


def test_import_brings_nothing_optional() -> None:
    extras = pyproject()["project"]["optional-dependencies"]
    optional = {
        requirement_name(line) for name, lines in extras.items() if name not in ("all", "dev") for line in lines
    }
    code = "import json, sys, elm_neuro; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = json.loads(fresh_interpreter(code))
    distributions = importlib.metadata.packages_distributions()
    brought = {name for name in loaded if optional & {requirement_name(dist) for dist in distributions.get(name, ())}}
    assert not brought
    assert {"elm_neuro", "torch", "numpy"} <= set(loaded)


@pytest.mark.slow  # a timed test: the best of five, in processor time, so that a busy machine does not fail it
def test_import_adds_little_to_importing_torch() -> None:
    code = (
        "import time, numpy, torch; start = time.process_time(); import elm_neuro; print(time.process_time() - start)"
    )
    assert min(float(fresh_interpreter(code)) for _ in range(5)) < 0.3  # seconds


def requirement_name(line: str) -> str:
    return re.split(r"[\[<>=!~; ]", line.strip(), maxsplit=1)[0].lower().replace("_", "-")


def fresh_interpreter(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY
    ).stdout
