"""The house keeps its plan: packages, folders, the direction of imports, one version, and an `import elm_neuro` that
brings nothing optional."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import elm_neuro

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "elm_neuro"

TOP_LEVEL = {
    "adapters", "benchmarks", "docs", "elm_neuro", "examples", "export", "tests",
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md",
    "constraints.txt", "mkdocs.yml", "pyproject.toml", "setup.py",
}  # fmt: skip


def pyproject() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


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
    assert names == TOP_LEVEL


def test_imports_keep_the_contracts_of_pyproject() -> None:
    """Which room may import which, tasks beside each other, no circle: `make lint` runs the same."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contracts_see_every_module_adapters_and_export_through_their_links() -> None:
    on_disk = {
        ".".join(
            ("elm_neuro", *path.relative_to(folder.parent if folder != PACKAGE else PACKAGE).with_suffix("").parts)
        )
        for folder in (PACKAGE, REPOSITORY / "adapters", REPOSITORY / "export")
        for path in folder.rglob("*.py")
    }
    graph = json.loads(
        fresh_interpreter(
            "import json, grimp; print(json.dumps([*grimp.build_graph('elm_neuro', cache_dir=None).modules]))"
        )
    )
    assert {name.removesuffix(".__init__") for name in on_disk} <= set(graph)


def test_the_command_line_imports_hosts_only_when_asked() -> None:
    loaded = json.loads(fresh_interpreter("import json, sys, elm_neuro.cli; print(json.dumps([*sys.modules]))"))
    assert not [name for name in loaded if name.startswith(("elm_neuro.adapters", "elm_neuro.export"))]


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


def test_all_is_every_extra_but_those_of_who_works_on_it() -> None:
    extras = pyproject()["project"]["optional-dependencies"]
    (line,) = extras["all"]
    assert set(re.findall(r"\w+", line.partition("[")[2])) == set(extras) - {"all", "dev", "docs"}


def test_constraints_pin_every_requirement() -> None:
    project = pyproject()["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pinned = {
        requirement_name(line)
        for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    assert {requirement_name(line) for line in lines} - {"elm-neuro"} <= pinned


def test_the_version_stands_in_one_place_and_is_read_without_importing_the_package() -> None:
    assert "version" in pyproject()["project"]["dynamic"]
    code = (
        "import sys; sys.modules['torch'] = None\n"  # an import of torch would fail
        "from setuptools.config.pyprojecttoml import read_configuration\n"
        "print(read_configuration('pyproject.toml')['project']['version'])"
    )
    assert fresh_interpreter(code).strip() == elm_neuro.__version__
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^version: (.*)$", citation) == [elm_neuro.__version__]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_pages_for_who_carries_on_name_files_that_are_there(page: str) -> None:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:elm_neuro|adapters|export|tests|docs)/[\w./-]+)`", text)
    assert len(named) > 10
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_import_brings_nothing_optional() -> None:
    extras = pyproject()["project"]["optional-dependencies"]
    optional = {
        requirement_name(line) for name, lines in extras.items() if name not in ("all", "dev", "docs") for line in lines
    }
    code = "import json, sys, elm_neuro; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = json.loads(fresh_interpreter(code))
    distributions = importlib.metadata.packages_distributions()
    brought = {name for name in loaded if optional & {requirement_name(dist) for dist in distributions.get(name, ())}}
    assert not brought
    assert {"elm_neuro", "torch", "numpy"} <= set(loaded)


@pytest.mark.slow  # a timed test: the best of five, in processor time, so that a busy machine does not fail it
def test_import_adds_little_to_importing_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # as users have it: compiled by the first import
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path))
    code = (
        "from time import process_time as now\n"
        "start = now(); import numpy, torch; between = now(); import elm_neuro; end = now()\n"
        "print((end - between) / (between - start))"
    )
    assert min(float(fresh_interpreter(code)) for _ in range(6)) < 0.06  # measured: 0.03; 0.17 with all backends


def test_import_leaves_what_runs_a_neuron_to_its_first_use() -> None:
    """And one backend leaves the others to theirs, an ELM other layers; names that come later are listed, and there."""
    code = (
        "import json, sys, torch, elm_neuro\n"
        "loaded, names, other = [*sys.modules], dir(elm_neuro), hasattr(elm_neuro, 'no_such_name')\n"
        "elm_neuro.ELM(3, 2, backend='reference')(torch.zeros(1, 2, 3))[0].sum().backward()\n"
        "print(json.dumps([loaded, [*sys.modules], names, other, elm_neuro.checkpoints.__name__]))"
    )
    loaded, run, names, other, module = json.loads(fresh_interpreter(code))
    loaded = [name for name in loaded if name.startswith(("elm_neuro.", "safetensors"))]
    later = (
        "backends.alif backends.cuda backends.native backends.network checkpoints datasets files pretrained._folders"
    )
    assert not [name for name in loaded if name.startswith(tuple(f"elm_neuro.{room}" for room in later.split()))]
    layers = {"elm_neuro.nn._alif", "elm_neuro.nn._network", "elm_neuro.nn._network_classifier", "safetensors"}
    assert not [name for name in loaded if name in layers or "._native" in name or "._cuda" in name]
    assert "elm_neuro.nn._elm" in loaded
    assert "elm_neuro.backends.elm._reference" in run
    others = ("elm._native", "elm._cuda", "elm._torch", "alif._reference", "network._reference", "cuda._driver")
    assert not {f"elm_neuro.backends.{name}" for name in others} & set(run)
    assert set(elm_neuro.__all__) <= set(names)
    assert (module, other) == ("elm_neuro.checkpoints", False)


def requirement_name(line: str) -> str:
    return re.split(r"[\[<>=!~; ]", line.strip(), maxsplit=1)[0].lower().replace("_", "-")


def fresh_interpreter(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=REPOSITORY
    ).stdout
