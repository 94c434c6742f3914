"""What the demonstration writes, where it cannot: tests/cli/test_demo.py has what it writes where it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")
pytest.importorskip("h5py")

from elm_neuro.demo import CONTROL, MIXED, DemoSettings, build, verdict, write_report
from elm_neuro.demo._networks import elm_neuron, mixed_network
from elm_neuro.demo._settings import keep_settings


def full_disk(handle: int) -> None:
    raise OSError("no space left on device")


def metrics(accuracy: float) -> dict[str, Any]:
    run = {"test": {"accuracy": accuracy}}
    network = {"parameters": 9, "mean": {"accuracy": accuracy}, "runs": [run]}
    return {
        "data": {
            "name": "some digits",
            "synthetic": False,
            "samples": {"train": 3, "valid": 2, "test": 1},
            "speakers": {"train": [0, 1], "test only": []},
        },
        "networks": {MIXED: network, CONTROL: network | {"mean": {"accuracy": 0.5}}},
        "majority": 0.25,
        "settings": {"task": "digits", "seeds": [0], "num_epochs": 2, "pool": 5, "scale": 1.0},
        "tuned": {MIXED: {"bin_ms": 10.0}, CONTROL: {"bin_ms": 20.0}},
        "peak_memory_mib": None,
        "seconds": 1.0,
    }


def test_a_report_that_cannot_be_written_leaves_the_one_before_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(metrics(0.75), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"metrics.json", "report.md"}
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_report(metrics(0.5), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_settings_that_cannot_be_written_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        keep_settings(DemoSettings(), tmp_path / "settings.json", resume=False)
    assert not list(tmp_path.iterdir())


def test_a_loss_is_reported_as_a_loss() -> None:
    assert verdict(metrics(0.75)) == "LIF + ELM against LIF only: 25.0 points ahead on all speakers (1 run each)."
    assert verdict(metrics(0.25)) == "LIF + ELM against LIF only: 25.0 points behind on all speakers (1 run each)."
    assert verdict(metrics(0.5)) == "LIF + ELM against LIF only: level on all speakers (1 run each)."


def test_the_neuron_of_the_report_is_that_of_the_mixed_network() -> None:
    settings = DemoSettings(num_hidden=32, num_memory=10)
    module = build(MIXED, settings, num_channels=140, seed=0)
    assert elm_neuron(module) is mixed_network(module).neuron
    with pytest.raises(TypeError, match=r"module must hold the network 'LIF \+ ELM', got LIFNetwork"):
        mixed_network(build(CONTROL, settings, num_channels=140, seed=0))
