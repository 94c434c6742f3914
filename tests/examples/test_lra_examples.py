"""The examples of Long Range Arena run on made-up data, in this process: most of a script's time is its imports."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("PIL")

from elm_neuro.training.loop._quiet import without_advice

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples" / "lra").glob("[!_]*.py"))


@pytest.fixture(autouse=True)
def _lightning_advice() -> Iterator[None]:
    with without_advice():
        yield


def test_there_is_one_for_each_task() -> None:
    assert [path.stem for path in EXAMPLES] == ["image", "listops", "pathfinder", "pathx", "retrieval", "text"]
    for path in EXAMPLES:
        assert f"python examples/lra/{path.name} [--smoke]" in path.read_text(encoding="utf-8")


OTHERS = [(path, kind) for path in EXAMPLES if path.stem in ("listops", "retrieval") for kind in ("lstm", "stack")]


@pytest.mark.parametrize(
    ("example", "network"),
    [*((path, "elm") for path in EXAMPLES), *OTHERS],
    ids=lambda value: value if isinstance(value, str) else value.stem,
)
def test_examples_run_with_each_network(
    example: Path,
    network: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(example.parent))  # as running a script does
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", [example.name, "--smoke", "--network", network])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert "test accuracy" in printed and "the commonest answer" in printed
