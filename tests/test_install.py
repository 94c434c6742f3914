"""Every way to install the package gives the same package: wheel, sdist, folder, editable, git, and a checkout without
its links.
"""

from __future__ import annotations

import json
import os
import platform
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import setuptools

import elm_neuro

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY = Path(__file__).resolve().parents[1]
LINKS = ("adapters", "export")
IGNORED = shutil.ignore_patterns(
    ".git",
    ".venv",
    ".ranges",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "*.egg-info",
    "*.so",
    "build",
    "dist",
    "reports",
    "lightning_logs",
)

# Run in the fresh environment, from an empty folder.
PROBE = """
import importlib, importlib.metadata, importlib.resources, importlib.util, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
distribution = importlib.metadata.distribution("elm-neuro")
training = importlib.resources.files("elm_neuro.training")
print(json.dumps({
    "files": [str(path) for path in distribution.files],
    "requires": distribution.requires,
    "version": distribution.version,
    "folder": str(importlib.resources.files("elm_neuro")),
    "typed": importlib.resources.files("elm_neuro").joinpath("py.typed").is_file(),
    "recipes": sorted(entry.name for entry in training.joinpath("recipes").iterdir() if entry.name.endswith(".yaml")),
    "backends": importlib.import_module("elm_neuro.backends").available(),
    "strangers": [
        name
        for name in ("adapters", "backends", "benchmarks", "examples", "export", "functional", "nn", "tests")
        if importlib.util.find_spec(name) is not None
    ],
}))
"""


COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    inherited = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH"
    }  # which would find the package of the tests
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=inherited | variables
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the working tree, links as links."""
    return Path(shutil.copytree(REPOSITORY, tmp_path / "checkout", symlinks=True, ignore=IGNORED))


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def without_links(checkout: Path) -> Path:
    for name in LINKS:
        (checkout / "elm_neuro" / name).unlink()
    return checkout


def build(checkout: Path, kind: str, **variables: str) -> Path:
    run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        f"--{kind}",
        "--outdir",
        checkout.parent / "dist",
        checkout,
        cwd=checkout.parent,
        **variables,
    )
    (built,) = (checkout.parent / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def commit(checkout: Path) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "--all"), (*identity, "commit", "-q", "-m", "all")):
        run("git", *command, cwd=checkout)
    return f"git+{checkout.as_uri()}"


def requirement(checkout: Path, way: str) -> list[str | Path]:
    """The arguments of `pip install` for one way."""
    kind, _, links = way.partition(" without ")
    if links:
        without_links(checkout)
    match kind:
        case "wheel" | "sdist":
            return [build(checkout, kind)]
        case "git":
            return [commit(checkout)]
        case "editable":
            return ["--editable", checkout]
        case _:
            return [checkout]


def environment(folder: Path) -> Path:
    """The interpreter of a fresh environment that sees the libraries of this one, but not the elm_neuro that is
    installed here.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = next(folder / name for name in ("bin/python", "Scripts/python.exe") if (folder / name).exists())
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder.parent).strip())
    libraries = folder / "libraries"
    libraries.mkdir()
    for entry in {path for kind in ("purelib", "platlib") for path in Path(sysconfig.get_path(kind)).iterdir()}:
        if not entry.name.startswith(("elm_neuro", "__editable__")):
            (libraries / entry.name).symlink_to(entry)
    (site / "libraries.pth").write_text(f"{libraries}\n", encoding="utf-8")
    return python


@pytest.mark.parametrize(
    "way",
    [
        "wheel",
        "sdist",
        "folder",
        "editable",
        "git",
        "wheel without links",
        "sdist without links",
        "editable without links",
    ],
)
@pytest.mark.parametrize("compiler", [True, False], ids=["compiler", "no compiler"])
def test_every_way_to_install_gives_the_same_package(
    way: str, compiler: bool, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler:
        monkeypatch.setenv("CXXFLAGS", "-O0")  # what is compiled is the same, only sooner
    else:
        monkeypatch.setenv("CC", "false")
        monkeypatch.delenv("CXX", raising=False)
    if way == "git" and shutil.which("git") is None:
        pytest.skip("no git")
    python = environment(tmp_path / "environment")
    flags = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "-q")
    run(sys.executable, "-m", "pip", "--python", python, "install", *flags, *requirement(checkout, way), cwd=tmp_path)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = project()
    found = json.loads(run(python, "-c", PROBE, *config["tool"]["setuptools"]["packages"], cwd=elsewhere))

    editable = way.startswith("editable")
    assert Path(found["folder"]).is_relative_to((checkout if editable else tmp_path / "environment").resolve())
    assert found["version"] == elm_neuro.__version__
    assert found["typed"]
    assert found["recipes"] == sorted(
        path.name for path in (REPOSITORY / "elm_neuro" / "training" / "recipes").glob("*.yaml")
    )
    assert found["recipes"]
    assert not found["strangers"]
    names = {Path(name).parts[0] for name in found["files"]} - {"..", "__pycache__"}
    names = {name for name in names if not name.endswith(".dist-info") and not name.startswith("__editable__")}
    assert names == (set() if editable else {"elm_neuro"})
    core = {line.partition(";")[0].strip() for line in found["requires"] if "extra ==" not in line}
    assert core == set(config["project"]["dependencies"])
    assert "usage" in run(python.parent / "elm-neuro", "--help", cwd=elsewhere).lower()
    missing = "cannot run: this installation was built without a C++ compiler"
    assert found["backends"]["native"].startswith("compiled kernels" if compiler and COMPILER else missing)


@pytest.mark.parametrize("compiler", [True, False], ids=["compiler", "no compiler"])
def test_a_wheel_with_the_library_is_for_its_platform_and_one_without_for_all(compiler: bool, checkout: Path) -> None:
    if compiler and COMPILER is None:
        pytest.skip("no C++ compiler")
    wheel = build(checkout, "wheel", **({"CXXFLAGS": "-O0"} if compiler else {"CC": "false", "CXX": ""}))
    library = "elm_neuro/backends/native/libelm_native.so"
    assert (library in zipfile.ZipFile(wheel).namelist()) == compiler
    tag = wheel.stem.split("-", 2)[2]
    assert tag.startswith("py3-none-")
    assert (tag == "py3-none-any") == (not compiler)


@pytest.mark.parametrize(("machine", "tag"), [("arm64", "macosx_14_0_arm64"), ("x86_64", "macosx_14_0_x86_64")])
def test_a_wheel_of_a_universal_python_is_for_the_architecture_of_the_library(
    machine: str, tag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    monkeypatch.setattr("setuptools.command.bdist_wheel.get_platform", lambda _: "macosx-14.0-universal2")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    wheel = runpy.run_path(str(REPOSITORY / "setup.py"))["PlatformWheel"](setuptools.Distribution())
    wheel.plat_name, wheel.root_is_pure = "macosx-14.0-universal2", False
    assert wheel.get_tag() == ("py3", "none", tag)


def test_wheel_holds_every_module_once(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")  # the library is another test's
    with zipfile.ZipFile(build(checkout, "wheel")) as wheel:
        names = wheel.namelist()
    assert len(names) == len(set(names))
    modules = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "elm_neuro").rglob("*.py")}
    for link in LINKS:
        modules |= {
            f"elm_neuro/{link}/{path.relative_to(REPOSITORY / link).as_posix()}"
            for path in (REPOSITORY / link).rglob("*.py")
        }
    assert {name for name in names if name.endswith(".py")} == modules
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_sdist_holds_what_the_readme_names_and_no_test_without_its_helpers(checkout: Path) -> None:
    with tarfile.open(build(checkout, "sdist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "constraints.txt"} <= names
    assert not {name for name in names if name.startswith("tests")}
