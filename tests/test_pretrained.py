"""Layers and networks survive the disk bit by bit, and a bad file says what is wrong with it.

Long: what is written, read and refused is tested on the same saved neurons.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from elm_neuro import (
    ALIF,
    ELM,
    LIF,
    ALIFCell,
    BranchELM,
    ELMCell,
    ELMNetwork,
    ELMNetworkClassifier,
    SpikingELM,
    pretrained,
    suggest,
)
from elm_neuro.checkpoints import from_pretrained, save_pretrained
from elm_neuro.functional import ATan, Boxcar, FastSigmoid, MultiGaussian
from tests.saved_neurons import assert_same, small
from tests.strategies import neurons

FILES = ["README.md", "config.json", "model.safetensors"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


TWO = np.float32(2.0)
WITH_NUMPY = {
    "ELM": lambda: ELM(4, 2, delta_t=np.int64(2), tau_s=TWO, tau_m_init=(TWO, 8 * TWO), lambda_=TWO, w_s_init=TWO),
    "ELM as suggested": lambda: ELM(4, 2, **suggest(TWO, 100)),
    "LIF": lambda: LIF(4, 2, delta_t=np.float16(1.0), tau_v=4 * TWO, latency=TWO, surrogate=FastSigmoid(TWO)),
    "ALIF": lambda: ALIF(4, 2, tau_a=40 * TWO, b_init=TWO / 20),
    "SpikingELM": lambda: SpikingELM(ELM(4, 2), threshold=TWO, surrogate=FastSigmoid(TWO)),
    "ELMNetwork": lambda: ELMNetwork(4, 6, delta_t=TWO, tau_b=TWO, input_scale=TWO, rewiring=TWO / 4),
}


@pytest.mark.parametrize("make", WITH_NUMPY.values(), ids=WITH_NUMPY)
def test_numbers_of_numpy_are_numbers_and_come_back(make: Callable[[], Any], tmp_path: Path) -> None:
    neuron = make()
    save_pretrained(neuron, tmp_path)
    assert_same(from_pretrained(tmp_path), neuron)


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
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


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
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    interrupted_while_renaming = call == "replace" and isinstance(error, KeyboardInterrupt)
    assert_same(from_pretrained(tmp_path), later if interrupted_while_renaming else earlier)


def test_an_interruption_between_two_files_finishes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert len(calls) == len(FILES)
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
    others = ", ".join(file for file in FILES if file != name)
    with pytest.raises(FileNotFoundError, match=rf"must hold {name}, got {others}"):
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
        ({"format_version": True}, "format_version must be at most 1, got True"),
        ({"config": [1]}, "config must be an object, got list"),
        (
            {"config": {"input_size": 6, "output_size": 2, "hidden_size": 3}},
            r"config must hold only the fields of ELMConfig, got also \['hidden_size'\]",
        ),
        ({"config": {"output_size": 2}}, r"missing \['input_size'\]"),
        ({"config": {"input_size": "6", "output_size": 2}}, "input_size must be an integer, got '6'"),
        ({"config": {"input_size": 6, "output_size": 2, "learn_w_s": 1}}, "learn_w_s must be True or False, got 1"),
        (
            {"config": {"input_size": 6, "output_size": 2, "num_mlp_layers": 10**9}},
            "num_mlp_layers must be below the number of tensors",
        ),
        (
            {"config": {"input_size": 10**9, "output_size": 10**9, "num_memory": 10**9}},
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
        ('{"format": "elm_neuro", "format": "elm_neuro"}', "each name once, got 'format' twice"),
        ('{"format": "elm_neuro", "config": {"tau_s": 1, "tau_s": 2}}', "each name once, got 'tau_s' twice"),
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


# every layer, and networks of them


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "ELMCell": lambda: ELMCell(4, 2, num_memory=3, num_branch=2, num_synapse_per_branch=4, routing="random"),
    "LIF": lambda: LIF(4, 3, tau_v=20.0, surrogate=FastSigmoid(25.0), detach_reset=False),
    "ALIF": lambda: ALIF(4, 3, recurrent=True, latency=2.5, surrogate=Boxcar(0.7, 0.4), b_init=0.3),
    "ALIFCell": lambda: ALIFCell(4, 3, adaptive=False, surrogate=MultiGaussian(sigma=0.4), delta_t=2.0),
    "SpikingELM": lambda: SpikingELM(
        ELM(4, 2, num_memory=3, num_neuron=2),
        threshold=torch.tensor([[0.25, 1.0], [2.0, 0.1]]),
        learn_threshold=True,
        graded_factor=2.0,
        surrogate=ATan(3.0),
        reset="subtract",
    ),
    "spiking cell": lambda: SpikingELM(ELMCell(4, 2, num_memory=3), threshold=0.1, stochastic=True),
    "spiking ALIF": lambda: SpikingELM(ALIF(4, 2), learn_graded_factor=True),
    "Sequential": lambda: nn.Sequential(
        small(), nn.Linear(2, 4, bias=False), nn.LayerNorm(4, eps=1e-3), nn.Dropout(0.3), nn.GELU("tanh"), LIF(4, 3)
    ),
    "nested": lambda: nn.Sequential(
        nn.Sequential(nn.Flatten(2, -1), nn.Linear(6, 4), nn.ReLU(), nn.Identity()), nn.Tanh(), SpikingELM(ELM(4, 2))
    ),
    "no tensors": lambda: nn.Sequential(nn.Sigmoid(), nn.SiLU(inplace=True)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_layer_comes_back_bit_by_bit(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = LAYERS[name]().to(dtype)
    before = torch.get_rng_state()
    save_pretrained(module, tmp_path)
    found = from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(found) == repr(module) and type(found) is type(module)
    if not isinstance(module, nn.Sequential):
        assert found.config == module.config
        assert type(module).from_pretrained(tmp_path).config == module.config  # type: ignore[attr-defined]
    ours, theirs = module.state_dict(), found.state_dict()
    assert list(ours) == list(theirs)
    for key, tensor in ours.items():
        assert theirs[key].dtype == tensor.dtype and torch.equal(theirs[key], tensor), key
    assert [(key, p.requires_grad) for key, p in found.named_parameters()] == [
        (key, p.requires_grad) for key, p in module.named_parameters()
    ]


def test_a_loaded_network_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleDict({"elm": SpikingELM(small(), threshold=0.1, reset="zero"), "lif": LIF(2, 3, tau_v=5.0)})
    network = nn.Sequential(layers["elm"], layers["lif"])
    network.train(False)
    x = torch.poisson(torch.full((3, 20, 6), 0.9))
    save_pretrained(network, tmp_path)
    found = from_pretrained(tmp_path)
    outputs = []
    for one in (network, found):
        spikes, _ = one[0](x)
        outputs.append((spikes, *one[1](spikes)))
    assert outputs[0][0].any()
    assert torch.equal(outputs[0][0], outputs[1][0]) and torch.equal(outputs[0][1], outputs[1][1])


def test_a_module_without_numbers_may_stand_twice(tmp_path: Path) -> None:
    relu, inner = nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Identity())
    network = nn.Sequential(nn.Linear(3, 4), relu, inner, nn.Linear(4, 4), inner, relu)
    save_pretrained(network, tmp_path)
    loaded, x = from_pretrained(tmp_path), torch.randn(5, 3)
    assert isinstance(loaded, nn.Sequential)
    assert [type(part) for part in loaded] == [type(part) for part in network]
    assert torch.equal(loaded(x), network(x))


@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), lambda: ELM(4, 4, 2), lambda: nn.Sequential(LIF(4, 4))])
def test_a_module_with_numbers_that_stands_twice_is_refused(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    shared = make()
    with pytest.raises(
        ValueError, match="module 2 must be one of its own, got module 0 again, whose numbers it shares"
    ):
        save_pretrained(nn.Sequential(shared, nn.ReLU(), shared), tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_kind_is_known_after_the_import_of_the_package_alone(tmp_path: Path) -> None:
    """What a file names is imported by who reads it: folders of each kind, its states and configurations."""
    network = {"num_memory": 2, "num_branch": 3, "num_synapse_per_branch": 2}
    layers = [LIF(3, 2), ELMNetworkClassifier(3, 2, 4, **network), SpikingELM(ELMNetwork(3, 2, **network))]
    save_pretrained(ELM(3, 2), tmp_path / "elm")
    for at, layer in enumerate(layers):
        save_pretrained(nn.Sequential(layer), tmp_path / str(at))
        torch.save((layer.initial_state(1), layer.config), tmp_path / f"{at}.pt")
    code = """
import json, os, sys, torch, elm_neuro
elm_neuro.pretrained.from_pretrained(f"{sys.argv[1]}/elm")  # brings more of torch, and no other layer
for at in range(int(sys.argv[2])):
    if os.fork():  # a process each
        os.wait()
        continue
    folder = f"{sys.argv[1]}/{at}"
    def of_folder(): return [type(elm_neuro.pretrained.from_pretrained(folder)[0]).__name__]
    def of_file(): return [type(one).__name__ for one in torch.load(f"{folder}.pt", weights_only=True)]
    found = {ask.__name__: ask() for ask in ((of_folder, of_file), (of_file, of_folder))[at % 2]}
    print(json.dumps([found, elm_neuro.pretrained.kinds()]), flush=True)
    os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, str(len(layers))], capture_output=True, text=True, check=True
    )
    for layer, line in zip(layers, done.stdout.splitlines(), strict=True):
        found, kinds = json.loads(line)
        assert found["of_folder"] == [type(layer).__name__]
        assert found["of_file"] == [layer.state_type.__name__, type(layer.config).__name__]
        assert kinds == pretrained.kinds()


def test_names_of_kinds_that_are_imported_later_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pretrained._kinds._LATER, "Theirs", "elm_neuro.nn._elm")

    class Theirs(ELM):
        pass

    with pytest.raises(ValueError, match=r"Theirs must be the name of one class, got .* and that of elm_neuro.nn._elm"):
        pretrained.register(Theirs)
    assert "Theirs" in pretrained.kinds()


@pytest.mark.parametrize("name", ["elm", "branch_elm"])
def test_folders_of_version_0_1_load_as_they_were(name: str) -> None:
    """What tests/golden/pretrained/make.py wrote with the package at commit 87c09a1."""
    folder = Path(__file__).parent / "golden" / "pretrained" / name
    record = torch.load(folder / "record.pt", weights_only=True)
    neuron = from_pretrained(folder, backend="reference")
    for key, tensor in safetensors.torch.load_file(folder / "model.safetensors").items():
        assert torch.equal(neuron.state_dict()[key], tensor)
    y, state = neuron(record["x"])
    tight = {"rtol": 1e-6 if y.dtype == torch.float32 else 1e-14, "atol": 0.0}  # other CPUs round otherwise
    for ours, theirs in ((y, record["y"]), (state.b, record["b"]), (state.m, record["m"])):
        torch.testing.assert_close(ours.detach(), theirs, **tight)


def test_the_backend_goes_to_every_layer_that_has_it(tmp_path: Path) -> None:
    save_pretrained(nn.Sequential(small(), nn.Linear(2, 3), LIF(3, 2)), tmp_path)
    found = from_pretrained(tmp_path, backend="reference")
    assert found[0].backend == found[2].backend == "reference"
    found = from_pretrained(tmp_path, backend="torch")
    assert found[0].backend == "torch"
    with pytest.raises(ValueError, match='backend must be "auto" or one of'):
        from_pretrained(tmp_path, backend="quick")


@pytest.mark.parametrize("make", [lambda s: LIF(3, 2, surrogate=s), lambda s: SpikingELM(ELM(3, 2), surrogate=s)])
def test_a_surrogate_of_someone_else_is_refused_and_those_of_ours_named(
    tmp_path: Path, make: Callable[[Any], nn.Module]
) -> None:
    with pytest.raises(TypeError, match=r"surrogate must be one of ATan, Boxcar, .*, Sigmoid .*, got"):
        save_pretrained(make(torch.sign), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_surrogate_that_was_set_later_is_the_one_that_is_saved(tmp_path: Path) -> None:
    layer = LIF(3, 2)
    layer.cell.surrogate = ATan(5.0)
    save_pretrained(layer, tmp_path)
    assert from_pretrained(tmp_path).cell.surrogate == ATan(5.0)


def test_a_folder_of_another_class_is_refused_by_a_class(tmp_path: Path) -> None:
    save_pretrained(LIF(3, 2), tmp_path)
    assert isinstance(ALIF.from_pretrained(tmp_path), LIF)
    with pytest.raises(ValueError, match="must hold SpikingELM, got LIF"):
        SpikingELM.from_pretrained(tmp_path)


def test_subclasses_and_layers_inside_others_that_are_unknown_are_not_saved(tmp_path: Path) -> None:
    class Mine(nn.Linear):
        pass

    with pytest.raises(TypeError, match=r"module 0 must be one of .*, got Mine$"):
        save_pretrained(nn.Sequential(Mine(2, 3)), tmp_path)


class OwnELM(ELM):
    """As an ELM, and no more."""


class OwnBranchELM(BranchELM):
    """As a Branch-ELM, and no more."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnELM(6, 2, 3),
        lambda: OwnELM(6, 2, 3, num_branch=3, num_synapse_per_branch=4, routing="window"),
        lambda: OwnBranchELM(6, 2, 3, num_branch=3, num_synapse_per_branch=4),
    ],
)
def test_a_subclass_that_is_registered_comes_back(
    tmp_path: Path, make: Callable[[], ELM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained._kinds, "_KINDS", dict(pretrained._kinds._KINDS))
    neuron = make()
    pretrained.register(type(neuron))
    save_pretrained(SpikingELM(neuron), tmp_path)
    assert_same(from_pretrained(tmp_path).core, neuron)
    assert type(from_pretrained(tmp_path).core) is type(neuron)
    plain = BranchELM if neuron.config.num_branch else ELM
    assert type(ELM.from_config(neuron.config)) is plain is type(BranchELM.from_config(neuron.config))


TANH = {"class": "Tanh", "config": {}}


def test_a_layer_inside_a_wrapper_is_not_taken_for_one_of_ours_of_the_same_name(tmp_path: Path) -> None:
    stranger = type("ELM", (ELM,), {})
    with pytest.raises(TypeError, match=r"module\.core must be one of .*, got ELM$"):
        save_pretrained(SpikingELM(stranger(3, 2)), tmp_path)
    assert not list(tmp_path.iterdir())


def inner(config: dict[str, Any], index: int) -> dict[str, Any]:
    """Configuration of a module of a Sequential."""
    found: dict[str, Any] = config["modules"][index][1]["config"]
    return found


def edited(folder: Path, module: nn.Module, change: Callable[[dict[str, Any]], object]) -> None:
    save_pretrained(module, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["config"])
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        ("LIF", lambda c: c.update(adaptive=True), "adaptive must be False in a LIF"),
        ("LIF", lambda c: c.update(tau_v="x"), "tau_v must be a time above 0 ms, got 'x'"),
        ("LIF", lambda c: c.update(output_size=10**9), r"cell\.weight must have shape \(1000000000, 4\)"),
        ("LIF", lambda c: c.update(surrogate={"class": "eval"}), "surrogate must have a class of ATan"),
        ("LIF", lambda c: c.update(surrogate={"class": "ATan", "alpha": "x"}), "surrogate ATan must have numbers"),
        ("LIF", lambda c: c.update(surrogate={"class": []}), "unhashable|surrogate must have a class"),
        ("LIF", lambda c: c.update(hidden=1), r"only the fields of ALIFConfig, got also \['hidden'\]"),
        ("SpikingELM", lambda c: c.update(core=[1]), "core must be an object with class and config"),
        ("SpikingELM", lambda c: c.pop("core"), "core must be an object with class and config, got None"),
        ("SpikingELM", lambda c: c["core"].update({"class": "Thing"}), "class must be one of ALIF, .*, got 'Thing'"),
        ("SpikingELM", lambda c: c["core"].update({"class": "Tanh"}), "config of Tanh must hold"),
        ("SpikingELM", lambda c: c.update(core=TANH), "core must be a layer .*, got Tanh"),
        ("SpikingELM", lambda c: c["core"]["config"].update(num_mlp_layers=10**9), "num_mlp_layers must be below"),
        ("SpikingELM", lambda c: c.update(threshold=[1.0, 2.0, 3.0]), "threshold must be a number or have"),
        ("SpikingELM", lambda c: c.update(threshold="high"), "threshold must be a number"),
        ("SpikingELM", lambda c: c.update(reset="hard"), "reset must be one of"),
        ("SpikingELM", lambda c: c.update(learn_threshold=1), "learn_threshold must be True or False, got 1"),
        ("Sequential", lambda c: c.update(modules={}), "config of Sequential must hold modules only"),
        ("Sequential", lambda c: c["modules"].append(["x"]), "modules of Sequential must be pairs"),
        ("Sequential", lambda c: c["modules"].append(["a.b", TANH]), "names of their own"),
        ("Sequential", lambda c: c["modules"].append(["forward", TANH]), "names of their own"),
        ("Sequential", lambda c: inner(c, 1).update(device="meta"), "config of Linear must hold"),
        ("Sequential", lambda c: inner(c, 1).update(in_features="2"), "in_features of Linear must not be '2'"),
        ("Sequential", lambda c: inner(c, 1).update(bias=True), r"missing \['1\.bias'\]"),
        ("Sequential", lambda c: inner(c, 1).update(in_features=10**13, out_features=10**13), "must hold the tensors"),
        ("Sequential", lambda c: inner(c, 2).update(normalized_shape=[[4]]), "normalized_shape of LayerNorm"),
        ("Sequential", lambda c: inner(c, 3).update(p=7.0), "dropout probability"),
        ("Sequential", lambda c: inner(c, 0).update(num_mlp_layers=10**9), "num_mlp_layers must be below"),
    ],
)  # fmt: skip
def test_a_made_up_config_of_any_layer_says_what_is_wrong(
    tmp_path: Path, module: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edited(tmp_path, LAYERS[module](), change)
    with pytest.raises(ValueError, match=message):
        from_pretrained(tmp_path)


def test_a_config_nested_without_end_is_refused(tmp_path: Path) -> None:
    save_pretrained(LAYERS["spiking ALIF"](), tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    inner = config["config"]
    text = json.dumps(config | {"config": "HERE"})
    core = json.dumps(inner["core"])
    for _ in range(2000):
        core = json.dumps({"class": "SpikingELM", "config": {}})[:-3] + '{"core": ' + core + "}}"
    path.write_text(text.replace('"HERE"', '{"core": ' + core + "}"))
    with pytest.raises(ValueError, match=r"config\.json"):
        from_pretrained(tmp_path)


def test_kinds_are_listed() -> None:
    assert {"ELM", "BranchELM", "ELMCell", "SpikingELM", "LIF", "ALIF", "ALIFCell", "Sequential"} <= set(
        pretrained.kinds()
    )
