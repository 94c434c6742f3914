"""Both ends of every range that pyproject.toml declares, each in an environment of its own: ``make test-ranges``.

    python3.11 tests/ranges.py [--only NAME ...] [--index URL] [--tests PATH ...]

"lowest" is the oldest Python with the oldest release of everything, "pinned-3.x" the versions of constraints.txt on
each Python that is found in between, "highest" the newest Python with the newest releases. An interpreter that is not
there is left out, by name. Environments lie in .ranges/ and are kept; one whose needs changed is made anew.
Needs nothing but Python 3.11.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".ranges"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
LEFT_OUT = ("spikingjelly", "distributed")  # large, and in none of the tests here
TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "import-linter")
ROOMS = ("backends", "nn", "functional", "adapters", "export", "training", "checkpoints", "datasets")


class Environment(NamedTuple):
    """One end of the ranges."""

    name: str
    python: str  # version
    needs: tuple[str, ...]  # requirements
    constraints: str | None = None  # file


def settings() -> dict[str, Any]:
    """Of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def declared() -> list[str]:
    """Requirements of the package and of its extras, as pyproject.toml has them."""
    project = settings()["project"]
    extras = project["optional-dependencies"]
    listed = [
        *project["dependencies"],
        *(one for name in extras if name not in ("all", "dev", "docs") for one in extras[name]),
    ]
    return [one for one in dict.fromkeys(listed) if not one.startswith(LEFT_OUT)]


def floor(requirement: str) -> str:
    """The oldest release that a requirement allows.

    >>> floor("jsonargparse[signatures]>=4.39")
    'jsonargparse[signatures]==4.39'
    """
    if not (parts := re.fullmatch(r"([\w\[\],.-]+)>=([\d.]+)", requirement)):
        raise ValueError(f"a requirement must be NAME>=VERSION, got {requirement}")
    return f"{parts[1]}=={parts[2]}"


def interpreter(version: str) -> str | None:
    """The interpreter of that version: on the path, or where pyenv keeps it."""
    places = [shutil.which(f"python{version}")]
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    places += [str(path) for path in sorted(kept.glob(f"{version}.*/bin/python"), reverse=True)]
    for place in places:
        ask = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
        if place and subprocess.run([place, "-c", ask], capture_output=True, text=True).stdout.strip() == version:
            return place
    return None


def environments() -> list[Environment]:
    """What is to be tested, without the interpreters that are not there."""
    there = [version for version in PYTHONS if interpreter(version)]
    for version in sorted(set(PYTHONS) - set(there)):
        print(f"Python {version} is not on this machine: left out")
    if not there:
        raise SystemExit(f"one of Python {', '.join(PYTHONS)} is needed")
    needs = tuple(declared())
    pins = [Environment(f"pinned-{version}", version, needs, "constraints.txt") for version in there[1:-1]]
    lowest = Environment("lowest", there[0], tuple(map(floor, needs)))
    return [lowest, *pins, Environment("highest", there[-1], needs)]


def prepare(environment: Environment, index: str | None) -> Path:
    """Its Python, everything installed."""
    folder = PLACE / environment.name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    tools = [*TOOLS, *settings()["build-system"]["requires"]]
    texts = [*environment, *tools] + ([(ROOT / environment.constraints).read_text()] if environment.constraints else [])
    wanted = hashlib.sha256(repr(texts).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([str(interpreter(environment.python)), "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    install += ["--extra-index-url", index] if index else []
    install += ["-c", str(ROOT / environment.constraints)] if environment.constraints else []
    print(f"{environment.name}: installing on Python {environment.python}, which may take minutes", flush=True)
    subprocess.run([*install, *environment.needs, *tools], check=True)
    stamp.write_text(wanted)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of the environments")
    parser.add_argument("--index", metavar="URL", help="further package index: https://download.pytorch.org/whl/cpu")
    parser.add_argument("--tests", nargs="+", default=[str(ROOT / "tests" / name) for name in ROOMS], metavar="PATH")
    parser.add_argument("--jobs", default="2", help="test processes")
    options = parser.parse_args()
    chosen = [one for one in environments() if options.only is None or one.name in options.only]
    failed = []
    for environment in chosen:
        python = prepare(environment, options.index)
        build = [str(python), str(ROOT / "setup.py"), "-q", "build_native", "--inplace"]
        if subprocess.run(build, cwd=ROOT).returncode:  # without the library most tests would try another backend
            failed.append(environment.name)
            continue
        test = [str(python), "-m", "pytest", "-q", "-n", options.jobs, "-m", "not slow", "-p", "no:cacheprovider"]
        variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        print(f"{environment.name}: Python {environment.python}, {', '.join(environment.needs[:4])}, ...", flush=True)
        done = subprocess.run([*test, *options.tests], cwd=ROOT, env=variables)
        failed += [environment.name] if done.returncode else []
    print(f"failed: {', '.join(failed)}" if failed else f"passed: {', '.join(one.name for one in chosen)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
