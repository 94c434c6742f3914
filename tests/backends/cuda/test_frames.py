"""Frames in the backend `cuda`, of bytes and of numbers: its kernels on the CPU, against float64 and each other."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from elm_neuro import ELM, BranchELM, ELMState, SpikingELM
from elm_neuro.backends.cuda import _frames
from elm_neuro.backends.cuda._launch import address
from elm_neuro.backends.elm import _cuda, _cuda_plan
from tests.backends.compiled import looked_into
from tests.backends.cuda.fake_driver import FakeDriver
from tests.backends.equal_cases import everything
from tests.tolerances import assert_close

DTYPES = [torch.uint8, torch.int8]
OF_NUMBERS = torch.float64  # or any other that numbers have


def frames(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    """All numbers that a byte holds, or as large ones, half of them 0."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        x = 50 * torch.randn(shape, generator=generator, dtype=dtype)
    else:
        limits = torch.iinfo(dtype)
        x = torch.randint(limits.min, limits.max + 1, shape, generator=generator)
    return (x * (torch.rand(shape, generator=generator) < 0.5)).to(dtype)


def of(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Frames as they go with sums of this dtype: of bytes as they are."""
    return x.to(dtype) if x.is_floating_point() else x


def take(monkeypatch: pytest.MonkeyPatch, tile: _frames.Tile, num_part: int) -> None:
    """Have products computed in such tiles, and gradients of tables in so many parts."""

    def tiling(*_: object, in_parts: bool, **__: object) -> _frames.Tiling:
        return _frames.Tiling(tile, num_part if in_parts else 1)

    monkeypatch.setattr(_frames, "tiling", tiling)
    _frames.settled.cache_clear()


@pytest.mark.parametrize("seed", [0, 2, 5])
@pytest.mark.parametrize("dtype", [*DTYPES, OF_NUMBERS])
@pytest.mark.parametrize(
    ("shape", "width"), [((1, 1, 1), 1), ((3, 23, 70), 33), ((2, 5, 3, 33), 40), ((1, 600, 65), 7), ((2, 300, 2, 3), 2)]
)
def test_products_and_their_gradients_are_those_of_float64(
    fake_driver: FakeDriver, shape: tuple[int, ...], width: int, dtype: torch.dtype, seed: int
) -> None:
    fake_driver.seed = seed
    x, own = frames(dtype, *shape), len(shape) == 4
    exact = x.double().transpose(1, 2) if own else x.double()
    table = torch.randn(*shape[2:], width, dtype=torch.float64)
    flow = torch.randn(*shape[:-1], width, dtype=torch.float64)
    product = (exact @ table).transpose(1, 2) if own else exact @ table
    gradient = torch.einsum("btni,btnf->nif" if own else "bti,btf->if", x.double(), flow)
    for kind, near in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        factor, grad, given = table.to(kind), flow.to(kind), of(x, kind)
        found = _frames.multiply(given, factor)
        torch.testing.assert_close(found.double(), product, rtol=near, atol=near * 128 * shape[-1])
        parts = _frames.multiply_inputs(given, grad)
        assert parts.shape[0] <= max(1, shape[0] * shape[1] // _frames.ROWS_OF_PART)
        torch.testing.assert_close(parts.sum(0).double(), gradient, rtol=near, atol=near * 128 * shape[0] * shape[1])
        assert torch.equal(_frames.multiply(given, factor), found)


@pytest.mark.parametrize(
    "tile", [_frames.Tile(*sizes) for sizes in ((8, 10), (4, 10), (4, 10, 16), (8, 8), (4, 2, 16), (8, 10, 8, 2))]
)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
def test_every_tile_gives_the_same(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, tile: _frames.Tile, dtype: torch.dtype
) -> None:
    """Also where neither rows, columns nor terms fill the last one, and no thread runs in order."""
    x, table, flow = frames(dtype, 3, 47, 2, 77), torch.randn(2, 77, 83), torch.randn(3, 47, 2, 83)
    product = torch.einsum("btni,nif->btnf", x.double(), table.double())
    gradient = torch.einsum("btni,btnf->nif", x.double(), flow.double())
    for num_part in (1, 3):
        take(monkeypatch, tile, num_part)
        found = []
        for seed in range(3):
            fake_driver.seed = seed
            found.append((_frames.multiply(x, table), _frames.multiply_inputs(x, flow)))
        for one, other in found:
            assert torch.equal(one, found[0][0]) and torch.equal(other, found[0][1])
        torch.testing.assert_close(found[0][0].double(), product, rtol=1e-5, atol=1e-1)
        torch.testing.assert_close(found[0][1].sum(0).double(), gradient, rtol=1e-5, atol=2e-1)


@pytest.mark.parametrize("dtype", [*DTYPES, OF_NUMBERS])
def test_frames_that_do_not_lie_in_one_piece_are_read_where_they_lie(
    fake_driver: FakeDriver, dtype: torch.dtype
) -> None:
    table, flow = torch.randn(9, 4, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    whole = frames(dtype, 10, 6, 12)
    views = (
        whole.transpose(0, 1)[::2, ::2, :9],
        whole[::4, 1:6, 2:11],
        whole[:1, :1, :9].expand(3, 5, 9),
        whole[:3, :5, :1].expand(3, 5, 9),
    )
    for x in views:
        torch.testing.assert_close(_frames.multiply(x, table), x.double() @ table)
        wanted = torch.einsum("bti,btf->if", x.double(), flow)
        torch.testing.assert_close(_frames.multiply_inputs(x, flow).sum(0), wanted)


@pytest.mark.parametrize("dtype", [*DTYPES, OF_NUMBERS])
@pytest.mark.parametrize("lengths", [None, torch.tensor([23, 0, 7])])
def test_discounted_sums_are_those_of_float64(
    fake_driver: FakeDriver, dtype: torch.dtype, lengths: torch.Tensor | None
) -> None:
    x = frames(dtype, 3, 23, 2, 5)
    for kappa in (0.0, 0.9, 1.0):
        wanted = torch.zeros(3, 2, 5, dtype=torch.float64)
        for t in range(23):
            valid = torch.tensor([True] * 3) if lengths is None else t < lengths
            wanted = torch.where(valid[:, None, None], kappa * wanted + x[:, t].double(), wanted)
        found, discount = torch.empty_like(wanted), torch.tensor(kappa, dtype=torch.float64)
        rows = x.flatten(2)
        launch = _frames.discounted_sum(discount.dtype, *rows.shape, of_bytes=not dtype.is_floating_point)
        launch(
            fake_driver, *rows.stride()[:2], _frames.sign_of(x), address(lengths), discount.data_ptr(), rows.data_ptr(),
            found.data_ptr(),
        )  # fmt: skip
        torch.testing.assert_close(found, wanted)


SMALL: dict[str, Any] = {"num_memory": 3, "num_branch": 8, "num_synapse_per_branch": 14, "routing": "random"}
NEURONS: dict[str, Any] = {
    "ELM": lambda: ELM(7, 2, num_memory=3),
    "BranchELM": lambda: BranchELM(40, 2, **SMALL),
    "fewer branches than hidden units": lambda: BranchELM(40, 2, **{**SMALL, "num_branch": 3}),
    "population": lambda: BranchELM(40, 2, **SMALL, num_neuron=2),
    "no hidden layer": lambda: BranchELM(40, 2, **SMALL, num_mlp_layers=0),
    "tau per branch": lambda: BranchELM(40, 2, **SMALL, tau_s=tuple(1.0 + i for i in range(8))),
    "tau per input": lambda: ELM(7, 2, num_memory=3, tau_s=tuple(1.0 + i for i in range(7)), num_neuron=2),
    "nonlinear branches": lambda: BranchELM(40, 2, **SMALL, branch_activation="tanh", num_neuron=2),
}


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ("", DTYPES[0]),
        ("own", DTYPES[1]),
        ("state", DTYPES[0]),
        ("lengths", DTYPES[1]),
        ("recompute", DTYPES[1]),
        ("parts", DTYPES[0]),
        ("own parts", DTYPES[0]),
    ],
)
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_give_what_they_give_for_floats(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, options: str
) -> None:
    torch.manual_seed(0)
    neuron: ELM = NEURONS[name]().double()
    if "parts" in options:
        take(monkeypatch, _frames.Tile(4, 4), 3)
    own = (2,) if "own" in options and neuron.config.num_neuron else ()
    x = frames(dtype, 3, 11, *own, neuron.config.input_size) // 16
    state = None
    if options == "state":
        state = ELMState(*(torch.randn_like(part).requires_grad_() for part in neuron.cell.initial_state(3)))
    lengths = torch.tensor([11, 0, 4]) if options == "lengths" else None
    neuron.recompute_every = 4 if options == "recompute" else None
    expected = everything(neuron, "reference", x.double(), state, lengths)
    of_x = 3 + len(list(neuron.parameters()))  # bytes have no gradient
    results = everything(neuron, "cuda", x, state, lengths)
    for index, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        if index != of_x:
            assert_close(result, wanted)


@pytest.mark.parametrize("options", ["", "own", "state", "lengths", "gradient of x"])
@pytest.mark.parametrize("name", NEURONS)
def test_neurons_give_the_same_by_a_kernel_and_by_torchs_products(
    fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch, name: str, options: str
) -> None:
    torch.manual_seed(0)
    neuron: ELM = NEURONS[name]().double()
    own = (2,) if "own" in options and neuron.config.num_neuron else ()
    x = frames(OF_NUMBERS, 3, 11, *own, neuron.config.input_size).div_(32).requires_grad_(options == "gradient of x")
    state = None
    if options == "state":
        state = ELMState(*(torch.randn_like(part).requires_grad_() for part in neuron.cell.initial_state(3)))
    lengths = torch.tensor([11, 0, 4]) if options == "lengths" else None
    expected = everything(neuron, "reference", x, state, lengths)
    for spared in (_frames.SPARED, -(10**9)):
        monkeypatch.setattr(_frames, "SPARED", spared)
        _frames.settled.cache_clear()
        _cuda_plan.plan.cache_clear()
        for result, wanted in zip(everything(neuron, "cuda", x, state, lengths), expected, strict=True):
            assert_close(result, wanted)


@pytest.mark.parametrize(("precision", "multiplies"), [("none", True), ("ieee", True), ("tf32", False)])
def test_whose_products_may_be_rounded_has_torchs(
    fake_driver: FakeDriver, request: pytest.FixtureRequest, precision: str, multiplies: bool
) -> None:
    """TF32 is for who asks torch for it; a pass in float64 has no use for it."""
    of_gpus: Any = torch.backends.cuda.matmul
    request.addfinalizer(partial(setattr, of_gpus, "fp32_precision", of_gpus.fp32_precision))
    of_gpus.fp32_precision = precision
    for dtype, by_a_kernel in ((torch.float32, multiplies), (torch.float64, True)):
        fake_driver.launched.clear()
        ELM(7, 2, num_memory=3, backend="cuda").to(dtype)(torch.ones(2, 5, 7, dtype=dtype))[0].sum().backward()
        names = {name for name, *_ in fake_driver.launched}
        assert (names & {"elm_multiply", "elm_multiply_inputs"} != set()) == by_a_kernel
        assert "elm_discount" in names


def test_large_products_have_cublas(fake_driver: FakeDriver) -> None:
    """Which takes the host longer, and the device no longer."""
    form = _cuda_plan.Form(
        torch.float32, torch.device("cpu"), _cuda_plan.FRAMES, 256, 500, 1278, False, torch.Size((1278, 1)), None,
        torch.Size((40, 1298)), torch.Size((20,)), torch.Size((2, 20)), True, False, False, None, None,
    )  # fmt: skip
    small = form._replace(batch=32)
    for of_inputs in (False, True):

        def by_a_kernel(form: _cuda_plan.Form, of_inputs: bool = of_inputs) -> bool:
            return _cuda_plan.plan(form).product_of_frames(of_inputs=of_inputs) is not None

        assert by_a_kernel(small) and not by_a_kernel(form)
        assert not by_a_kernel(small._replace(lowered=torch.bfloat16))
        assert by_a_kernel(form._replace(arrives=_cuda_plan.BYTES))


def test_no_float_copy_is_made_of_them(fake_driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only operations on the frames are the kernels': whatever torch makes has fewer entries."""
    from torch.utils._python_dispatch import TorchDispatchMode

    x, largest = frames(torch.uint8, 4, 50, 300), 0

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for value in result if isinstance(result, tuple) else (result,):
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    largest = max(largest, value.numel())
            return result

    torch.manual_seed(0)
    neuron = BranchELM(300, 2, 3, num_branch=9, num_synapse_per_branch=40, routing="random", backend="cuda")
    params = neuron.cell.effective_parameters()
    with Watched():
        y, _ = _cuda.Cuda().scan(x, params, None)
        y.sum().backward()
    assert {"elm_multiply", "elm_multiply_inputs", "elm_discount"} <= {name for name, *_ in fake_driver.launched}
    assert 0 < largest < x.numel()


def test_autocast_and_spikes_take_them_too(fake_driver: FakeDriver) -> None:
    torch.manual_seed(0)
    neuron, x = ELM(7, 2, num_memory=3, backend="cuda"), frames(torch.uint8, 2, 9, 7) // 64
    expected = neuron(x.float())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = neuron(x)[0]
    assert y.dtype == torch.bfloat16
    assert_close(y.float(), expected, dtype=torch.bfloat16)
    spiking = SpikingELM(neuron, threshold=0.01)
    assert_close(spiking(x)[0], spiking(x.float())[0])


@looked_into
def test_compiled_code_takes_them_without_a_graph_break(fake_driver: FakeDriver) -> None:
    from elm_neuro import backends

    torch.manual_seed(0)
    neuron, x = ELM(7, 2, num_memory=3, backend="cuda"), frames(torch.uint8, 2, 5, 7) // 64
    expected = neuron(x.float())[0]
    expected.sum().backward()
    wanted = [p.grad.clone() for p in neuron.parameters() if p.grad is not None]
    neuron.zero_grad()

    def run(x: torch.Tensor) -> torch.Tensor:
        return backends.scan(x, neuron.cell.effective_parameters(), None, backend="cuda")[0]

    y = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert_close(y.detach(), expected.detach())
    y.sum().backward()
    for grad, other in zip([p.grad for p in neuron.parameters() if p.grad is not None], wanted, strict=True):
        assert_close(grad, other)
