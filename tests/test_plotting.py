"""Figures: what they hold, what they refuse, and that no text lies on another.

Longer than most: every figure of the package is drawn here, and all go through the same checks.
"""

from __future__ import annotations

import functools
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from elm_neuro import ELM, BranchELM, ELMNetwork, plotting
from tests.full_disk import full_disk

TAUS = torch.logspace(0.5, 3, 12)


def spikes(num_steps: int = 40, channels: int = 16) -> torch.Tensor:
    return torch.poisson(torch.full((num_steps, channels), 0.2), generator=torch.Generator().manual_seed(0))


@functools.cache
def rasters() -> Figure:
    titles = ["“zero”\nheard as “zero”", "“fünf”\nheard as “nine”", "“acht”\nheard as “eight”"]
    return plotting.rasters([spikes()] * 3, [spikes(channels=9)] * 3, delta_t=10.0, titles=titles)


@functools.cache
def workings(neuron: ELM | None = None) -> Figure:
    neuron = neuron or ELM(16, 5, num_memory=12, delta_t=10.0)
    return plotting.workings(spikes(), neuron.traces(spikes()[None]), tau_m=neuron.tau_m, delta_t=10.0, answer=3)


@functools.cache
def branch_workings() -> Figure:
    return workings(
        BranchELM(16, 5, num_memory=12, num_branch=4, num_synapse_per_branch=4, routing="window", delta_t=10.0)
    )


@functools.cache
def timescales() -> Figure:
    return plotting.timescales(TAUS, TAUS.flip(0), bounds=(1.0, 1000.0))


@functools.cache
def learning_curves() -> Figure:
    epoch = np.arange(8)
    runs = [
        {
            "train/accuracy": epoch / 8,
            "valid/accuracy": epoch / 9,
            "train/loss": 3 - epoch / 4,
            "valid/loss": 3 - epoch / 5 + seed,
        }
        for seed in (0, 0.2)
    ]
    return plotting.learning_curves({"LIF + ELM": runs, "LIF only": runs[:1]}, majority=0.05)


@functools.cache
def learning_curves_of_many() -> Figure:
    epoch = np.arange(1, 9)
    histories = {
        f"network {number}": [
            {f"{part}/accuracy": epoch * share, f"{part}/loss": 30 * share / epoch} for part in ("train", "valid")
        ]
        for number, share in enumerate(np.linspace(0.04, 0.12, 7))
    }
    return plotting.learning_curves(histories, majority=0.05)


def points(level: float) -> list[tuple[float, float, float]]:
    return [(bin_ms, level - 0.002 * bin_ms, 0.03) for bin_ms in (1, 2, 4, 6, 8, 10, 20, 50, 100)]


@functools.cache
def confusion_matrix(num_classes: int = 19) -> Figure:
    counts = np.random.default_rng(0).integers(0, 20, (num_classes, num_classes)) + 80 * np.eye(num_classes, dtype=int)
    return plotting.confusion_matrix(counts)


@functools.cache
def named_confusion_matrix() -> Figure:
    return plotting.confusion_matrix(np.eye(5), names=["null", "eins", "zwei", "sieben", "fünf"])


@functools.cache
def accuracies() -> Figure:
    lines = {"ELM": points(0.9), "Branch-ELM": points(0.85), "LSTM": points(0.6), "LIF": points(0.3)}
    return plotting.accuracies(
        dict.fromkeys(("training", "validation", "test"), lines), xlabel="bin (ms)", majority=0.1
    )


@functools.cache
def one_panel() -> Figure:
    return plotting.accuracies(
        {"test": {"ELM": [(10.0, 0.5, float("nan")), (5.0, 0.4, 0.1)]}}, xlabel="memory units (number)"
    )


@functools.cache
def many_accuracies() -> Figure:
    lines = {f"network {number}": points(0.9 - number / 12) for number in range(8)}
    return plotting.accuracies({f"part {number}": lines for number in range(9)}, xlabel="bin (ms)", majority=0.1)


@functools.cache
def network_workings() -> Figure:
    outputs, epoch = torch.linspace(0, 1, 40)[:, None] * torch.arange(5), [0.1, 0.4, 0.6]
    layers = {"input spikes: a test sample": spikes(), "spikes of the 9 ELM neurons": spikes(channels=9) > 0}
    accuracy, memory = {"training": epoch, "test": epoch}, (outputs, TAUS[:5])
    return plotting.network_workings(
        layers, outputs, answer=3, name="three", delta_t=10.0, accuracy=accuracy, majority=0.2, memory=memory
    )


@functools.cache
def workings_of_many_layers() -> Figure:
    accuracy = {f"part {number}": [0.1 * number, 0.1 * number + 0.2] for number in range(7)}
    layers = {f"spikes of layer {number}": spikes(channels=9) for number in range(8)}
    return plotting.network_workings(
        layers, torch.eye(40), answer=3, name="three", delta_t=10.0, accuracy=accuracy, majority=0.2
    )


@functools.cache
def time_constants() -> Figure:
    readout = {"voltage (mV)": torch.linspace(-1, 2, 12), "logit of a spike": torch.linspace(1, 0, 12)}
    return plotting.time_constants({"tau_m": TAUS, "tau_s": [5.0]}, bounds=(3.0, 1000.0), readout=readout)


@functools.cache
def time_constants_of_decays() -> Figure:
    return plotting.time_constants({"tau_v": [10.0] * 8, "tau_a": [100.0] * 8})


@functools.cache
def time_constants_of_many_kinds() -> Figure:
    kinds = ("tau_m", "tau_s", "tau_b", "tau_v", "tau_a", "tau_high_pass", "tau_n", "leak of the cell ($)")
    return plotting.time_constants({kind: TAUS / (number + 1) for number, kind in enumerate(kinds)})


@functools.cache
def many_weight_fields() -> Figure:
    return plotting.weight_fields({f"layer {number}": torch.eye(5) + number for number in range(5)})


@functools.cache
def weight_fields() -> Figure:
    field = torch.eye(5).repeat_interleave(20, 1) * torch.linspace(0.2, 1, 100)
    return plotting.weight_fields({"excitatory synapses": field, "inhibitory synapses": field.flip(0)})


@functools.cache
def weights_of_one_row() -> Figure:
    return plotting.weight_fields({"weight of each input": torch.linspace(0.2, 1, 40)[None]})


def response() -> torch.Tensor:
    return torch.linspace(-1, 1, 9)[:, None] * torch.exp(-torch.arange(30) / 10.0)


@functools.cache
def spike_responses() -> Figure:
    panels = {
        f"{what}, {kind} spike|{unit}": response()
        for what, unit in (("somatic voltage", "change (mV)"), ("logit of a spike", "change of the logit"))
        for kind in ("excitatory", "inhibitory")
    }
    return plotting.spike_responses(panels, delta_t=1.0, rows=range(9))


@functools.cache
def many_responses() -> Figure:
    panels = {f"output {number}|change": response() / (number + 1) for number in range(9)}
    return plotting.spike_responses(panels, delta_t=1.0, rows=range(9))


@functools.cache
def one_response() -> Figure:
    panels = {"20 outputs|root mean square change": response().abs()}
    return plotting.spike_responses(panels, delta_t=10.0, rows=range(9), kind="input", signed=False)


@functools.cache
def recordings() -> Figure:
    time, Record = torch.arange(40.0), plotting.Record
    records = [
        Record("branches: the 6 that change most of 9", "trace", torch.rand(40, 9), colour=plotting.ORANGE),
        Record("memory: 12 units", "memory", torch.rand(40, 12), "memory", tau=TAUS),
        Record("soma", "voltage (mV)", -70 + time[:, None] / 4, truth=-70 + time / 5, names=["predicted voltage"]),
        Record(
            "spikes", "probability", time[:, None] / 40, "spikes of a cell", truth=time % 9 == 0, names=["predicted"]
        ),
        Record("output spikes: 9", "neuron", spikes(channels=9), "raster"),
    ]
    return plotting.recordings(spikes(), records, delta_t=10.0, num_excitatory=8)


@functools.cache
def many_recordings() -> Figure:
    records = [plotting.Record(f"part {number} of the state", "state", torch.rand(40, 3)) for number in range(10)]
    return plotting.recordings(spikes(), records, delta_t=10.0)


@functools.cache
def elm_network(output: str = "relu", channels: int = 16) -> Figure:
    torch.manual_seed(0)
    layer = ELMNetwork(channels, 7, 3, delta_t=10.0, output=output, binarize=True, tau_high_pass=20.0)
    x = spikes(channels=channels)
    activity, _ = layer(x[None])
    return plotting.elm_network(x, activity[0], wiring=layer.wiring, tau_m=layer.tau_m, delta_t=10.0)


@functools.cache
def spiking_elm_network() -> Figure:
    return elm_network("spike", 140)


FIGURES = [
    time_constants,
    time_constants_of_decays,
    weight_fields,
    weights_of_one_row,
    spike_responses,
    one_response,
    recordings,
    elm_network,
    spiking_elm_network,
    rasters,
    network_workings,
    workings,
    branch_workings,
    timescales,
    learning_curves,
    confusion_matrix,
    named_confusion_matrix,
    accuracies,
    one_panel,
]
CROWDED = [
    time_constants_of_many_kinds,
    many_weight_fields,
    learning_curves_of_many,
    many_accuracies,
    *(
        pytest.param(draw, marks=pytest.mark.slow)
        for draw in (many_responses, many_recordings, workings_of_many_layers)
    ),
]


@pytest.mark.parametrize("draw", [*FIGURES[:3], *(pytest.param(draw, marks=pytest.mark.slow) for draw in FIGURES[3:])])
def test_figures_are_written_as_png_and_pdf(draw: Callable[[], Figure], tmp_path: Path) -> None:
    png, pdf = plotting.save(draw(), tmp_path / "figure.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.pdf", "figure.png"]


@pytest.mark.parametrize("draw", [*FIGURES, *CROWDED])
def test_no_text_lies_on_another_or_leaves_the_page(draw: Callable[[], Figure]) -> None:
    figure = draw()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axis in figure.axes:
        texts += [axis.title, axis._left_title, axis.xaxis.label, axis.yaxis.label]  # type: ignore[attr-defined]
        for ruler in (axis.xaxis, axis.yaxis):
            low, high = sorted(ruler.get_view_interval())
            texts += [
                tick.label1
                for tick in ruler.get_major_ticks()
                if low <= tick.get_loc() <= high and tick.label1.get_visible()
            ]
        legend = axis.get_legend()
        texts += legend.get_texts() if legend else []
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) > 8
    page = figure.bbox
    assert all(
        page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1 and page.y0 - 1 <= box.y0 and box.y1 <= page.y1 + 1
        for box in boxes
    )
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9))]


@pytest.mark.parametrize("draw", [*FIGURES, *CROWDED])
def test_axes_name_what_they_show(draw: Callable[[], Figure]) -> None:
    labels = [label for axis in draw().axes for label in (axis.get_xlabel(), axis.get_ylabel()) if label]
    assert any(unit in " ".join(labels) for unit in ("(ms)", "epoch", "answer", "units", "weight"))


def panels_of(figure: Figure) -> list[str]:
    """Letters of the panels that show something."""
    titles = [axis.get_title(loc="left") for axis in figure.axes if axis.has_data()]
    return [title.split("}$")[0].removeprefix(r"$\mathbf{") for title in titles if title]


@pytest.mark.parametrize(
    ("draw", "letters"),
    [
        (many_weight_fields, "abcde"),
        (many_responses, "abcdefghi"),
        (many_recordings, "abcdefghijk"),
        (workings_of_many_layers, "abcdefghij"),
        (many_accuracies, "abcdefghi"),
    ],
)
def test_all_panels_are_drawn_and_have_a_letter_of_their_own(draw: Callable[[], Figure], letters: str) -> None:
    assert panels_of(draw()) == [*letters]


def test_the_panels_after_z_have_two_letters() -> None:
    records = [plotting.Record("state", "state", np.zeros((2, 1)))] * 27
    assert panels_of(plotting.recordings(np.zeros((2, 1)), records, delta_t=1.0))[24:] == ["y", "z", "aa", "ab"]


def looks_of(lines: Any) -> list[tuple[str, str]]:
    return [(to_hex(line.get_color()), line.get_marker()) for line in lines]


def test_each_of_many_networks_has_its_own_line_and_its_own_entry_in_the_legend() -> None:
    (legend,) = learning_curves_of_many().legends
    entries = dict(zip([text.get_text() for text in legend.get_texts()], looks_of(legend.get_lines()), strict=True))
    assert [*entries] == [*(f"network {number}" for number in range(7)), "validation", "training", "majority class"]
    for axis in learning_curves_of_many().axes:
        solid = [line for line in axis.lines if line.get_linestyle() == "-"]
        assert looks_of(solid) == [*entries.values()][:7]
        assert len({*looks_of(solid)}) == len(solid)
    first, seventh = (line.get_ydata() for line in learning_curves_of_many().axes[0].lines[1:14:12])
    np.testing.assert_allclose(seventh, 3 * np.asarray(first))
    lines = [line for line in many_accuracies().axes[0].lines if len(np.atleast_1d(line.get_xdata())) == 9]
    lines = [line for line in lines if line.get_linestyle() == "-"]
    (legend,) = many_accuracies().legends
    assert looks_of(lines) == looks_of(legend.get_lines())[:8]
    assert len({*looks_of(lines)}) == 8


@pytest.mark.parametrize(("settings", "log"), [((1.0, 100.0), True), ((1.0, 1e6), True), ((0.0, 50.0), False)])
def test_points_beside_each_other_stay_on_the_panel(settings: tuple[float, float], log: bool) -> None:
    lines = {f"network {number}": [(setting, 0.5, 0.1) for setting in settings] for number in range(20)}
    figure = plotting.accuracies(dict.fromkeys("abc", lines), xlabel="bin (ms)", log=log)
    FigureCanvasAgg(figure).draw()
    for axis in figure.axes:
        ends = [line.get_transform().transform(line.get_xydata())[:, 0] for line in axis.lines]
        assert len({round(end[0], 3) for end in ends}) >= 20
        assert axis.bbox.x0 < np.min([end.min() for end in ends])
        assert np.max([end.max() for end in ends]) < axis.bbox.x1


def test_each_of_many_kinds_of_time_constants_and_of_many_curves_is_drawn() -> None:
    ranked, counted = time_constants_of_many_kinds().axes
    np.testing.assert_allclose([line.get_ydata() for line in ranked.lines], [TAUS / (at + 1) for at in range(8)])
    assert len(counted.containers) == 8
    assert len({*looks_of(ranked.lines)}) == 8
    curves = workings_of_many_layers().axes[-1].lines[:7]
    assert [line.get_label() for line in curves] == [f"part {number}" for number in range(7)]
    assert len({*looks_of(curves)}) == 7


def test_the_mean_over_runs_goes_as_far_as_all_of_them_and_those_that_go_on_are_drawn_alone() -> None:
    histories = {
        "ELM": [
            {"valid/accuracy": [0.1, 0.5, 0.6, 0.7], "valid/loss": [3.0]},
            {"valid/accuracy": [0.3, 0.4], "valid/loss": [1.0]},
        ]
    }
    accuracy, loss = plotting.learning_curves(histories, majority=0.1).axes
    mean, alone = accuracy.lines[:2]
    np.testing.assert_allclose(mean.get_xydata(), [[1, 0.2], [2, 0.45]])
    np.testing.assert_allclose(alone.get_xydata(), [[2, 0.5], [3, 0.6], [4, 0.7]])
    assert alone.get_linewidth() < mean.get_linewidth() and to_hex(alone.get_color()) == to_hex(mean.get_color())
    (band,) = accuracy.collections
    assert {*map(tuple, band.get_paths()[0].vertices.tolist())} == {(1.0, 0.1), (1.0, 0.3), (2.0, 0.4), (2.0, 0.5)}
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [[1, 2.0]])
    assert loss.lines[0].get_marker() == "o"  # a line of one epoch would not be seen


def test_a_run_that_diverged_leaves_no_mean_over_the_others() -> None:
    histories = {"ELM": [{"valid/loss": [1.0, float("nan")]}, {"valid/loss": [3.0, 2.0]}]}
    np.testing.assert_array_equal(
        plotting.learning_curves(histories, majority=0.1).axes[1].lines[0].get_ydata(), [2.0, np.nan]
    )


def test_the_legend_says_how_many_time_constants_a_log_axis_has_no_place_for() -> None:
    figure = plotting.time_constants({"tau_v": [0.0], "tau_a": [20.0, 30.0, np.inf], "tau_s": [5.0]})
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [r"$\tau_{v}$, 0 of 1", r"$\tau_{a}$, 2 of 3", r"$\tau_{s}$ = 5 ms"]
    weights = plotting.time_constants({"tau_m": [10.0, np.inf, 30.0]}, readout={"y": [1.0, 2.0, 3.0]}).axes[1]
    np.testing.assert_allclose(weights.lines[0].get_xydata(), [[10.0, 1.0], [30.0, 3.0]])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tau_high_pass", r"$\tau_{high\ pass}$"),
        ("lambda_", r"$\lambda$"),
        ("membrane", "membrane"),
        ("frac", "frac"),
        ("tau_{", "tau_{"),
        ("decay_$x$", r"decay_\$x\$"),
    ],
)
def test_greek_letters_are_symbols_and_other_names_stay_as_they_are(name: str, shown: str) -> None:
    figure = plotting.time_constants({name: [5.0, 6.0]})
    legend = figure.axes[0].get_legend()
    assert legend is not None
    (text,) = legend.get_texts()
    assert text.get_text() == f"{shown}, 2"
    text.get_window_extent(FigureCanvasAgg(figure).get_renderer())  # it is set without an error


def test_a_change_that_is_nan_is_grey_and_leaves_the_scale_to_the_others() -> None:
    change = np.array([[1.0, np.nan], [-2.0, 0.5]])
    (image,) = plotting.spike_responses({"y|change": change}, delta_t=1.0, rows=range(2)).axes[0].images
    assert image.get_clim() == (-2.0, 2.0)
    assert to_hex(image.to_rgba(change)[0, 1]) == plotting.PALE.lower()


def test_a_raster_shows_each_step_with_a_spike_once_at_its_middle() -> None:
    counts = spikes()
    figure = plotting.rasters([counts], [counts], delta_t=10.0, titles=["one"])
    (points,) = figure.axes[0].collections
    expected = {(10.0 * (step + 0.5), float(channel)) for step, channel in counts.nonzero().tolist()}
    assert {tuple(point) for point in points.get_offsets().tolist()} == expected


def test_a_mark_of_a_raster_is_as_dark_as_its_spikes_are_many() -> None:
    counts = np.array([[4.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    figure = plotting.rasters([counts, 0 * counts], [counts > 0] * 2, delta_t=10.0, titles=["one", "none"])
    (points,) = figure.axes[0].collections
    shades = dict(zip(map(tuple, points.get_offsets().tolist()), points.get_facecolors()[:, 3].tolist(), strict=True))
    assert shades == {(5.0, 0.0): 1.0, (5.0, 1.0): 0.25, (15.0, 1.0): 0.5}
    assert not len(figure.axes[1].collections[0].get_offsets())


def test_workings_show_the_neurons_own_records() -> None:
    neuron = ELM(16, 5, num_memory=12, delta_t=10.0)
    traces = neuron.traces(spikes()[None])
    figure = plotting.workings(spikes(), traces, tau_m=neuron.tau_m, delta_t=10.0, answer=3)
    assert len(figure.axes) == 5  # input, synapses, memory, outputs, colours: each synapse is its own branch
    memory = np.sort(np.stack([line.get_ydata() for line in figure.axes[2].lines]).sum(1))
    np.testing.assert_allclose(memory, np.sort(traces.memory[0].sum(0).detach().double().numpy()), rtol=1e-4, atol=1e-4)
    thick = max(figure.axes[3].lines, key=lambda line: line.get_linewidth())
    np.testing.assert_allclose(np.asarray(thick.get_ydata()), traces.output[0, :, 3].detach().numpy(), rtol=1e-6)


def test_branches_have_their_own_panel_where_they_sum_synapses() -> None:
    assert len(branch_workings().axes) == 6


def test_a_confusion_matrix_shows_shares_of_each_class_and_an_empty_class_as_nothing() -> None:
    figure = plotting.confusion_matrix(np.array([[3, 1, 0], [0, 0, 0], [0, 97, 3]]))
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[0.75, 0.25, 0], [0, 0, 0], [0, 0.97, 0.03]])
    assert {(text.get_position(), text.get_text()) for text in figure.axes[0].texts} == {
        ((0, 0), "75"),
        ((1, 0), "25"),
        ((1, 2), "97"),
    }
    assert figure.axes[0].get_title(loc="left") == "5.8 % of 104 samples right"


def test_accuracies_are_drawn_in_the_order_of_the_setting() -> None:
    line = one_panel().axes[0].lines[0]
    assert [*zip(*line.get_data(), strict=True)] == [(5.0, 0.4), (10.0, 0.5)]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="inputs, hidden and titles must be as many, at least one, got 1, 2 and 1"):
        plotting.rasters([spikes()], [spikes()] * 2, delta_t=1.0, titles=["one"])
    neuron = ELM(16, 5, num_memory=12)
    with pytest.raises(ValueError, match="traces must be of one sample and one neuron"):
        plotting.workings(
            spikes(), neuron.traces(torch.stack([spikes()] * 2)), tau_m=neuron.tau_m, delta_t=1.0, answer=0
        )
    with pytest.raises(ValueError, match="after must have one time constant per unit, 12, got 3"):
        plotting.timescales(TAUS, TAUS[:3])
    with pytest.raises(ValueError, match="histories must hold at least one run of each network"):
        plotting.learning_curves({"none": []}, majority=0.1)
    with pytest.raises(ValueError, match=r"counts must have shape \(num_classes, num_classes\), got \(2, 3\)"):
        plotting.confusion_matrix(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="names must be one per class, 2, got 1"):
        plotting.confusion_matrix(np.zeros((2, 2)), names=["one"])
    with pytest.raises(ValueError, match="panels must hold at least one network each"):
        plotting.accuracies({"test": {}}, xlabel="bin (ms)")
    with pytest.raises(ValueError, match="layers must hold the input at least, got none"):
        plotting.network_workings({}, spikes(), answer=0, name="a", delta_t=1.0, accuracy={}, majority=0.1)
    with pytest.raises(ValueError, match="times must hold time constants above 0 ms, got none"):
        plotting.time_constants({})
    with pytest.raises(ValueError, match="fields must hold at least one panel, got none"):
        plotting.weight_fields({})
    with pytest.raises(ValueError, match="panels must hold at least one picture, got none"):
        plotting.spike_responses({}, delta_t=1.0, rows=[])
    with pytest.raises(ValueError, match=r"panels must have shape \(2, time\), got \(9, 30\) of output"):
        plotting.spike_responses({"output|change": response()}, delta_t=1.0, rows=range(2))
    with pytest.raises(ValueError, match=r"fields of weights must have shape \(row, input\), got \(3,\)"):
        plotting.weight_fields({"weights": torch.ones(3)})
    with pytest.raises(ValueError, match="records must have at most 6 names, got 7 of readout"):
        plotting.recordings(spikes(), [plotting.Record("readout", "output", spikes(), names=[*"abcdefg"])], delta_t=1.0)
    with pytest.raises(OSError, match="there is no folder /nonexistent"):
        plotting.save(timescales(), "/nonexistent/figure")


def test_what_is_nan_or_negative_is_refused_by_name() -> None:
    broken = spikes().clone()
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="inputs must be finite, got nan"):
        plotting.rasters([spikes(), broken], [spikes()] * 2, delta_t=1.0, titles=["one", "two"])
    with pytest.raises(ValueError, match="hidden must be finite, got nan"):
        plotting.rasters([spikes()], [broken], delta_t=1.0, titles=["one"])
    with pytest.raises(ValueError, match="counts must be finite, got inf"):
        plotting.draw_raster(Figure().subplots(), torch.full((2, 2), torch.inf), delta_t=1.0)
    with pytest.raises(ValueError, match="counts must be finite, got nan"):
        plotting.confusion_matrix([[1.0, np.nan], [0.0, 1.0]])
    with pytest.raises(ValueError, match="counts must be at least 0, got -3"):
        plotting.confusion_matrix([[1, -3], [0, 1]])
    with pytest.raises(ValueError, match="fields of weights must be finite, got nan"):
        plotting.weight_fields({"weights": broken})
    with pytest.raises(ValueError, match="before must hold time constants above 0 ms, got nan"):
        plotting.timescales([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="after must hold time constants above 0 ms, got 0"):
        plotting.timescales([1.0, 2.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="tau_m must hold time constants above 0 ms, got inf"):
        plotting.draw_memory(Figure().subplots(), range(40), spikes()[:, :2], [1.0, np.inf])
    wiring, tau_m = np.zeros((16, 1, 1)), np.ones((16, 2))
    for x, activity, name in ((broken, spikes(), "x"), (spikes(), broken, "activity")):
        with pytest.raises(ValueError, match=f"{name} must be finite, got nan"):
            plotting.elm_network(x, activity, wiring=wiring, tau_m=tau_m, delta_t=1.0)
    with pytest.raises(ValueError, match="tau_m must hold time constants above 0 ms, got 0"):
        plotting.elm_network(spikes(), spikes(), wiring=wiring, tau_m=0 * tau_m, delta_t=1.0)
    with pytest.raises(ValueError, match="panels must hold settings above 0 on a log axis, got 0 of ELM in test"):
        plotting.accuracies({"test": {"ELM": [(0.0, 0.5, 0.1)]}}, xlabel="latency (ms)")


def test_what_is_empty_or_of_another_length_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"counts must have shape \(num_classes, num_classes\), got \(0, 0\)"):
        plotting.confusion_matrix(np.zeros((0, 0)))
    with pytest.raises(
        ValueError, match="panels must hold at least one point of each network, got none of LIF in test"
    ):
        plotting.accuracies({"test": {"ELM": points(0.5), "LIF": []}}, xlabel="bin (ms)")
    with pytest.raises(ValueError, match="before must hold at least one time constant, got none"):
        plotting.timescales([], [])
    with pytest.raises(ValueError, match="times must hold tau_m above 0 ms, which readout weighs, got none"):
        plotting.time_constants({"tau_m": [0.0], "tau_s": [5.0]}, readout={"y": [1.0]})
    with pytest.raises(ValueError, match="readout must have one weight for each tau_m, 12, got 3 of y"):
        plotting.time_constants({"tau_m": TAUS}, readout={"y": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="tau_m must have one time constant per memory unit, 2, got 12"):
        plotting.draw_memory(Figure().subplots(), range(40), spikes()[:, :2], TAUS)


def test_a_figure_that_cannot_be_drawn_leaves_the_files_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plotting.save(timescales(), tmp_path / "figure")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    draw = Figure.savefig

    def no_room_for_the_pdf(self: Figure, path: Path, **options: Any) -> None:
        if options["format"] == "pdf":
            raise OSError("no space left on device")
        draw(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", no_room_for_the_pdf)
    with pytest.raises(OSError, match="no space left on device"):
        plotting.save(confusion_matrix(), tmp_path / "figure")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("num_bytes", "kind"), [(200, "png"), (700, "pdf")])
def test_a_disk_that_is_full_is_named_with_the_figure(tmp_path: Path, num_bytes: int, kind: str) -> None:
    with (
        full_disk(num_bytes),
        pytest.raises(OSError, match=rf"figure\.{kind} cannot be written: File too large"),
    ):
        plotting.save(Figure(figsize=(0.5, 0.5)), tmp_path / "figure")
    assert list(tmp_path.iterdir()) == []


def test_a_layers_neurons_are_drawn_in_the_order_of_their_activity_and_the_input_as_it_is() -> None:
    figure = network_workings()
    raster_of_input, raster_of_layer = (axis.collections[0].get_offsets() for axis in figure.axes[:2])
    step, channel = torch.nonzero(spikes(), as_tuple=True)
    np.testing.assert_allclose(raster_of_input, torch.stack((10.0 * (step + 0.5), channel), 1))
    middle = [float(np.mean(raster_of_layer[raster_of_layer[:, 1] == neuron, 0])) for neuron in range(9)]
    assert middle == sorted(middle)


def test_pictures_of_responses_and_weights_hold_their_numbers() -> None:
    images = [axis.images[0].get_array() for axis in spike_responses().axes if axis.images]
    np.testing.assert_allclose(images[0], response())
    assert images[0].shape == (9, 30)
    picture = weight_fields().axes[0].images[0].get_array()
    assert picture.mask.sum() == 400  # what is not read is left white
    wide = np.zeros((2, 5000))
    wide[1, 4321] = -3.0
    assert plotting.weight_fields({"weights": wide}, signed=True).axes[0].images[0].get_array().min() == -3.0


@pytest.mark.parametrize(
    ("module", "missing", "message"),
    [
        ("elm_neuro.plotting", "matplotlib", 'elm_neuro.plotting needs matplotlib: pip install "elm-neuro[train]"'),
        ("elm_neuro.training", "lightning", 'elm_neuro.training needs lightning: pip install "elm-neuro[train]"'),
        ("elm_neuro.demo", "lightning", 'elm_neuro.demo needs lightning: pip install "elm-neuro[train]"'),
    ],
)
def test_a_missing_library_is_named_with_its_extra(module: str, missing: str, message: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr


def test_the_picture_of_a_wiring_counts_synapses() -> None:
    wiring = torch.tensor([[[0, 0, 1]], [[2, 3, 1]]])  # two neurons, each of one branch
    x, activity = torch.zeros(5, 2), torch.tensor([[0.0, 1.0]] * 5)
    figure = plotting.elm_network(x, activity, wiring=wiring, tau_m=torch.tensor([[1.0, 9.0]] * 2), delta_t=1.0)
    outside, inside = (axis.images[0].get_array() for axis in figure.axes if axis.images)
    np.testing.assert_allclose(outside, [[2, 1], [0, 1]])
    np.testing.assert_allclose(inside, [[0, 0], [1, 1]])
    assert "from neurons (33%)" in [axis.get_title(loc="left").split("  ")[-1] for axis in figure.axes]
    with pytest.raises(ValueError, match=r"wiring must be .* of 1 inputs and 2 neurons"):
        plotting.elm_network(x[:, :1], activity, wiring=wiring, tau_m=[[1.0]] * 2, delta_t=1.0)
