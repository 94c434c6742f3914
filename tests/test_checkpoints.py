"""Neurons survive the disk bit by bit, the authors' checkpoints compute what they computed, and a bad file says what is
wrong with it.

Long: what is written, read and refused is tested on the same saved neurons.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.machinery
import json
import os
import pickle
import sys
import threading
import types
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from elm_neuro import ELM, BranchELM, SpikeEvents
from elm_neuro.checkpoints import (
    _fetch,
    fetch_upstream,
    from_pretrained,
    from_upstream,
    neuronio_head,
    save_pretrained,
)
from elm_neuro.files import write_whole
from elm_neuro.functional import routing_index
from tests.strategies import neurons

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def small(**options: Any) -> BranchELM:
    torch.manual_seed(0)
    return BranchELM(6, 2, num_memory=3, num_branch=3, num_synapse_per_branch=4, **options)


def assert_same(found: ELM, expected: ELM) -> None:
    assert type(found) is type(expected)
    assert found.config == expected.config
    ours, theirs = expected.state_dict(), found.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert theirs[name].dtype == tensor.dtype
        assert torch.equal(theirs[name], tensor), name
    assert [(name, p.requires_grad) for name, p in found.named_parameters()] == [
        (name, p.requires_grad) for name, p in expected.named_parameters()
    ]
    assert [name for name, _ in found.named_buffers()] == [name for name, _ in expected.named_buffers()]


# save_pretrained and from_pretrained


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_neuron_comes_back_bit_by_bit(tmp_path: Path, data: st.DataObject) -> None:
    neuron = data.draw(neurons(dtype=data.draw(st.sampled_from(DTYPES))))
    before = torch.get_rng_state()
    save_pretrained(neuron, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(found, neuron)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("routing", ["random", "index"])
@pytest.mark.parametrize("num_neuron", [None, 3])
def test_routing_comes_from_the_file(tmp_path: Path, routing: str, num_neuron: int | None) -> None:
    shape = (3, 4) if num_neuron is None else (num_neuron, 3, 4)
    neuron = small(routing=torch.randint(-1, 6, shape) if routing == "index" else routing, num_neuron=num_neuron)
    save_pretrained(neuron, tmp_path)
    assert neuron.cell.input_to_synapse_indices is not None
    assert tuple(neuron.cell.input_to_synapse_indices.shape) == shape
    assert_same(from_pretrained(tmp_path), neuron)


def test_ablations_without_learning_stay_buffers(tmp_path: Path) -> None:
    neuron = small(learn_w_s=False, learn_tau_m=False, tau_s=(1.0, 2.0, 3.3), shuffle_routing=True).double()
    save_pretrained(neuron, tmp_path)
    found = from_pretrained(tmp_path)
    assert {"cell._proto_w_s", "cell._proto_tau_m"} <= {name for name, _ in found.named_buffers()}
    assert_same(found, neuron)


def test_dtype_device_and_backend_are_chosen_on_loading(tmp_path: Path) -> None:
    save_pretrained(small(), tmp_path)
    found = from_pretrained(tmp_path, dtype=torch.float64, device="cpu", backend="reference")
    assert {tensor.dtype for tensor in found.state_dict().values()} == {torch.float64, torch.int64}
    assert found.backend == "reference"
    with pytest.raises(ValueError, match=r"dtype must be one of .*torch\.float64.*, got torch\.int64"):
        from_pretrained(tmp_path, dtype=torch.int64)
    with pytest.raises(ValueError, match="backend must be"):
        from_pretrained(tmp_path, backend="quick")


def test_a_loaded_neuron_trains(tmp_path: Path) -> None:
    save_pretrained(small(), tmp_path)
    found = from_pretrained(tmp_path)
    found(torch.rand(2, 5, 6))[0].sum().backward()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter -= 0.1 * parameter.grad
    save_pretrained(found, tmp_path)
    assert_same(from_pretrained(tmp_path), found)


def test_tied_and_strided_weights_are_saved_as_they_are(tmp_path: Path) -> None:
    neuron = ELM(3, 4, num_memory=4, num_mlp_layers=1, mlp_hidden_size=4)
    neuron.cell.w_y.weight.data = neuron.cell.mlp[1].weight.data.T
    save_pretrained(neuron, tmp_path)
    assert_same(from_pretrained(tmp_path), neuron)


def test_what_is_not_a_neuron_is_not_saved(tmp_path: Path) -> None:
    face = torch.nn.Module()
    face.core = small()
    with pytest.raises(
        TypeError,
        match=r"module must be one of .*BranchELM.*, got Module \(a neuron lent to another library has it as \.core\)",
    ):
        save_pretrained(face, tmp_path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"module 1 must be one of .*Linear, ReLU, Sequential.*, got LSTM$"):
        save_pretrained(torch.nn.Sequential(small(), torch.nn.LSTM(2, 3)), tmp_path)
    changed = small()
    changed.cell.w_y = torch.nn.Linear(3, 5)  # type: ignore[assignment]
    with pytest.raises(
        ValueError, match=r"module: cell\.w_y\.weight must have shape \(2, 3\) to fit its config, got \(5, 3\)"
    ):
        save_pretrained(changed, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match=r"directory must be a folder, got the file .*file"):
        save_pretrained(small(), tmp_path / "file")
    with pytest.raises(OSError, match=r"directory must be a folder that can be written, got .*file.below"):
        save_pretrained(small(), tmp_path / "file" / "below")
    with pytest.raises(
        NotADirectoryError, match=r"directory_or_hub_id must be a folder or a hub id, got the file .*file"
    ):
        from_pretrained(tmp_path / "file")
    (tmp_path / "folder" / "config.json").mkdir(parents=True)
    with pytest.raises(OSError, match=r"a folder has its name: .*config\.json"):
        save_pretrained(small(), tmp_path / "folder")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        PermissionError, match=r"directory must be a folder that can be written, got .*: Permission denied"
    ):
        save_pretrained(small(), tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, call: str
) -> None:
    earlier, later = small(), small(variant="v2")
    save_pretrained(earlier, tmp_path)
    calls = iter([error])
    original: Callable[..., Any] = getattr(os, call)

    def once(*arguments: Any) -> Any:
        for one in calls:
            raise one
        return original(*arguments)

    monkeypatch.setattr(os, call, once)
    with pytest.raises(type(error)):
        save_pretrained(later, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    interrupted_while_renaming = call == "replace" and isinstance(error, KeyboardInterrupt)
    assert_same(from_pretrained(tmp_path), later if interrupted_while_renaming else earlier)


def test_an_interruption_between_the_two_files_finishes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pretrained(small(), tmp_path)
    original, calls = os.replace, []

    def replace(*arguments: Any) -> None:
        original(*arguments)
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    later = small(variant="v2")
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(later, tmp_path)
    assert len(calls) == 2
    assert_same(from_pretrained(tmp_path), later)


def test_a_folder_of_two_saves_is_refused(tmp_path: Path) -> None:
    """As a power cut between the two renames would leave it."""
    save_pretrained(small(), tmp_path / "one")
    save_pretrained(small(variant="v2", num_mlp_layers=2), tmp_path / "two")
    os.replace(tmp_path / "two" / "model.safetensors", tmp_path / "one" / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"model\.safetensors must be the file that config\.json was written with.*of another save"
    ):
        from_pretrained(tmp_path / "one")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named_with_what_is_there(tmp_path: Path, name: str) -> None:
    save_pretrained(small(), tmp_path)
    (tmp_path / name).unlink()
    other = {"config.json", "model.safetensors"} - {name}
    with pytest.raises(FileNotFoundError, match=rf"must hold {name}, got {other.pop()}"):
        from_pretrained(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r'must be a folder or a hub id "owner/name", got .*nowhere.*does not exist'
    ):
        from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(tmp_path: Path, keep: int) -> None:
    save_pretrained(small(), tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()[:keep]
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"model\.safetensors must be the file .*cut short"):
        from_pretrained(tmp_path)
    edit_config(tmp_path, weights_sha256=hashlib.sha256(weights).hexdigest())
    with pytest.raises(
        ValueError, match=rf"model\.safetensors must be a whole safetensors file, got {len(weights)} bytes"
    ):
        from_pretrained(tmp_path)


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    change(tensors)
    path.write_bytes(safetensors.torch.save(tensors))
    edit_config(folder, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("cell.w_y.bias"), r"missing \['cell\.w_y\.bias'\], got also none"),
        (lambda t: t.update(spy=torch.ones(1)), r"missing none, got also \['spy'\]"),
        (
            lambda t: t.update({"cell.w_y.bias": torch.ones(3)}),
            r"cell\.w_y\.bias must have shape \(2,\) to fit its config, got \(3,\)",
        ),
        (
            lambda t: t.update({"cell.w_y.bias": torch.ones(2, dtype=torch.int32)}),
            r"cell\.w_y\.bias must hold floating point numbers, got torch\.int32",
        ),
        (
            lambda t: t.pop("cell.input_to_synapse_indices"),
            "input_to_synapse_indices must be there where num_branch is given",
        ),
        (
            lambda t: t.update({"cell.input_to_synapse_indices": torch.full((3, 4), 6)}),
            r"routing must hold input indices in \[0, 6\).*got 6 to 6",
        ),
        (
            lambda t: t.update({"cell.input_to_synapse_indices": torch.zeros(3, 4)}),
            r"routing must hold integers, got torch\.float32",
        ),
        (
            lambda t: t.update({"cell.input_to_synapse_indices": torch.zeros(4, dtype=torch.int64)}),
            r"routing must have shape \(3, 4\)",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    save_pretrained(small(), tmp_path)
    edit_weights(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_a_routing_index_of_a_neuron_without_branches_is_refused(tmp_path: Path) -> None:
    save_pretrained(ELM(3, 1, num_memory=2), tmp_path)
    edit_weights(tmp_path, lambda t: t.update({"cell.input_to_synapse_indices": torch.zeros(3, 1, dtype=torch.int64)}))
    with pytest.raises(ValueError, match=r"only there, got num_branch None"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "transformers"}, "format must be 'elm_neuro', got 'transformers'"),
        ({"format_version": 2}, "format_version must be at most 1, got 2; a newer elm_neuro may read it"),
        ({"format_version": "1"}, "format_version must be at most 1, got '1'"),
        ({"class": "LSTM"}, "class must be one of ALIF, .*, BranchELM, .*, SpikingELM, Tanh, got 'LSTM'"),
        ({"class": "ELM"}, "class must be BranchELM for this config, got ELM"),
        ({"config": [1]}, "config must be an object, got list"),
        (
            {"config": {"input_size": 6, "output_size": 2, "hidden_size": 3}},
            r"config must hold only the fields of ELMConfig, got also \['hidden_size'\]",
        ),
        ({"config": {"output_size": 2}}, r"missing \['input_size'\]"),
        ({"config": {"input_size": "6", "output_size": 2}}, "input_size must be an integer, got '6'"),
        ({"config": {"input_size": 6, "output_size": 2, "learn_w_s": 1}}, "learn_w_s must be True or False, got 1"),
        (
            {"config": {"input_size": 6, "output_size": 2, "num_mlp_layers": 10**12}},
            "num_mlp_layers must be below the number of tensors",
        ),
        (
            {"config": {"input_size": 10**12, "output_size": 10**12, "num_memory": 10**12}},
            "must have shape|must hold the tensors",
        ),
    ],
)
def test_a_config_that_cannot_be_read_says_why(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    save_pretrained(small(), tmp_path)
    edit_config(tmp_path, **values)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ("[" * 100_000, "must be JSON"),
        ("\udcff", "must be JSON"),
        ("{}", "format must be"),
    ],
)
def test_a_config_that_is_no_json_says_why(tmp_path: Path, content: str, message: str) -> None:
    save_pretrained(small(), tmp_path)
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        from_pretrained(tmp_path)


# the hub


def test_a_hub_id_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ImportError,
        match=r"needs huggingface_hub for 'owner/name' \(there is no such folder\): pip install \"elm-neuro\[hub\]\"",
    ):
        from_pretrained("owner/name")


def fake_hub(monkeypatch: pytest.MonkeyPatch, download: Callable[..., str]) -> None:
    module = types.ModuleType("huggingface_hub")
    module.__spec__ = importlib.machinery.ModuleSpec("huggingface_hub", None)
    module.snapshot_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_hub_id_is_downloaded_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    neuron, asked = small(), []
    save_pretrained(neuron, tmp_path / "snapshot")

    def download(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options))
        return str(tmp_path / "snapshot")

    fake_hub(monkeypatch, download)
    monkeypatch.chdir(tmp_path)
    assert_same(from_pretrained("owner/name", revision="v1"), neuron)
    assert asked == [("owner/name", {"revision": "v1", "allow_patterns": ["config.json", "model.safetensors"]})]
    assert_same(from_pretrained("snapshot"), neuron)  # a folder comes first
    with pytest.raises(ValueError, match="revision must be None for a folder, got 'v1'"):
        from_pretrained("snapshot", revision="v1")


def test_a_hub_id_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo_id: str, **_: Any) -> str:
        raise ConnectionError("no route")

    fake_hub(monkeypatch, download)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match="'owner/name' must be a folder or on the Hugging Face hub, got neither: no route"
    ):
        from_pretrained("owner/name")


def test_what_the_hub_is_asked_exists() -> None:
    hub = pytest.importorskip("huggingface_hub")
    from inspect import signature

    assert {"repo_id", "revision", "allow_patterns"} <= set(signature(hub.snapshot_download).parameters)
    assert issubclass(hub.errors.RepositoryNotFoundError, OSError)
    assert issubclass(hub.errors.LocalEntryNotFoundError, OSError)


# the authors' checkpoints


@pytest.fixture(scope="session")
def reference_outputs(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "data/neuronio/reference_outputs.npz") as archive:
        return dict(archive)


def window(reference: dict[str, np.ndarray], number: int, dtype: torch.dtype) -> Tensor:
    """Input of one window as dense frames: excitatory spikes +1, inhibitory ones -1."""
    step, channel = (reference[f"w{number}_input_{name}"].astype(int) for name in ("t", "ch"))
    frames = np.zeros((1, 1000, 1278))
    np.add.at(frames, (0, step, channel), np.where(channel < 639, 1.0, -1.0))
    return torch.from_numpy(frames).to(dtype)


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("events", [False, True])
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["num_memory_10", "num_memory_20"])
def test_published_checkpoints_give_the_authors_outputs(
    shared: Path, reference_outputs: dict[str, np.ndarray], name: str, number: int, events: bool, backend: str
) -> None:
    neuron = from_upstream(shared / "data/checkpoints" / name)
    assert isinstance(neuron, BranchELM)
    neuron.backend = backend
    # float32: absolute, on logits of up to 15; the authors' own float32 and float64 differ by up to 1.2e-5
    for dtype, suffix, atol in ((torch.float32, "", 2e-5), (torch.float64, "_f64", 1e-9)):
        neuron = neuron.to(dtype)
        frames = window(reference_outputs, number, dtype)
        with torch.no_grad():
            y, _ = neuron(SpikeEvents.from_frames(frames) if events else frames)
        np.testing.assert_allclose(
            y[0].numpy(), reference_outputs[f"{name}_w{number}_logits{suffix}"], rtol=0, atol=atol
        )
    head = neuronio_head(y[0])
    spike, soma = reference_outputs[f"{name}_w{number}_eval"].T  # the soma there is not yet shifted
    np.testing.assert_allclose(head.spike_probability.numpy(), spike, rtol=0, atol=1e-5)
    np.testing.assert_allclose((head.soma_mv + 67.7).numpy(), soma, rtol=0, atol=3e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_the_head_gives_the_voltage_of_the_simulation(
    shared: Path, reference_outputs: dict[str, np.ndarray], number: int
) -> None:
    """The recorded voltage is met without bias, which no wrong shift or scale would do; window 0 has spikes, window 1 has none."""
    neuron = from_upstream(shared / "data/checkpoints/num_memory_20")
    with torch.no_grad():
        head = neuronio_head(neuron(window(reference_outputs, number, torch.float32))[0][0])
    truth = np.minimum(reference_outputs[f"w{number}_y_soma_mV"], -55.0)[150:]
    error = head.soma_mv.numpy()[150:] - truth
    assert abs(float(error.mean())) < 0.1  # mV
    assert float(np.median(np.abs(error))) < 1.0
    assert 1.0 - error.var() / truth.var() > 0.65


def test_published_checkpoints_are_taken_over_verbatim(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/checkpoints/num_memory_10"
    state = torch.load(folder / "neuronio_best_model_state.pt", map_location="cpu", weights_only=True)
    neuron = from_upstream(folder)
    cell, config = neuron.cell, neuron.config
    assert torch.equal(cell._proto_w_s.flatten(), state["_proto_w_s"])
    assert bool((cell._proto_w_s < 0).any())
    assert torch.equal(cell._proto_tau_m, state["_proto_tau_m"])
    assert cell.input_to_synapse_indices is not None
    assert torch.equal(cell.input_to_synapse_indices, routing_index("neuronio", 1278, 45, 100))
    assert int((cell.input_to_synapse_indices < 0).sum()) == int((~state["valid_indices_mask"]).sum())
    assert float(cell.tau_m.min()) == pytest.approx(1.00000095, abs=1e-8)
    assert (config.variant, config.lambda_, config.tau_s, config.delta_t, config.activation) == (
        "v1",
        5.0,
        5.0,
        1.0,
        "relu",
    )
    assert (config.routing, config.learn_tau_m, config.learn_w_s, config.bounds) == (
        "neuronio",
        False,
        True,
        (1.0, 150.0),
    )
    save_pretrained(neuron, tmp_path)
    assert_same(from_pretrained(tmp_path), neuron)


class Upstream:
    """A made-up checkpoint in the authors' format, and its neuron by their equations: one synapse trace each, float64 throughout."""

    def __init__(
        self, seed: int = 0, *, v2: bool = False, routing: str | None = "neuronio_routing", **config: Any
    ) -> None:
        torch.manual_seed(seed)
        branches, synapses = (3, 4) if routing else (3, 2)
        self.v2, self.routing, num_input = v2, routing, 6
        self.config: dict[str, Any] = {
            "num_input": num_input,
            "num_output": 2,
            "num_memory": 5,
            "num_branch": branches,
            "num_synapse_per_branch": synapses,
        }
        self.config |= {"input_to_synapse_routing": routing, **config}
        self.config = {name: value for name, value in self.config.items() if value is not ...}
        branches, synapses = self.config.get("num_branch") or num_input, self.config.get("num_synapse_per_branch", 1)
        memory, layers = self.config["num_memory"], self.config.get("mlp_num_layers", 1)
        hidden = self.config.get("mlp_hidden_size") or 2 * memory
        sizes = [branches + memory, *[hidden] * layers, memory]
        logits = torch.randn(memory)
        logits[-1] = float("inf")
        self.state: dict[str, Any] = {
            "_proto_w_s": 0.5 + torch.randn(branches * synapses),
            ("tau_b" if v2 else "tau_s"): torch.full((branches if v2 else branches * synapses,), 5.0),
            "_proto_tau_m": logits,
            "w_y.weight": torch.randn(2, memory),
            "w_y.bias": torch.randn(2),
            "input_to_synapse_indices": torch.empty(0),
            "valid_indices_mask": torch.empty(0),
        }
        for i in range(layers + 1):
            self.state[f"mlp.network.{2 * i}.weight"] = torch.randn(sizes[i + 1], sizes[i]) / sizes[i] ** 0.5
            self.state[f"mlp.network.{2 * i}.bias"] = torch.randn(sizes[i + 1])
        if routing:
            self.state["input_to_synapse_indices"] = torch.randint(num_input, (branches * synapses,))
            mask = torch.rand(branches * synapses) < 0.8
            self.state["valid_indices_mask"] = (
                mask if routing == "neuronio_routing" else torch.ones_like(mask, dtype=torch.int64)
            )

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / "model_config.json").write_text(json.dumps(self.config))
        torch.save(self.state, folder / "neuronio_best_model_state.pt")
        return folder

    def run(self, x: Tensor) -> Tensor:
        config, state = self.config, {name: tensor.double() for name, tensor in self.state.items()}
        low, high = config.get("memory_tau_min", 1.0), config.get("memory_tau_max", 1000.0)
        high = max(low + 3e-6, high) if self.v2 else high
        delta_t, lambda_ = config.get("delta_t", 1.0), config.get("lambda_value", 5.0)
        tau_m = ((high - low) * torch.sigmoid(state["_proto_tau_m"]) + low).clamp(min=1e-6)
        kappa_m = torch.exp(-delta_t / tau_m)
        gain = 1.0 - torch.exp(-delta_t * lambda_ / tau_m) if self.v2 else lambda_ * (1.0 - kappa_m)
        branches = config.get("num_branch") or config["num_input"]
        tau_s = state["tau_b"].repeat_interleave(config.get("num_synapse_per_branch", 1)) if self.v2 else state["tau_s"]
        kappa_s = torch.exp(-delta_t / tau_s)
        synapse, memory, outputs = (
            torch.zeros(x.shape[0], len(tau_s)).double(),
            torch.zeros(x.shape[0], len(tau_m)).double(),
            [],
        )
        layers = config.get("mlp_num_layers", 1)
        activation = torch.relu if config.get("mlp_activation", "relu") == "relu" else torch.nn.functional.silu
        for x_t in x.unbind(1):
            if self.routing:
                x_t = x_t[:, self.state["input_to_synapse_indices"]] * state["valid_indices_mask"]
            synapse = kappa_s * synapse + torch.relu(state["_proto_w_s"]) * x_t
            h = torch.cat([synapse.view(len(x_t), branches, -1).sum(-1), kappa_m * memory], -1)
            for i in range(layers + 1):
                h = h @ state[f"mlp.network.{2 * i}.weight"].T + state[f"mlp.network.{2 * i}.bias"]
                h = activation(h) if i < layers else 1.7159 * torch.tanh(h * 2 / 3)
            memory = kappa_m * memory + gain * h
            outputs.append(memory @ state["w_y.weight"].T + state["w_y.bias"])
        return torch.stack(outputs, 1)


@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"routing": "random_routing"},
        {"routing": None},
        {"routing": None, "num_branch": ..., "num_synapse_per_branch": ...},
        {"routing": "random_routing", "num_branch": None, "num_synapse_per_branch": 2},
        {"mlp_num_layers": 0},
        {"mlp_num_layers": 2, "mlp_hidden_size": 7, "mlp_activation": "silu"},
        {"memory_tau_min": 0.0, "memory_tau_max": 500.0, "learn_memory_tau": True, "mlp_hidden_size": 0},
        {"lambda_value": 2.0, "delta_t": 3.0, "w_s_value": 0.1, "memory_tau_max": 150.0},
    ],
    ids=str,
)
def test_every_form_of_upstreams_neuron_is_read(tmp_path: Path, v2: bool, config: dict[str, Any]) -> None:
    upstream = Upstream(v2=v2, **config)
    neuron = from_upstream(upstream.write(tmp_path)).double()
    assert isinstance(neuron, BranchELM) == ("num_branch" not in config or config["num_branch"] is None)
    assert neuron.config.learn_tau_m == upstream.config.get("learn_memory_tau", False)
    x = torch.randn(2, 30, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(neuron(x)[0], upstream.run(x), rtol=1e-9, atol=1e-9)
    save_pretrained(neuron, tmp_path / "own")
    assert_same(from_pretrained(tmp_path / "own"), neuron)


def test_branches_may_differ_in_their_time_constant(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.state["tau_s"] = torch.tensor([2.0, 5.0, 9.0]).repeat_interleave(4)
    neuron = from_upstream(upstream.write(tmp_path)).double()
    assert neuron.config.tau_s == (2.0, 5.0, 9.0)
    x = torch.randn(1, 30, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(neuron(x)[0], upstream.run(x), rtol=1e-9, atol=1e-9)


def test_v2_keeps_its_range_of_time_constants_open(tmp_path: Path) -> None:
    upstream = Upstream(v2=True, memory_tau_min=10.0, memory_tau_max=10.0)
    assert from_upstream(upstream.write(tmp_path)).config.bounds == (10.0, 10.0 + 3e-6)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"tau_s": torch.arange(12.0) + 1},
            r"tau_s must be the same for all synapses of a branch, got \[1\.0, 2\.0, 3\.0, 4\.0\] on branch 0",
        ),
        ({"tau_s": torch.zeros(12)}, "tau_s must be a finite number above 0, got 0.0"),
        ({"tau_s": ...}, r"must hold tau_s \(v1\) or tau_b \(v2\), got \['_proto_tau_m'"),
        ({"tau_b": torch.ones(3)}, r"must hold tau_s \(v1\) or tau_b \(v2\), got \['tau_s', 'tau_b'\]"),
        ({"w_y.bias": ...}, r"missing \['w_y\.bias'\], got also none"),
        ({"spy": torch.ones(1)}, r"missing none, got also \['spy'\]"),
        ({"mlp.network.4.bias": torch.ones(5)}, r"got also \['mlp\.network\.4\.bias'\]"),
        ({"_proto_w_s": torch.ones(13)}, r"_proto_w_s must have shape \(12,\) to fit its config, got \(13,\)"),
        ({"_proto_tau_m": torch.full((5,), float("nan"))}, "_proto_tau_m must hold no NaN"),
        (
            {"_proto_tau_m": torch.ones(5, dtype=torch.int64)},
            r"_proto_tau_m must hold floating point numbers, got torch\.int64",
        ),
        ({"input_to_synapse_indices": torch.full((12,), 6)}, r"routing must hold input indices in \[0, 6\)"),
        ({"input_to_synapse_indices": torch.full((12,), -1)}, "input_to_synapse_indices must not be negative, got -1"),
        (
            {"input_to_synapse_indices": torch.ones(12)},
            r"input_to_synapse_indices must hold integers, got torch\.float32",
        ),
        ({"input_to_synapse_indices": None}, r"input_to_synapse_indices must have shape \(12,\)"),
        ({"valid_indices_mask": torch.full((12,), 2)}, r"valid_indices_mask must hold 0 and 1 only, got \[2\]"),
        ({"w_y.bias": "text"}, "must hold a plain state dict of dense tensors, got str for 'w_y.bias'"),
        ({"w_y.bias": torch.ones(2).to_sparse()}, "dense tensors, got Tensor for 'w_y.bias'"),
        ({"w_y.bias": torch.ones(2, device="meta")}, "dense tensors, got Tensor for 'w_y.bias'"),
    ],
)
def test_a_state_dict_that_does_not_fit_is_named(tmp_path: Path, state: dict[str, Any], message: str) -> None:
    upstream = Upstream()
    upstream.state = {name: tensor for name, tensor in (upstream.state | state).items() if tensor is not ...}
    with pytest.raises(ValueError, match=message):
        from_upstream(upstream.write(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_memory": 6}, r"must have shape .* to fit its config"),
        ({"num_output": 3}, r"w_y\.bias|w_y\.weight must have shape \(3, 5\) to fit its config, got \(2, 5\)"),
        ({"num_branch": 4}, r"must have shape .* to fit its config"),
        ({"num_input": 4}, r"routing must hold input indices in \[0, 4\)"),
        ({"mlp_num_layers": 2}, r"missing \['mlp\.network\.4\.bias', 'mlp\.network\.4\.weight'\]"),
        ({"mlp_num_layers": 10**12}, "num_mlp_layers must be below the number of tensors"),
        ({"num_input": ...}, r"the config must hold num_input and num_output, missing \['num_input'\]"),
        ({"num_input": "6"}, "input_size must be an integer, got '6'"),
        ({"mlp_activation": "gelu"}, r"activation must be one of \['relu', 'silu'\], got 'gelu'"),
        ({"input_to_synapse_routing": "other"}, "input_to_synapse_routing must be one of .*, got 'other'"),
        ({"input_to_synapse_routing": ["other"]}, "input_to_synapse_routing must be one of"),
        ({"input_to_synapse_routing": None}, "must equal num_input without routing, got 3 [*] 4 for 6"),
        ({"memory_tau_max": "150"}, "memory_tau_max must be a time in ms, got '150'"),
        ({"memory_tau_min": 200.0, "memory_tau_max": 100.0}, "tau_m_init must be two times in ms"),
        ({"learn_memory_tau": 1}, "learn_memory_tau must be true or false, got 1"),
        ({"hidden_size": 3}, r"arguments of upstream's v1 neuron only, got also \['hidden_size'\]"),
        ({"tau_b_value": 3.0}, r"arguments of upstream's v1 neuron only, got also \['tau_b_value'\]"),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    upstream = Upstream()
    upstream.config = {name: value for name, value in (upstream.config | config).items() if value is not ...}
    with pytest.raises(ValueError, match=message):
        from_upstream(upstream.write(tmp_path))


@pytest.mark.parametrize("name", ["model_config.json", "neuronio_best_model_state.pt"])
def test_a_missing_file_of_upstream_is_named(tmp_path: Path, name: str) -> None:
    (Upstream().write(tmp_path) / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"must hold {name}, got (model_config\.json|neuronio_best_model_state\.pt)"
    ):
        from_upstream(tmp_path)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    upstream, trace = Upstream(), tmp_path / "trace"
    upstream.state["w_y.bias"] = Malicious(trace)
    folder = upstream.write(tmp_path / "model")
    for kind in ("torch", "pickle"):
        if kind == "pickle":
            (folder / "neuronio_best_model_state.pt").write_bytes(pickle.dumps(upstream.state))
        with pytest.raises(
            ValueError, match=r"must be a whole file with a plain state dict, got one that torch.load refuses"
        ):
            from_upstream(folder)
        assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.exists()  # as it would have


@pytest.mark.parametrize("keep", [0, 2, 200, -30])
def test_a_truncated_state_dict_is_refused(tmp_path: Path, keep: int) -> None:
    path = Upstream().write(tmp_path) / "neuronio_best_model_state.pt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="must be a whole file with a plain state dict"):
        from_upstream(tmp_path)


@pytest.mark.parametrize("value", [[torch.ones(1)], torch.ones(1), {1: torch.ones(1)}])
def test_what_is_no_state_dict_is_named(tmp_path: Path, value: Any) -> None:
    upstream = Upstream()
    upstream.state = value
    with pytest.raises(ValueError, match="must hold a plain state dict"):
        from_upstream(upstream.write(tmp_path))


def test_a_whole_pickled_neuron_is_refused(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.state = small()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"torch.load refuses"):
        from_upstream(upstream.write(tmp_path))


def test_the_head_wants_two_outputs() -> None:
    with pytest.raises(ValueError, match=r"y must have shape \(\.\.\., 2\), spike logit and soma, got \(4, 3\)"):
        neuronio_head(torch.zeros(4, 3))


# downloads


class Server(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which it is served."""
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(folder))) as served:
        thread = threading.Thread(target=served.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


@pytest.fixture
def published(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A made-up checkpoint in the place of num_memory_10, and its checksums in the table."""
    folder = Upstream().write(server[0] / "num_memory_10")
    for table, file in (
        (_fetch.CONFIG_SHA256, "model_config.json"),
        (_fetch.WEIGHTS_SHA256, "neuronio_best_model_state.pt"),
    ):
        monkeypatch.setitem(table, "num_memory_10", hashlib.sha256((folder / file).read_bytes()).hexdigest())
    return folder, server[1]


def test_the_table_names_fifteen_checkpoints_of_the_authors(shared: Path) -> None:
    assert len(_fetch.CONFIG_SHA256) == len(_fetch.WEIGHTS_SHA256) == 15
    assert list(_fetch.CONFIG_SHA256) == list(_fetch.WEIGHTS_SHA256)
    for name in ("num_memory_10", "num_memory_20"):
        folder = shared / "data/checkpoints" / name
        assert hashlib.sha256((folder / "model_config.json").read_bytes()).hexdigest() == _fetch.CONFIG_SHA256[name]
        assert (
            hashlib.sha256((folder / "neuronio_best_model_state.pt").read_bytes()).hexdigest()
            == _fetch.WEIGHTS_SHA256[name]
        )


def test_a_checkpoint_is_downloaded_once(published: tuple[Path, str], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    folder = fetch_upstream(
        "num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1], progress=lambda *event: seen.append(event)
    )
    assert folder == tmp_path / "cache" / "num_memory_10"
    assert sorted(path.name for path in folder.iterdir()) == ["model_config.json", "neuronio_best_model_state.pt"]
    assert from_upstream(folder).config.num_memory == 5
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert {name: (done, total) for name, done, total in seen} == {name: (size, size) for name, size in sizes.items()}
    seen.clear()
    (published[0] / "model_config.json").unlink()
    assert (
        fetch_upstream(
            "num_memory_10",
            cache_dir=tmp_path / "cache",
            base_url=published[1],
            progress=lambda *event: seen.append(event),
        )
        == folder
    )
    assert not seen


def test_only_what_is_missing_or_damaged_is_fetched_again(published: tuple[Path, str], tmp_path: Path) -> None:
    fetch = functools.partial(fetch_upstream, "num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])
    folder = fetch()
    for damage in (b"", b"half", None):
        path = folder / "neuronio_best_model_state.pt"
        path.unlink() if damage is None else path.write_bytes(damage)
        names: list[str] = []
        fetch(progress=lambda name, *_: names.append(name))  # noqa: B023
        assert set(names) == {"neuronio_best_model_state.pt"}
        assert path.read_bytes() == (published[0] / path.name).read_bytes()


def test_an_interrupted_download_leaves_nothing_and_is_taken_up(published: tuple[Path, str], tmp_path: Path) -> None:
    def interrupt(name: str, *_: object) -> None:
        if name.endswith(".pt"):
            raise KeyboardInterrupt

    fetch = functools.partial(fetch_upstream, "num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])
    with pytest.raises(KeyboardInterrupt):
        fetch(progress=interrupt)
    assert [path.name for path in (tmp_path / "cache" / "num_memory_10").iterdir()] == ["model_config.json"]
    assert from_upstream(fetch()).config.num_memory == 5


def test_a_changed_file_is_refused(published: tuple[Path, str], tmp_path: Path) -> None:
    (published[0] / "neuronio_best_model_state.pt").write_bytes(b"other")
    with pytest.raises(
        ValueError,
        match=r"neuronio_best_model_state\.pt must have the sha256 \w{64}, got \w{64} \(5 bytes\): it is damaged or not",
    ):
        fetch_upstream("num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])
    assert not (tmp_path / "cache" / "num_memory_10" / "neuronio_best_model_state.pt").exists()


def test_an_endless_file_is_cut_off(published: tuple[Path, str], tmp_path: Path) -> None:
    (published[0] / "model_config.json").write_bytes(bytes(_fetch.MAX_BYTES + 1))
    with pytest.raises(ValueError, match=r"model_config\.json must have at most 1048576 bytes, got more"):
        fetch_upstream("num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])


def test_without_a_network_the_message_says_what_to_put_where(server: tuple[Path, str], tmp_path: Path) -> None:
    told = r"/num_memory_7/model_config\.json could not be downloaded \(HTTP Error 404.*\); without a network, put model_config\.json and .*\.pt"
    message = told + r" from https://raw\..*/num_memory_7 into .*cache.num_memory_7"
    with pytest.raises(ConnectionError, match=message):
        fetch_upstream("num_memory_7", cache_dir=tmp_path / "cache", base_url=server[1])
    with pytest.raises(ConnectionError, match=r"could not be downloaded .*; without a network"):
        fetch_upstream("num_memory_7", cache_dir=tmp_path / "cache", base_url="http://127.0.0.1:9")


def test_a_connection_that_closes_early_is_told(
    published: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(handler: Server, source: Any, output: Any) -> None:
        output.write(source.read()[:10])

    monkeypatch.setattr(Server, "copyfile", short)
    with pytest.raises(ConnectionError, match=r"closed after 10 of \d+ bytes|IncompleteRead|10 bytes read"):
        fetch_upstream("num_memory_10", cache_dir=tmp_path / "cache", base_url=published[1])


@pytest.mark.parametrize("base_url", ["http://example.org/models", "file:///etc", "ftp://127.0.0.1"])
def test_only_https_is_asked(base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", None)
    with pytest.raises(ValueError, match="base_url must begin with https://, got "):
        fetch_upstream("num_memory_10", cache_dir=tmp_path, base_url=base_url)


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"name must be one of num_memory_1, .*, best_elm_neuron, got '\.\./\.\./etc'"):
        fetch_upstream("../../etc")


def test_the_cache_follows_the_environment(
    published: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert (
        fetch_upstream("num_memory_10", base_url=published[1])
        == tmp_path / "xdg" / "elm_neuro" / "upstream" / "num_memory_10"
    )
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
        assert (
            fetch_upstream("num_memory_10", base_url=published[1])
            == tmp_path / "home" / ".cache" / "elm_neuro" / "upstream" / "num_memory_10"
        )


def test_files_are_written_with_the_usual_permissions(tmp_path: Path) -> None:
    write_whole({tmp_path / "one": b"1"})
    (tmp_path / "two").write_bytes(b"2")
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "two").stat().st_mode
