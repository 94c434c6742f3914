"""What is written about a module: a page that needs nothing else, figures, and the numbers behind them."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("h5py")

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.utils import prune, weight_norm

from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMCell, ELMNetwork, ELMNetworkClassifier, SpikeEvents, SpikingELM
from elm_neuro.datasets import SHDDataset, SpikeRecordings, read_simulation_file, write_shd
from elm_neuro.look import look, parts_of, read_drive, spike_responses, time_constants
from tests.datasets.neuronio.neuronio_files import made, write
from tests.toy_layer import ToyLayer


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of figures in no time: that they are drawn, and how they look, is tested with the others of plotting."""

    def write(figure: Figure, path: Path, **options: Any) -> None:
        titles = [axis.get_title(loc="left") for axis in figure.axes]
        path.write_bytes(repr((options["format"], titles)).encode())

    monkeypatch.setattr(Figure, "savefig", write)


SHORT: dict[str, Any] = {"duration_ms": 60.0}


class Page(HTMLParser):
    """Headings, pictures, links and tables of a page; every element closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(" ".join(data.split()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    neuron = BranchELM(8, 2, 3, num_branch=4, num_synapse_per_branch=2)
    before = {name: tensor.clone() for name, tensor in neuron.state_dict().items() if torch.is_tensor(tensor)}
    neuron.train()
    path = look(neuron, tmp_path / "deep" / "folder", name="mine <b>&", **SHORT)
    assert neuron.training and all(torch.equal(neuron.state_dict()[name], one) for name, one in before.items())
    page = Page(path)
    assert not page.all("script") and not page.all("link")
    assert not re.search(r"(src|href)=\"(?!data:|#)", path.read_text())
    pictures = page.all("img")
    assert len(pictures) == 4 and all(picture["alt"] for picture in pictures)
    names = ["time_constants", "receptive_fields", "spike_responses", "recordings"]
    for picture, name in zip(pictures, names, strict=True):
        content = base64.b64decode(str(picture["src"]).removeprefix("data:image/png;base64,"))
        assert content == (path.parent / f"{name}.png").read_bytes()
    assert sorted(one.name for one in path.parent.iterdir()) == sorted(
        ["index.html", "numbers.npz", *(f"{name}.{kind}" for name in names for kind in ("png", "pdf"))]
    )
    text = " ".join(page.text)
    assert "mine <b>&" in text and "seed 0" in text and "Poisson spikes of 10 Hz" in text
    for name, tensor in before.items():
        if not name.endswith("_extra_state"):
            assert name in page.text
            assert f"{float(tensor.double().max()):.4g}" in page.text
    total = sum(parameter.numel() for parameter in neuron.parameters() if parameter.requires_grad)
    assert f"{total:,} trained numbers" in text


def test_the_numbers_are_those_of_the_figures(tmp_path: Path) -> None:
    neuron = BranchELM(8, 2, 3, num_branch=4, num_synapse_per_branch=2)
    look(neuron, tmp_path, duration_ms=60.0, rate_hz=30.0, seed=5)
    (part,) = parts_of(neuron)
    from elm_neuro.look import poisson_drive

    drive = poisson_drive(8, 1.0, num_excitatory=4, duration_ms=60.0, rate_hz=30.0, seed=5)
    expected = spike_responses(part, drive.events)
    with np.load(tmp_path / "numbers.npz") as numbers:
        np.testing.assert_array_equal(numbers["response"], expected.change)
        np.testing.assert_array_equal(numbers["response_moments"], expected.moments)
        np.testing.assert_array_equal(numbers["tau_m"], time_constants(part)["tau_m"])
        assert numbers["receptive_fields"].sum() == pytest.approx(float(neuron.w_s.sum().detach()), rel=1e-6)


def test_layers_of_a_chain_are_looked_at_one_by_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    chain = nn.Sequential(LIF(6, 5, tau_v=20.0), nn.Linear(5, 4), SpikingELM(ELM(4, 3, 2), threshold=0.1))
    path = look(chain, tmp_path, rate_hz=100.0, **SHORT)
    page = Page(path)
    assert [one["href"] for one in page.all("a")] == ["#layer-0", "#layer-2"]
    assert {"layer-0", "layer-2"} <= {one.get("id") for one in page.all("h2")}
    assert "2: SpikingELM of ELM" in page.text and "2.core.cell._proto_tau_m" in page.text
    names = {one.stem for one in tmp_path.glob("*.png")}
    assert names == {
        *("0_time_constants", "0_weights", "0_spike_responses", "0_recordings"),
        *("2_time_constants", "2_receptive_fields", "2_spike_responses", "2_recordings"),
    }
    with np.load(tmp_path / "numbers.npz") as numbers:
        assert numbers["0/weights"].shape == (5, 6) and numbers["2/tau_m"].shape == (2,)


def test_layers_whose_places_read_alike_have_files_and_anchors_of_their_own(tmp_path: Path) -> None:
    network = nn.ModuleDict(
        {"a": nn.ModuleDict({"b": LIF(6, 2)}), "a_b": LIF(6, 3), "A_b": LIF(6, 4), "/c d": LIF(6, 5)}
    )
    page = Page(look(network, tmp_path / "page", duration_ms=20.0))
    prefixes = ("a_b", "a_b_2", "A_b_3", "_c_d")
    names = ("time_constants", "weights", "spike_responses", "recordings")
    assert {one.stem for one in (tmp_path / "page").glob("*.png")} == {f"{a}_{b}" for a in prefixes for b in names}
    assert [one.name for one in tmp_path.iterdir()] == ["page"]
    anchors = [str(one["href"]) for one in page.all("a")]
    assert len({*anchors}) == 4 and not any(" " in anchor for anchor in anchors)
    assert anchors == [f"#{one['id']}" for one in page.all("h2") if "id" in one]
    with np.load(tmp_path / "page/numbers.npz") as numbers:
        assert [numbers[f"{name}/weights"].shape[0] for name in ("a.b", "a_b", "A_b", "/c d")] == [2, 3, 4, 5]


def dead() -> BranchELM:
    """No synapse has a weight, no memory is read."""
    neuron = BranchELM(6, 2, 3, num_branch=3, num_synapse_per_branch=4)
    with torch.no_grad():
        neuron.cell._proto_w_s.fill_(-1.0)
        neuron.cell.w_y.weight.zero_()
    return neuron


@pytest.mark.parametrize(
    "make",
    [
        dead,
        lambda: ELM(5, 2, 1, num_mlp_layers=0),
        lambda: ELM(5, 3, 2, num_neuron=4),
        lambda: BranchELM(6, 3, 2, num_branch=3, num_synapse_per_branch=4, variant="v2", shuffle_routing=True),
        lambda: SpikingELM(ELMCell(4, 2, num_memory=3), stochastic=True),
        lambda: ALIF(4, 3, recurrent=True, latency=2.5),
        lambda: ELMNetwork(4, 3, tau_b=3.0, tau_high_pass=50.0),
        lambda: ELMNetwork(4, 3, output="spike", binarize=True),
        lambda: ToyLayer(4, 3),
        lambda: ELM(5, 2, 2).bfloat16(),
        lambda: ELM(5, 2, 2, batch_first=False),
    ],
)
def test_every_kind_of_layer_gets_its_page(tmp_path: Path, make: Any) -> None:
    page = Page(look(make(), tmp_path, **SHORT))
    assert len(page.all("img")) == len(list(tmp_path.glob("*.png"))) >= 2


def pruned() -> ELM:
    neuron = ELM(5, 2, 3)
    prune.l1_unstructured(neuron.cell, "_proto_w_s", amount=0.5)  # type: ignore[no-untyped-call]
    return neuron


def pruned_readout() -> ELM:
    neuron = ELM(5, 2, 3)
    prune.l1_unstructured(neuron.cell.w_y, "weight", amount=0.5)  # type: ignore[no-untyped-call]
    return neuron


def normed() -> ELM:
    neuron = ELM(5, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old weight_norm, which leaves a plain tensor
        weight_norm(neuron.cell.w_y)
    return neuron


class WithLeaky(nn.Module):
    """An ELM neuron into a neuron of snnTorch that keeps its membrane to itself."""

    def __init__(self) -> None:
        super().__init__()
        snntorch = pytest.importorskip("snntorch")
        self.elm, self.leaky = ELM(5, 4, 3), snntorch.Leaky(0.9, init_hidden=True)

    def forward(self, x: SpikeEvents | torch.Tensor) -> torch.Tensor:
        y, _ = self.elm(x)
        return torch.stack([self.leaky(y_t) for y_t in y.unbind(1)], 1)


def snntorch_face() -> nn.Sequential:
    pytest.importorskip("snntorch")
    from elm_neuro.adapters import snntorch as faces

    return nn.Sequential(faces.ELM(5, 2, num_memory=3, threshold=0.1, init_hidden=True))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (pruned, (1, 4, 5)),
        (pruned_readout, (1, 4, 5)),
        (normed, (1, 4, 5)),
        (WithLeaky, (1, 4, 5)),
        (snntorch_face, (1, 5)),
    ],
)
def test_a_module_whose_last_call_left_a_graph_in_it_is_looked_at(
    tmp_path: Path, make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    module = make()
    module(torch.ones(shape))
    attributes = [value for part in module.modules() for value in (*vars(part).values(), *part.buffers(recurse=False))]
    held = [value for value in attributes if torch.is_tensor(value) and not value.is_leaf]
    assert held
    values = [value.detach().clone() for value in held]
    page = Page(look(module, tmp_path, **SHORT))
    assert len(page.all("img")) == len(list(tmp_path.glob("*.png"))) >= 3
    assert all(torch.equal(one, before) for one, before in zip(held, values, strict=True))
    assert all(value.grad_fn is not None for value in held)


def test_what_is_pruned_is_not_read(tmp_path: Path) -> None:
    neuron = pruned()
    look(neuron, tmp_path, **SHORT)
    with np.load(tmp_path / "numbers.npz") as numbers:
        np.testing.assert_allclose(numbers["receptive_fields"][0], neuron.w_s.detach().flatten(), rtol=1e-6)
        assert (numbers["receptive_fields"] == 0).sum() == 2


def test_a_network_that_reads_no_spikes_has_its_layers_driven_by_themselves(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from elm_neuro.training import TokenClassifier

    network = TokenClassifier(ELM(9, 3, 2))
    page = Page(look(network, tmp_path, **SHORT))
    assert "The network reads something else than spikes" in " ".join(page.text)
    write_shd(tmp_path / "nine.h5", recordings(9))
    with pytest.raises(ValueError, match="data must be what the network reads, got sample 0 of"):
        look(network, tmp_path, data=tmp_path / "nine.h5", **SHORT)


def test_layers_inside_a_network_hear_what_reaches_them(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from elm_neuro.training import SpikingNetwork

    network = SpikingNetwork(LIF(6, 4, delta_t=5.0), ELM(4, 3, 2, delta_t=5.0))  # the second registers first
    page = Page(look(network, tmp_path, duration_ms=300.0, rate_hz=40.0))
    text = " ".join(page.text)
    assert "Driven by what reaches it of made input" in text and "on each of 6 channels" in text
    assert "by itself" not in text


class TimeFirst(nn.Module):
    """A layer whose sequences are (time, batch, ...) between others."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = ELM(6, 5, 3, batch_first=False), ELM(5, 2, 3)

    def forward(self, x: SpikeEvents) -> Any:
        y, _ = self.before(x.to_dense().transpose(0, 1))
        y, _ = self.behind(y.transpose(0, 1))
        return y


@pytest.mark.parametrize(
    ("make", "names", "reached"),
    [
        (lambda: ELMNetworkClassifier(6, 3, num_neuron=8, binarize=False), {"hidden", "readout"}, 1),
        (
            lambda: nn.Sequential(LIF(6, 8), ELMNetworkClassifier(8, 3, num_neuron=7)),
            {"0", "1_hidden", "1_readout"},
            2,
        ),
        (TimeFirst, {"before", "behind"}, 2),  # frames, made of the spikes
    ],
)
def test_layers_inside_of_a_layer_and_time_first_hear_what_reaches_them(
    tmp_path: Path, make: Any, names: set[str], reached: int
) -> None:
    torch.manual_seed(0)
    text = " ".join(Page(look(make(), tmp_path, rate_hz=100.0, **SHORT)).text)
    assert {one.stem.removesuffix("_recordings") for one in tmp_path.glob("*_recordings.png")} == names
    assert "by itself" not in text and text.count("Driven by what reaches it of made input") == reached
    with np.load(tmp_path / "numbers.npz") as numbers:
        assert all(np.isfinite(one).all() for one in numbers.values())


def recordings(num_channels: int = 700) -> SpikeRecordings:
    rng = np.random.default_rng(0)
    times = np.sort(rng.integers(0, 900_000, (2, 300)), axis=1).ravel()
    units = rng.integers(0, num_channels, 600)
    return SpikeRecordings(times, units, np.array([0, 300, 600]), np.array([3, 7]), None)


def test_a_recording_in_shds_format_is_binned_and_pooled_for_the_neuron(tmp_path: Path) -> None:
    write_shd(tmp_path / "shd.h5", recordings())
    drive = read_drive(tmp_path / "shd.h5", 140, 10.0, index=1)
    expected, label, _ = SHDDataset(tmp_path / "shd.h5", bin_ms=10.0, output="frames", pool=5)[1]
    assert torch.equal(drive.events.to_dense()[0], expected)  # type: ignore[arg-type]
    assert f"sample 1 of shd.h5, class {label}, 1000 ms in bins of 10 ms, 5 channels pooled" in drive.what
    with pytest.raises(ValueError, match=r"data in SHD's format need a neuron of 700 inputs.*, got one of 600 inputs"):
        read_drive(tmp_path / "shd.h5", 600, 10.0)
    with pytest.raises(ValueError, match=r"index must be in \[0, 2\), the samples in .*shd\.h5, got 2"):
        read_drive(tmp_path / "shd.h5", 700, 10.0, index=2)


@pytest.mark.parametrize("converted", [False, True])
def test_a_simulation_of_neuronio_comes_with_what_the_cell_did(tmp_path: Path, converted: bool) -> None:
    path = tmp_path / "kaggle" / "sim__1.p"
    write(path, made(2, 400, seed=1))
    simulations = read_simulation_file(path)
    if converted:
        from elm_neuro.datasets import convert_neuronio

        convert_neuronio([path], tmp_path / "out")
        (path,) = (tmp_path / "out").rglob("*.h5")
    drive = read_drive(path, 1278, 1.0, index=1, duration_ms=300.0)
    indptr, channel = simulations.rows(1, 0, 300)
    assert torch.equal(drive.events.indptr, torch.from_numpy(indptr))
    assert torch.equal(drive.events.channel, torch.from_numpy(channel.astype(np.int64)))
    assert torch.equal(drive.events.value, torch.where(drive.events.channel < 639, 1.0, -1.0))
    np.testing.assert_array_equal(drive.soma_mv, simulations.soma_mv[1, :300])
    np.testing.assert_array_equal(drive.spikes, simulations.spikes(1)[:300])
    most = max(range(2), key=lambda i: int(simulations.spikes(i)[:400].sum()))
    assert read_drive(path, 1278, 1.0).what.startswith(f"simulation {most} of {path.name}, its first 400 ms")
    with pytest.raises(
        ValueError, match="data of NeuronIO need a neuron of 1278 inputs and steps of 1 ms, got one of 140"
    ):
        read_drive(path, 140, 1.0)
    with pytest.raises(ValueError, match=r"index must be in \[0, 2\), the simulations in .*, got -1"):
        read_drive(path, 1278, 1.0, index=-1)


def test_data_that_are_none_are_named(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"data must be a NeuronIO or SHD-format file, got .*none\.h5, which does"
    ):
        read_drive(tmp_path / "none.h5", 700, 1.0)
    (tmp_path / "text.h5").write_text("no recording")
    with pytest.raises(ValueError, match=r"text\.h5 must be a whole HDF5 file in the layout of SHD"):
        read_drive(tmp_path / "text.h5", 700, 1.0)
    (tmp_path / "text.p").write_text("no pickle")
    with pytest.raises(ValueError, match=r"text\.p"):
        read_drive(tmp_path / "text.p", 1278, 1.0)
    for path in sorted((shared / "data/hostile").glob("*.h5")):
        with pytest.raises(ValueError, match="must be a whole HDF5 file"):
            read_drive(path, 700, 1.0)
