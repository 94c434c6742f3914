"""Layers through NIR graphs and files against themselves, NIR's own checks and nirtorch; its LIF against the solution
of its equation; files of strangers.

Long: one file a host, as the source.
"""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from elm_neuro import ALIF, ELM, LIF, ALIFCell, SpikingELM, pretrained
from tests.layers import CELLS, INPUTS, LAYERS, SMALL
from tests.tolerances import assert_close
from tests.toy_layer import ToyLayer

nir = pytest.importorskip("nir")
nirtorch = pytest.importorskip("nirtorch")
faces = pytest.importorskip("elm_neuro.adapters.nir", exc_type=ImportError)

EVERY = LAYERS | CELLS
of_every = pytest.mark.parametrize("name", EVERY)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def frames(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.poisson(torch.full((3, 9, INPUTS), 0.7), generator=torch.Generator().manual_seed(1)).to(dtype)


def input_of(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return frames(dtype) if name in LAYERS else frames(dtype)[:, 0]


class Mixed(nn.Module):
    """A spiking ELM, a Linear with a bias, and a LIF."""

    def __init__(self) -> None:
        super().__init__()
        self.elm = SpikingELM(ELM(INPUTS, 5, num_memory=4, w_s_init=2.0), threshold=0.0)
        self.linear = nn.Linear(5, 4)
        self.lif = LIF(4, 3, tau_v=30.0)
        nn.init.uniform_(self.linear.bias, 0.5, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.elm(x)
        spikes, _ = self.lif(self.linear(spikes))
        return spikes


# --- there and back


@of_every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_a_file_gives_back_is_the_layer_bit_by_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    layer: Any = EVERY[name]().to(dtype)
    faces.write(tmp_path / "layer.nir", layer)
    graph = faces.read(tmp_path / "layer.nir")
    node = next(node for node in graph.nodes.values() if isinstance(node, faces.ElmNeuroLayer))
    same = node.layer()
    assert type(same) is type(layer) and same.config == layer.config
    assert same.state_dict().keys() == layer.state_dict().keys()
    for key, tensor in layer.state_dict().items():
        assert torch.equal(same.state_dict()[key], tensor) if isinstance(tensor, Tensor) else True, key
    x = input_of(name, dtype)
    y, _ = faces.from_nir(graph)(x)
    assert y.dtype == dtype and torch.equal(y, layer(x)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_is_carried_from_call_to_call(name: str) -> None:
    layer, x = LAYERS[name](), frames()
    net = faces.from_nir(faces.to_nir(layer))
    first, state = net(x[:, :4])
    second, state = net(x[:, 4:], state)
    y, end = layer(x)
    assert_close(torch.cat([first, second], 1), y)
    (after,) = (part for part in state.values() if part is not None)
    for ours, theirs in zip(after, end, strict=True):
        assert_close(ours, theirs)


def test_a_mixed_network_is_itself_after_a_file_and_learns(tmp_path: Path) -> None:
    net, x = Mixed(), frames()
    faces.write(tmp_path / "net.nir", net)
    graph = faces.read(tmp_path / "net.nir")
    assert graph.check_types() and graph.validate_structure() is None  # NIR's own
    assert sorted(graph.edges) == [("elm", "linear"), ("lif", "output"), ("linear", "lif"), ("x", "elm")]
    again = faces.from_nir(graph)
    y, _ = again(x)
    expected = net(x)
    assert torch.equal(y, expected) and 0.0 < float(y.detach().mean()) < 1.0
    y.sum().backward()
    expected.sum().backward()
    for name, parameter in net.named_parameters():
        other = again.get_parameter(name)
        assert torch.equal(other, parameter), name
        if parameter.grad is not None:
            assert_close(other.grad, parameter.grad)
    with torch.no_grad():  # nothing is shared
        net.linear.weight.zero_()
        net.elm.core.cell.w_y.weight.zero_()
    assert torch.equal(again(x)[0], expected)


def test_a_sequence_of_layers_needs_no_forward_of_its_own() -> None:
    one, two, x = ELM(INPUTS, 4, **SMALL), nn.Linear(4, 2, bias=False), frames()
    y, _ = faces.from_nir(faces.to_nir(nn.Sequential(one, two)))(x)
    assert torch.equal(y, two(one(x)[0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_keep_their_dtype_unless_told(dtype: torch.dtype) -> None:
    net = nn.Sequential(LAYERS["SpikingELM"]()).to(dtype)
    graph = faces.to_nir(net)
    assert faces.from_nir(graph)(frames(dtype))[0].dtype == dtype
    assert faces.from_nir(graph, dtype=torch.float32)(frames())[0].dtype == torch.float32


def test_nirtorch_takes_our_maps_both_ways() -> None:
    net, x = Mixed(), frames()
    makers = faces.module_map()
    graph = nirtorch.torch_to_nir(net, makers, default_dict={}, stateful_modules=set(makers))
    y, state = nirtorch.nir_to_torch(graph, faces.node_map())(x)
    assert torch.equal(y, net(x)) and isinstance(state["elm"], tuple)
    ours, theirs = faces.node_map()[nir.Affine], nirtorch.nir_interpreter.DEFAULT_MAP[nir.Affine]
    node = nir.Affine(np.eye(2, dtype=np.float32), np.array([3.0, 4.0], np.float32))
    assert ours(node).bias.tolist() == [3.0, 4.0]
    assert theirs(node).bias.tolist() != [3.0, 4.0]  # once this fails, ours may go


def test_nir_reads_ours_while_they_are_registered(tmp_path: Path) -> None:
    path, net = tmp_path / "net.nir", Mixed()
    nir.write(path, faces.to_nir(net))
    with pytest.raises(AssertionError):
        nir.read(path)
    for _ in range(2):
        faces.register()
    try:
        graph = nir.read(path)
    finally:
        faces.unregister()
        faces.unregister()
    assert torch.equal(faces.from_nir(graph)(frames())[0], net(frames()))
    with pytest.raises(AssertionError):
        nir.read(path)


def test_types_of_nodes_are_checked_by_nir() -> None:
    node = faces.ElmNeuroLayer.of(ELM(INPUTS, 2, num_neuron=3, num_memory=4))
    assert node.input_type["input"].tolist() == [INPUTS] and node.output_type["output"].tolist() == [3, 2]
    with pytest.raises(ValueError, match="type mismatch"):
        nir.NIRGraph.from_list(faces.ElmNeuroLayer.of(ELM(INPUTS, 2)), nir.Linear(np.ones((2, 7))))


def test_a_layer_of_someone_else_comes_with_its_registration() -> None:
    layer, x = ToyLayer(INPUTS, 4), frames()
    with pytest.raises(TypeError, match=r"ToyLayer has no node: make it known to elm_neuro\.pretrained\.register"):
        faces.to_nir(nn.Sequential(layer))
    known = dict(pretrained._kinds._KINDS)
    try:
        pretrained.register(ToyLayer)
        assert torch.equal(faces.from_nir(faces.to_nir(nn.Sequential(layer)))(x)[0], layer(x)[0])
    finally:
        pretrained._kinds._KINDS.clear()
        pretrained._kinds._KINDS.update(known)


# --- NIR's own primitives


def solved(node: Any, current: np.ndarray, delta_t: float) -> np.ndarray:
    """Spikes of a ``nir.LIF``, (time, neuron): its equation solved for a current that is constant within each step of
    `delta_t` s.
    """
    v, spikes = np.zeros(current.shape[1]), []
    for i_t in current:
        at_rest = node.v_leak + node.r * i_t
        v = at_rest + (v - at_rest) * np.exp(-delta_t / node.tau)
        spikes.append(v > node.v_threshold)
        v = np.where(spikes[-1], node.v_reset, v)
    return np.stack(spikes)


@pytest.mark.parametrize(("delta_t", "tau_v"), [(1.0, 20.0), (0.1, 5.0), (10.0, 15.0)])
def test_a_lif_in_primitives_means_the_same(delta_t: float, tau_v: float, tmp_path: Path) -> None:
    layer = LIF(INPUTS, 4, delta_t=delta_t, tau_v=tau_v).double()
    with torch.no_grad():
        layer.cell.weight.normal_()
        layer.cell.bias.normal_(std=0.1)
        layer.cell.beta.mul_(torch.tensor([1.0, 0.9, 0.8, 0.7]))
    x = frames(torch.float64)
    expected = layer(x)[0]
    assert 0.05 < float(expected.detach().mean()) < 0.95
    faces.write(tmp_path / "lif.nir", layer, portable=True)
    graph = nir.read(tmp_path / "lif.nir")  # as anyone reads it
    affine, neurons = graph.nodes["affine"], graph.nodes["lif"]
    for sample, spikes in zip(x.numpy(), expected, strict=True):
        current = sample @ affine.weight.T + affine.bias
        assert np.array_equal(solved(neurons, current, delta_t / 1000.0), spikes.detach().numpy())
    y, _ = faces.from_nir(graph, delta_t=delta_t, dtype=torch.float64)(x)
    assert torch.equal(y, expected)
    net = nn.Sequential(nn.Linear(INPUTS, INPUTS).double(), layer)
    y, _ = faces.from_nir(faces.to_nir(net, portable=True), delta_t=delta_t, dtype=torch.float64)(x)
    assert torch.equal(y, layer(net[0](x))[0])


def test_a_lif_of_someone_else_is_solved_too() -> None:
    rng = np.random.default_rng(0)
    tau, r, threshold = rng.uniform(0.005, 0.05, 5), rng.uniform(0.5, 2.0, 5), rng.uniform(0.2, 1.0, 5)
    node = nir.LIF(tau=tau, r=r, v_leak=np.zeros(5), v_threshold=threshold)
    current = rng.normal(0.5, 2.0, (40, 5))
    net = faces.from_nir(node, delta_t=2.0, dtype=torch.float64)
    spikes = net(torch.tensor(current)[None])[0][0]
    assert np.array_equal(spikes.detach().numpy(), solved(node, current, 0.002)) and spikes.any()
    for wrong in (
        {"v_leak": np.ones(5)},
        {"v_reset": np.ones(5)},
        {"tau": -tau},
        {"tau": tau * 1e6},
        {"r": r * np.nan},
    ):
        values = {"tau": tau, "r": r, "v_leak": np.zeros(5), "v_threshold": threshold} | wrong
        with pytest.raises(ValueError, match="node 'lif' of class LIF must make a module: "):
            faces.from_nir(nir.LIF(**values))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ELM(3, 2), "ELM cannot be written .*ReLU and the tanh"),
        (lambda: nn.Sequential(SpikingELM(ELM(3, 2))), "SpikingELM cannot be written"),
        (lambda: ALIF(3, 2), "ALIF cannot be written .*threshold that rises"),
        (lambda: ALIFCell(3, 2), "ALIFCell cannot be written .*threshold that rises"),
        (lambda: LIF(3, 2, recurrent=True), "LIF cannot be written .*delay"),
        (lambda: LIF(3, 2, latency=2.0), "LIF cannot be written .*takes no input"),
    ],
)
def test_what_primitives_cannot_say_is_refused_with_the_reason(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message + ".*portable=False"):
        faces.to_nir(make(), portable=True)


def hooked(on_cell: bool) -> LIF:
    layer = LIF(3, 2)
    (layer.cell if on_cell else layer).register_forward_hook(lambda module, x, out: (2.0 * out[0], out[1]))
    return layer


class Doubled(LIF):
    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> Any:
        y, after = super().forward(x, state, lengths)
        return 2.0 * y, after


class Renamed(LIF):
    """As a LIF, and no more."""


@dataclasses.dataclass(frozen=True)
class RecurrentConfig:
    """Of someone else's layer, with the name of a field of ours."""

    input_size: int = 3
    output_size: int = 2
    delta_t: float = 1.0
    tau: float = 20.0
    recurrent: bool = False

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def toy(config: Any = None) -> ToyLayer:
    layer = ToyLayer(3, 2)
    layer.config = config or layer.config
    return layer


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hooked(False), "^LIF cannot be .*, which would be its weights alone: it has a hook on its call$"),
        (lambda: hooked(True), "^LIF cannot be .*, which would be its weights alone: cell: it has a hook on its call$"),
        (lambda: Doubled(3, 2), "^Doubled cannot be .*: Doubled has a call of its own$"),
        (toy, "^ToyLayer cannot be written in NIR's own primitives: of a LIF alone it is known .*portable=False"),
        (lambda: toy(RecurrentConfig()), "^ToyLayer cannot be .*: of a LIF alone it is known .*portable=False"),
    ],
)
def test_primitives_are_written_only_of_what_is_its_weights_alone(
    make: Callable[[], nn.Module], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained._kinds, "_KINDS", dict(pretrained._kinds._KINDS))
    layer = make()
    for kind in (Doubled, ToyLayer):
        pretrained.register(kind)
    with pytest.raises(ValueError, match=message):
        faces.to_nir(layer, portable=True)


def test_a_lif_by_another_name_is_written_in_primitives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained._kinds, "_KINDS", dict(pretrained._kinds._KINDS))
    layer = pretrained.register(Renamed)(INPUTS, 4).double()
    y, _ = faces.from_nir(faces.to_nir(layer, portable=True), dtype=torch.float64)(frames(torch.float64))
    assert torch.equal(y, layer(frames(torch.float64))[0])


# --- bad input


def test_modules_without_a_node_are_named() -> None:
    for net in (nn.Tanh(), nn.Sequential(ELM(3, 2), nn.Tanh()), nn.Sequential(nn.TransformerEncoderLayer(4, 2))):
        with pytest.raises(TypeError, match=r"^(Tanh|TransformerEncoderLayer) has no node: give one by modules=\{[TM]"):
            faces.to_nir(net)
    for call in (faces.to_nir, faces.from_nir, lambda value: faces.write("net.nir", value)):
        with pytest.raises(TypeError, match=r"must be an? (nn\.Module|NIR graph or node), got int"):
            call(3)
    graph = faces.to_nir(
        nn.Sequential(nn.Linear(3, 2), nn.ReLU()), modules={nn.ReLU: lambda _: nir.Threshold(np.ones(2))}
    )
    with pytest.raises(
        ValueError, match=r"node '_1' must be of a class that has a module, got Threshold: .*nir\.Threshold"
    ):
        faces.from_nir(graph)
    net = faces.from_nir(graph, nodes={nir.Threshold: lambda _: nn.ReLU()})
    assert net(torch.ones(1, 3))[0].shape == (1, 2)
    norse = pytest.importorskip("elm_neuro.adapters.norse", exc_type=ImportError)
    with pytest.raises(TypeError, match=r"^ELM is the face of another library: write its \.core$"):
        faces.to_nir(nn.Sequential(norse.ELM(3, 2)))


def image_of(net: nn.Module, change: Callable[[h5py.File], None] = lambda file: None) -> bytes:
    """A file of a network, changed by a stranger."""
    image = io.BytesIO()
    nir.write(image, faces.to_nir(net))
    with h5py.File(image, "r+") as file:
        change(file)
    return image.getvalue()


def put(place: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if place in file:
            del file[place]
        if value is not None:
            file[place] = value

    return change


NODE = "node/nodes/elm"
W_Y = f"{NODE}/weights/core.cell.w_y.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(f"{NODE}/type", "Spy"), "node 'elm' must be one of .*ElmNeuroLayer, got 'Spy'"),
        (put(f"{NODE}/type", 3), "node 'elm' must be one of .*, got .*3"),
        (put("node/type", "Spy"), "the graph must be one of .*, got 'Spy'"),
        (put(f"{NODE}/kind", "Spy"), "node 'elm' .*class must be one of .*, got 'Spy'"),
        (put(f"{NODE}/kind", "Linear"), "node 'elm' .*config of Linear must hold"),
        (put(f"{NODE}/config", "[" * 100_000), "node 'elm' must be"),
        (put(f"{NODE}/config", None), "node 'elm' .*config must be of type str, got nothing"),
        (put(f"{NODE}/spy", 1), "node 'elm' .*got also 'spy'"),
        (put(f"{NODE}/dtype", "complex64"), "node 'elm' .*dtype must be one of"),
        (put(f"{NODE}/dtype", "float64"), "node 'elm' .*weights must be float64 or integers"),
        (put(f"{NODE}/weights/spy", np.ones(3, np.float32)), "node 'elm' .*got also .*spy"),
        (put(W_Y, np.ones((5, 9), np.float32)), r"w_y\.weight must have shape \(5, 4\)"),
        (put(W_Y, np.full((5, 4), np.nan, np.float32)), "must be finite"),
        (put(W_Y, "text"), "must be float32 or integers"),
        (put("node/nodes/linear/bias", None), "node 'linear' must be what its type says"),
        (put("node/edges", np.ones((2, 3))), "edges of the graph must be pairs"),
        (put("node/edges", [("elm", "nobody")]), "the graph must be what its type says: .*nobody"),
        (put("node", None), "/node must be a group"),
        (put("node/nodes", "text"), "nodes of the graph must be groups"),
        (lambda file: file.__setitem__("node/loop", file["node"]), "groups must be at most 12 deep"),
        (lambda file: file.__setitem__("node/far", h5py.ExternalLink("/etc/passwd", "/")), "stored in the file itself"),
        (lambda file: file.create_dataset("node/bomb", (1 << 28,), "u1", compression="gzip"), "unpack to at most"),
        (lambda file: file.move(NODE, 'node/nodes/e") or exit(3) or ("'), "the graph .*nobody|references"),
    ],
)  # fmt: skip
def test_files_of_strangers_are_refused_by_what_is_wrong(
    change: Callable[[h5py.File], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.nir"
    path.write_bytes(image_of(Mixed(), change))
    with pytest.raises(ValueError, match=message) as refused:
        faces.read(path)
    assert str(path) in str(refused.value)


def test_a_configuration_that_asks_for_memory_gets_none(tmp_path: Path) -> None:
    def grow(file: h5py.File) -> None:
        text = file[f"{NODE}/config"][()].decode()
        put(f"{NODE}/config", text.replace('"input_size": 6', '"input_size": 1000000000'))(file)

    (tmp_path / "net.nir").write_bytes(image_of(Mixed(), grow))
    with pytest.raises(ValueError, match=r"node 'elm' .*must have shape"):
        faces.read(tmp_path / "net.nir")


def test_names_that_would_be_code_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """nirtorch writes the names of nodes and inputs into the source of a module."""
    code = 'training"), print("run"), getattr(self, "training'
    linear = nir.Linear(np.ones((2, 2), np.float32))
    nodes = {"input": nir.Input(np.array([2])), code: linear, "output": nir.Output(np.array([2]))}
    graph = nir.NIRGraph(nodes, [("input", code), (code, "output")])
    net = nirtorch.nir_to_torch(graph, {})
    with pytest.raises(TypeError, match="'bool' object is not callable"):
        net(torch.ones(1, 2))
    assert capsys.readouterr().out == "run\n"  # so it does: else this test would be of nothing
    nir.write(tmp_path / "net.nir", graph)
    for refused in (lambda: faces.from_nir(graph), lambda: faces.read(tmp_path / "net.nir")):
        with pytest.raises(ValueError, match="names of nodes must be letters"):
            refused()
    graph = nir.NIRGraph.from_list(linear)
    graph.nodes["input"].input_type = {"x=print('run'), y": np.array([2])}
    with pytest.raises(ValueError, match="names of inputs must be letters"):
        faces.from_nir(graph)
    for names, message in ((("a.b", "a_b"), "differ by more than dots"), (("keys", "b"), "none of an nn.ModuleDict")):
        nodes = {
            "input": nir.Input(np.array([2])),
            names[0]: linear,
            names[1]: linear,
            "output": nir.Output(np.array([2])),
        }
        edges = [("input", names[0]), (names[0], names[1]), (names[1], "output")]
        with pytest.raises(ValueError, match=message):
            faces.from_nir(nir.NIRGraph(nodes, edges))


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_files_are_read_or_refused(count: int, tmp_path: Path) -> None:
    image, rng, path = image_of(Mixed()), np.random.default_rng(0), tmp_path / "net.nir"
    refused = 0
    for _ in range(count):
        damaged = bytearray(image[: rng.integers(8, len(image)) if rng.random() < 0.2 else len(image)])
        for place in rng.integers(0, len(damaged), rng.integers(1, 9)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            faces.read(path)
        except ValueError:
            refused += 1
    assert refused > count // 4
    with pytest.raises(FileNotFoundError):
        faces.read(tmp_path / "nothing.nir")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "net.nir"
    faces.write(path, Mixed())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        faces.write(path, nn.Sequential(nn.Tanh()))
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["net.nir"]


def test_a_missing_or_old_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from elm_neuro.adapters import _nir_node

    spec = _nir_node.__spec__
    assert spec is not None and spec.loader is not None
    real = metadata.version

    def load() -> None:
        spec.loader.exec_module(module_from_spec(spec))

    for package in ("nir", "nirtorch"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=r'adapters\.nir needs nir and nirtorch: .*"elm-neuro\[nir\]"$'):
                load()
        with monkeypatch.context() as patch:
            patch.setattr(metadata, "version", lambda name, old=package: "0.3" if name == old else real(name))
            with pytest.raises(ImportError, match=rf"adapters\.nir needs {package} [\d.]+ or newer, got 0\.3"):
                load()
