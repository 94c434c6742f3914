"""The layer's kernels, run on the CPU, against the reference: drawn layers, inputs, states, lengths and masks, both
ways.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from elm_neuro import ELMNetwork, SpikeEvents
from elm_neuro.backends.cuda import _compile, _network, _network_cluster
from elm_neuro.backends.cuda._network import Sizes
from elm_neuro.backends.cuda._plans import Device
from elm_neuro.backends.network import scan
from elm_neuro.functional import FastSigmoid, NetworkParams, NetworkRule
from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.network import test_published, test_scan
from tests.backends.network.cases import Call, calls, everything, made
from tests.backends.network.native_sizes import compare, in_dtype
from tests.tolerances import assert_close


def drawn(max_examples: int) -> Callable[[Any], Any]:
    fixture = [HealthCheck.function_scoped_fixture]
    return settings(max_examples=max_examples, deadline=None, suppress_health_check=fixture)


architectures = st.sampled_from([80, 90])  # without clusters, with them


@drawn(10)
@given(call=calls(), architecture=architectures)
def test_equals_the_reference(fake_driver: FakeDriver, call: Call, architecture: int) -> None:
    equals_the_reference(fake_driver, call, architecture)


@pytest.mark.slow
@drawn(150)
@given(call=calls(), architecture=architectures)
def test_equals_the_reference_for_many(fake_driver: FakeDriver, call: Call, architecture: int) -> None:
    equals_the_reference(fake_driver, call, architecture)


def equals_the_reference(fake_driver: FakeDriver, call: Call, architecture: int) -> None:
    fake_driver.properties = Device(multiprocessors=132, shared_bytes=166912, architecture=architecture)
    for found, wanted in zip(everything(call, "cuda"), everything(call, "reference"), strict=True):
        assert_close(found, wanted)
    assert [kernel for kernel, *_ in fake_driver.launched if "network" in kernel]


@pytest.mark.parametrize("given", ["frames", "events"])
@pytest.mark.parametrize("name", test_published.NAMES)
def test_the_published_network(fake_driver: FakeDriver, shared: Path, name: str, given: str) -> None:
    test_published.test_the_published_network(name, given, "cuda", shared)


@pytest.mark.parametrize("events", [False, True])
def test_an_input_that_no_neuron_reads_says_nothing(fake_driver: FakeDriver, events: bool) -> None:
    test_scan.test_an_input_that_no_neuron_reads_says_nothing("cuda", events)


def in_several_orders(fake_driver: FakeDriver, num_neuron: int = 13, **layer: Any) -> list[Tensor]:
    """All that a layer of more neurons than a warp has lanes for gives, threads in order, backward and shuffled."""
    params, rule = made(5, sizes=(6, num_neuron, 9, 3, 5), hidden=(7,), **layer)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 9, 6, generator=generator, dtype=torch.float64).requires_grad_()
    found = []
    for seed in range(4):
        fake_driver.seed = seed
        results = everything(Call(x, params, None, rule, {}), "cuda")
        found.append(torch.cat([result.flatten() for result in results]))
    return found


def same(tensors: list[Tensor]) -> bool:
    """Whether all are equal; what nobody has written is NaN, which equals nothing."""
    return all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:])


@pytest.mark.parametrize("trace", [True, False], ids=["blocks", "clusters"])
def test_the_order_of_the_threads_changes_nothing(fake_driver: FakeDriver, trace: bool) -> None:
    assert same(in_several_orders(fake_driver, 13 if trace else 21, trace=trace))
    clusters = ["elm_network_cluster", "elm_network_cluster_backward"]
    launched = {kernel for kernel, *_ in fake_driver.launched if kernel.startswith("elm_network")}
    assert launched == (set(clusters) if not trace else {"elm_network", "elm_network_backward"})


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str, str], None]]:
    """Puts other text in place of some of a source."""

    def change(source: str, old: str, new: str) -> None:
        texts = dict(_compile.sources())
        assert old in texts[source]
        monkeypatch.setattr(_compile, "sources", lambda: texts | {source: texts[source].replace(old, new)})
        forget()

    def forget() -> None:
        _network.program.cache_clear()
        _network_cluster.program.cache_clear()

    yield change
    forget()


BETWEEN = "if (reads_layer) __syncthreads();"  # steps
READ = "__syncthreads();  // what the branches read is there"
WITHIN = "                __syncwarp();\n"  # the layers of a neuron's MLP


@pytest.mark.parametrize(
    ("direction", "sound", "planted"),
    [
        pytest.param("forward", BETWEEN, "", id="no barrier between steps, forward"),
        pytest.param("backward", BETWEEN, "", id="no barrier between steps, backward"),
        *[
            pytest.param(*plant, marks=pytest.mark.slow, id=f"{name}, {plant[0]}")
            for name, plant in [
                ("a warp's barrier between steps", ("forward", BETWEEN, "__syncwarp();")),
                ("a warp's barrier between steps", ("backward", BETWEEN, "__syncwarp();")),
                ("no barrier within a step", ("forward", WITHIN, "")),
                ("no barrier within a step", ("backward", WITHIN, "")),
                ("no barrier behind what the branches read", ("forward", READ, "")),
                ("two write one place", ("forward", "read_back[a.branch[at]]", "read_back[a.branch[at] / 2]")),
                ("two write one place", ("backward", "of_branches[(t % 2 * num_neuron + n)", "of_branches[(n / 2)")),
            ]
        ],
    ],
)
def test_a_missing_barrier_and_a_race_are_found(
    fake_driver: FakeDriver, changed: Callable[[str, str, str], None], direction: str, sound: str, planted: str
) -> None:
    changed(f"network_{direction}.cuh", sound, planted)
    assert not same(in_several_orders(fake_driver, trace=True))


RECEIVE = "if (t) receive(arrivals[(t - 1) & 1], num_neuron * (int)sizeof(Real), (t - 1) >> 1);"


@pytest.mark.parametrize(
    ("direction", "sound", "planted"),
    [
        pytest.param("forward", RECEIVE, "", id="nobody waits for what the layer did, forward"),
        pytest.param(
            "backward", "receive(arrivals[turn & 1], bytes, turn >> 1);", "", id="nor for what it gets back, backward"
        ),
        *[
            pytest.param(*plant, marks=pytest.mark.slow, id=f"{name}, {plant[0]}")
            for name, plant in [
                ("no barrier behind the sums", ("forward", "__syncthreads();  // the neurons' sums are there", "")),
                ("no barrier between steps", ("forward", "__syncthreads();  // what each neuron adds alone", "//")),
                ("no barrier within a neuron", ("forward", "            __syncwarp();\n", "")),
                ("one place for two steps", ("forward", "fed + (t & 1) * OF_STEP", "fed + OF_STEP")),
                ("no barrier behind the sums", ("backward", "__syncthreads();  // the gradients of the block's", "//")),
                ("no barrier between steps", ("backward", "__syncthreads();  // they have been read", "")),
                ("no barrier within a neuron", ("backward", "                __syncwarp();\n", "")),
                ("one place for two blocks", ("backward", "s.rank * tile + s.sum", "s.sum")),
            ]
        ],
    ],
)
def test_what_a_cluster_lacks_is_found(
    fake_driver: FakeDriver, changed: Callable[[str, str, str], None], direction: str, sound: str, planted: str
) -> None:
    assert same(in_several_orders(fake_driver, 21))
    changed(f"network_cluster_{direction}.cuh", sound, planted)
    assert not same(in_several_orders(fake_driver, 21))


def call_of(batch: int, num_steps: int, input_size: int, params: NetworkParams, rule: NetworkRule) -> Call:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, num_steps, input_size, generator=generator, dtype=torch.float64).requires_grad_()
    lengths = torch.randint(0, num_steps + 1, (batch,), generator=generator)
    return Call(x, params, None, rule, {"lengths": lengths})


@pytest.mark.parametrize("kilobytes", [16, 64, 227])
def test_weights_lie_where_there_is_room_for_them(fake_driver: FakeDriver, kilobytes: int) -> None:
    fake_driver.properties = Device(multiprocessors=40, shared_bytes=kilobytes * 1024, architecture=75)
    params, rule = made(2, sizes=(4, 11, 12, 2, 5), hidden=(9, 8))
    sizes = Sizes(11, 12, 5, (9, 8, 5), True, False, True)
    blocks = _network.blocks(sizes, params.bias)
    resident = [[size > 0 for size in block.resident] for block in blocks]
    assert (
        resident
        == {16: [[False, True, True], [False, True, False]], 64: 2 * [3 * [True]], 227: 2 * [3 * [True]]}[kilobytes]
    )
    assert all(block.shared_bytes <= kilobytes * 1024 for block in blocks)
    compare(call_of(2, 5, 4, params, rule), torch.float64, "cuda")


@pytest.mark.parametrize(
    ("num_neuron", "dtype", "threads", "lanes"),
    [(96, torch.float32, 768, 8), (57, torch.float64, 480, 8), (600, torch.float64, 512, 1)],
)
def test_layers_of_more_neurons_than_threads(
    fake_driver: FakeDriver, num_neuron: int, dtype: torch.dtype, threads: int, lanes: int
) -> None:
    fake_driver.properties = Device(multiprocessors=132, shared_bytes=232448, architecture=80)
    params, rule = made(2, sizes=(4, num_neuron, 8, 2, 3), hidden=(6,))
    compare(call_of(1, 3, 4, params, rule), dtype, "cuda")
    assert [launch for launch in fake_driver.launched if launch[0] == "elm_network"] == [
        ("elm_network", (1, 1), threads)
    ]
    how = _network.block(Sizes(num_neuron, 8, 3, (6, 3), True, False, True), dtype, 232448, backward=False)
    assert (how.threads, how.lanes, how.tiles) == (threads, lanes, 1)


@pytest.mark.parametrize(
    ("num_neuron", "num_memory", "hidden", "dtype", "forward", "backward"),
    [
        (96, 5, (10,), torch.float32, 256, 192),  # the published sizes
        (57, 9, (18,), torch.float32, 288, 256),
        (17, 12, (), torch.float64, 96, 96),  # a block of less than others, and one of none
        (3, 32, (31,), torch.float32, 128, 64),
    ],
)
def test_a_cluster_holds_layers_of_all_sizes(
    fake_driver: FakeDriver,
    num_neuron: int,
    num_memory: int,
    hidden: tuple[int, ...],
    dtype: torch.dtype,
    forward: int,
    backward: int,
) -> None:
    params, rule = made(2, sizes=(4, num_neuron, 8, 2, num_memory), hidden=hidden)
    compare(call_of(2, 6, 4, params, rule), dtype, "cuda")
    assert [launch for launch in fake_driver.launched if launch[0].startswith("elm_network")] == [
        ("elm_network_cluster", (2, 8), forward),
        ("elm_network_cluster_backward", (2, 8), backward),
    ]


def test_what_no_cluster_holds_runs_in_blocks(fake_driver: FakeDriver) -> None:
    device = fake_driver.properties
    known = Sizes(96, 30, 5, (10, 5), True, False, True)
    layers = [
        (known, True),
        (known._replace(num_neuron=200), False),
        (known._replace(widths=(33, 5)), False),
        (known._replace(widths=(10, 10, 5)), False),
        (known._replace(trace=True), False),
        (known._replace(num_neuron=1000, reads_layer=False), True),
    ]
    for sizes, held in layers:
        found = [_network_cluster.cluster(sizes, torch.float32, device, backward=back) for back in (False, True)]
        assert all((how is not None) == held for how in found), sizes
        for other in (replace(device, architecture=86), replace(device, multiprocessors=7)):  # older, a slice of a GPU
            assert _network_cluster.cluster(sizes, torch.float32, other, backward=False) is None


@pytest.mark.parametrize(
    ("architecture", "launch"), [(80, ("elm_network", (2, 3), 128)), (90, ("elm_network_cluster", (2, 8), 96))]
)
def test_neurons_that_do_not_read_one_another_share_no_block(
    fake_driver: FakeDriver, architecture: int, launch: tuple[str, tuple[int, int], int]
) -> None:
    fake_driver.properties = Device(multiprocessors=108, shared_bytes=166912, architecture=architecture)
    params, rule = made(4, sizes=(5, 70, 3, 2, 3), hidden=(), output="identity")
    params = params._replace(index=params.index % 5)
    compare(call_of(2, 6, 5, params, rule), torch.float64, "cuda")
    assert launch in fake_driver.launched


def test_a_wiring_is_looked_at_once_and_again_when_it_changes(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    look = _network._wiring
    monkeypatch.setattr(_network, "_wiring", lambda *arguments: looked.append(0) or look(*arguments))
    torch.manual_seed(0)
    layer = ELMNetwork(6, 5, num_memory=3, num_branch=4, num_synapse_per_branch=2, backend="cuda").double()
    x = torch.rand(2, 4, 6).double()
    for _ in range(3):
        layer(x)[0].sum().backward()
    with torch.no_grad():
        layer(x)
    assert len(looked) == 1
    (index,) = (buffer for buffer in layer.buffers() if buffer.dtype == torch.int64)
    index.zero_()
    found = layer(x)[0]
    assert len(looked) == 2
    layer.backend = "reference"
    assert_close(found, layer(x)[0])


def test_what_it_cannot_run_is_refused_by_name_and_left_to_others(fake_driver: FakeDriver) -> None:
    x = torch.rand(1, 3, 6, dtype=torch.float64)

    def refused(params: NetworkParams, rule: NetworkRule, message: str) -> None:
        with pytest.raises(ValueError, match=f'"cuda" cannot run this: {message}'):
            scan(x, params, None, rule, backend="cuda")

    refused(*made(1, hidden=(2, 3, 4)), "its MLPs have at most 2 hidden layers, got 3")
    params, rule = made(1, output="spike", surrogate=lambda z: (z > 0).to(z.dtype))
    refused(params, rule, "it knows the surrogates ATan, ")
    fake_driver.properties = Device(multiprocessors=40, shared_bytes=1024, architecture=75)
    params, rule = made(1)
    refused(params, rule, "its shared memory has 1024 bytes, 5 neurons that read one another take 1512")
    fake_driver.launched.clear()
    scan(x, params, None, rule)
    assert not fake_driver.launched
    half = in_dtype(params, torch.bfloat16)
    with pytest.raises(ValueError, match=r"it runs in float32 and float64, got torch\.bfloat16"):
        scan(x.bfloat16(), half, None, rule, backend="cuda")


def test_events_past_a_samples_end_are_not_heard(fake_driver: FakeDriver) -> None:
    params, rule = made(7)
    x = torch.ones(2, 5, 6, dtype=torch.float64)
    x[0, 3:] = torch.nan
    lengths = torch.tensor([3, 5])
    options = {"lengths": lengths, "input_mask": 1.25 * torch.ones(2, 6).double()}
    cases = [Call(one, params, None, rule, options) for one in (SpikeEvents.from_frames(x), torch.ones_like(x))]
    for found, wanted in zip(*(everything(case, "cuda") for case in cases), strict=True):
        assert_close(found, wanted)


def test_settings_of_a_surrogate_are_not_compiled(fake_driver: FakeDriver) -> None:
    libraries = set()
    for scale in (5.0, 25.0, 100.0):  # as where the slope is annealed
        params, rule = made(3, output="spike", surrogate=FastSigmoid(scale))
        compare(call_of(2, 5, 6, params, rule), torch.float64, "cuda")
        libraries.add(len(fake_driver._libraries))
    assert len(libraries) == 1
