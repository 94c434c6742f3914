"""Models over buffers that stay where they are, and what a session on a GPU is asked for."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.branched import FORMS, loaded, neuron, written

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("elm_neuro.export", exc_type=ImportError)


@pytest.fixture(scope="module")
def runtime() -> Any:
    return loaded()


@pytest.mark.parametrize("kind", ["array", "tensor"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_bound_buffers_give_the_numbers_of_the_module_call_after_call(
    tmp_path: Path, runtime: Any, form: str, batch_first: bool, kind: str
) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", form, batch_first=batch_first), providers="cpu", num_threads=1)
    width = {"step": 1, "sequence": 15, "unrolled": 10}[form]
    frames = torch.randn(2, 30, 6)
    with torch.no_grad():
        y, after = neuron()(frames)
    pieces = [part[:, 0] if form == "step" else part for part in frames.split(width, dim=1)]
    wanted = [part[:, 0] if form == "step" else part for part in y.split(width, dim=1)]
    if not batch_first and form != "step":
        pieces, wanted = ([part.transpose(0, 1) for part in parts] for parts in (pieces, wanted))
    buffer = pieces[0].clone(memory_format=torch.contiguous_format)
    bound = model.bound(buffer.numpy() if kind == "array" else buffer)
    for _ in range(2):
        for number, (piece, expected) in enumerate(zip(pieces, wanted, strict=True)):
            if number % 2:
                bound.x[...] = piece.numpy() if kind == "array" else piece
            outputs = bound.run(None if number % 2 else piece)
            assert outputs is bound.outputs and type(outputs["y"]) is type(bound.x)
            np.testing.assert_allclose(np.asarray(outputs["y"]), expected, atol=1e-5)
        for name, value in after._asdict().items():
            np.testing.assert_allclose(np.asarray(bound.state[name]), value, atol=1e-5)
        bound.reset()


class CopiesWhenBound:
    """A session as on a GPU for buffers on the CPU: they are copied when they are bound, and not when it runs."""

    def __init__(self, session: Any) -> None:
        self.session = session

    def io_binding(self) -> Any:
        binding, kept = self.session.io_binding(), []

        def bind_input(name: str, device: str, index: int, kind: Any, shape: Any, address: int) -> None:
            kept.append(
                ctypes.create_string_buffer(ctypes.string_at(address, math.prod(shape) * np.dtype(kind).itemsize))
            )
            binding.bind_input(name, device, index, kind, shape, ctypes.addressof(kept[-1]))

        return SimpleNamespace(bind_input=bind_input, bind_output=binding.bind_output, real=binding, kept=kept)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.session.run_with_iobinding(binding.real, options)


def test_bound_tensors_that_lie_elsewhere_than_the_provider_computes_are_read_in_every_call(
    tmp_path: Path, runtime: Any
) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", "step"), providers="cpu")
    frames = torch.randn(2, 8, 6)
    with torch.no_grad():
        expected, _ = neuron()(frames)
    model.session, model.providers = CopiesWhenBound(model.session), ["CUDAExecutionProvider"]
    bound = model.bound(torch.zeros(2, 6))
    for _ in range(2):
        for frame, y in zip(frames.unbind(1), expected.unbind(1), strict=True):
            np.testing.assert_allclose(bound.run(frame)["y"], y, atol=1e-5)
        bound.reset()
    model.cuda_graph = True
    with pytest.raises(ValueError, match="x must be on cuda:0 for cuda_graph, got a tensor on cpu"):
        model.bound(torch.zeros(2, 6))


def test_bound_states_are_never_moved_and_may_be_given(tmp_path: Path, runtime: Any) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", "step"))
    x = torch.randn(2, 6)
    bound = model.bound(x)
    places = []
    for _ in range(4):
        bound.run()
        places.append(bound.state["m"].data_ptr())
    assert places[0] == places[2] != places[1] == places[3]
    state = {name: np.random.default_rng(0).random(value.shape) for name, value in model.initial_state(2).items()}
    bound.reset(state)
    expected, after = model.step(x.numpy(), state)
    np.testing.assert_array_equal(bound.run()["y"], expected["y"])
    np.testing.assert_array_equal(bound.state["m"], after["m"])
    with pytest.raises(ValueError, match=r"state must hold \['b', 'm'\], got \['b'\]"):
        bound.reset({"b": state["b"]})


def test_bound_lengths_stop_a_sample(tmp_path: Path, runtime: Any) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", "sequence", lengths=True))
    x = np.random.default_rng(0).random((3, 9, 6)).astype(np.float32)
    for lengths in (None, [9, 2, 0]):
        bound = model.bound(x, lengths)
        expected, after = model.run(x, lengths=lengths)
        np.testing.assert_array_equal(bound.run()["y"], expected["y"])
        np.testing.assert_array_equal(bound.state["m"], after["m"])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 5), np.float32), r"x must have shape \(batch, time, 6\), got \(2, 5\)"),
        (np.zeros((2, 10, 5), np.float32), r"x must have shape \(batch, time, 6\), got \(2, 10, 5\)"),
        (np.zeros((2, 10, 6)), "x must hold float32 as the model does, got float64"),
        (torch.zeros(2, 10, 6, dtype=torch.uint8), "x must hold float32 as the model does, got uint8"),
        (np.zeros((10, 2, 6), np.float32).swapaxes(0, 1), "x must be contiguous"),
        (np.zeros((2, 9, 6), np.float32), r"x must have samples and 10 steps, got shape \(2, 9, 6\)"),
        (np.zeros((0, 10, 6), np.float32), r"x must have samples and 10 steps, got shape \(0, 10, 6\)"),
    ],
)
def test_buffers_that_do_not_fit_are_named(tmp_path: Path, runtime: Any, x: Any, message: str) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", "unrolled"))
    with pytest.raises(ValueError, match=message):
        model.bound(x)


def test_what_is_copied_into_a_buffer_must_fit_it(tmp_path: Path, runtime: Any) -> None:
    bound = runtime(written(tmp_path / "neuron.onnx", "step")).bound(torch.zeros(2, 6))
    for x in (torch.zeros(6), torch.zeros(1, 6), np.zeros((2, 1))):  # none is spread over the buffer
        with pytest.raises(ValueError, match=r"x must have shape \(2, 6\), got"):
            bound.run(x)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((2, 6), np.nan), "x must be finite, got 12 values that are not"),
        (np.zeros((2, 6), complex), "x must hold numbers, got complex128"),
        (np.full((2, 6), None), "x must hold numbers, got object"),
    ],
)
def test_arrays_that_are_copied_into_a_buffer_are_looked_at(
    tmp_path: Path, runtime: Any, value: Any, message: str
) -> None:
    path = written(tmp_path / "neuron.onnx", "step")
    bound = runtime(path).bound(np.zeros((2, 6), np.float32))
    y = bound.run()["y"].copy()
    bound.reset()
    with pytest.raises(ValueError, match=message):
        bound.run(value)
    with pytest.raises(ValueError, match="state b must be finite, got 6"):
        bound.reset({"b": np.full((2, 3), np.inf), "m": np.zeros((2, 3))})
    np.testing.assert_array_equal(bound.run()["y"], y)  # nothing of it has come in
    unchecked = runtime(path, check=False).bound(np.zeros((2, 6), np.float32))
    assert np.isnan(unchecked.run(np.full((2, 6), np.nan))["y"]).all()


class Recorded:
    """An onnxruntime with the CUDA provider, on the CPU: what a session is asked for."""

    def __init__(self) -> None:
        self.providers: list[Any] = []

    def session(self, path: str, options: Any, providers: list[Any]) -> Any:
        self.providers = providers
        real = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        real.get_providers = lambda: [name for name, _ in providers]
        return real


@pytest.fixture
def cuda(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    fake = SimpleNamespace(**{name: getattr(onnxruntime, name) for name in ("SessionOptions", "RunOptions")})
    fake.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    fake.InferenceSession, fake.OrtValue = recorded.session, OrtValueOnTheCpu
    monkeypatch.setitem(runtime.__init__.__globals__, "onnxruntime", fake)
    return recorded


class OrtValueOnTheCpu(onnxruntime.OrtValue):  # type: ignore[misc]
    """Values for a GPU, on the CPU."""

    @staticmethod
    def ortvalue_from_numpy(array: Any, device: str = "cpu", number: int = 0) -> Any:
        assert (device, number) == ("cuda", 1)
        # older releases hold no reference to the memory that they share
        return OrtValueOnTheCpu(onnxruntime.OrtValue.ortvalue_from_numpy(array)._ortvalue, array)

    @staticmethod
    def ortvalue_from_shape_and_type(shape: Any, kind: Any, device: str = "cpu", number: int = 0) -> Any:
        assert (device, number) == ("cuda", 1)
        return OrtValueOnTheCpu(onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind)._ortvalue)


def test_the_cuda_provider_is_exact_unless_asked_otherwise(tmp_path: Path, runtime: Any, cuda: Recorded) -> None:
    path = written(tmp_path / "neuron.onnx", "step")
    exact = {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "0"}
    runtime(path, providers="cuda")
    assert cuda.providers == [("CUDAExecutionProvider", exact)]
    runtime(path, providers=["cuda", "cpu"], tf32=True, cuda_graph=True, device=1)
    wanted = {"device_id": "1", "use_tf32": "1", "enable_cuda_graph": "1"}
    assert cuda.providers == [("CUDAExecutionProvider", wanted), ("CPUExecutionProvider", {})]
    with pytest.raises(ValueError, match="options of CUDAExecutionProvider, got providers"):
        runtime(path, tf32=True)
    with pytest.raises(ValueError, match=r'cuda_graph needs a model of the form "step" or "unrolled"'):
        runtime(written(tmp_path / "loop.onnx", "sequence"), providers="cuda", cuda_graph=True)


def test_arrays_go_to_the_gpu_once_and_graphs_have_numbers_of_their_own(
    tmp_path: Path, runtime: Any, cuda: Recorded
) -> None:
    path = written(tmp_path / "neuron.onnx", "unrolled")
    x = np.random.default_rng(0).random((2, 10, 6)).astype(np.float32)
    with torch.no_grad():
        y, after = neuron()(torch.from_numpy(np.concatenate([x, x], 1)))
    model = runtime(path, providers="cuda", device=1, cuda_graph=True)
    first, second = model.bound(x), model.bound(x)
    numbers = [o.get_run_config_entry("gpu_graph_id") for bound in (first, second) for o in bound._options]
    assert len(set(numbers)) == 4 and "0" not in numbers
    first._options = [None, None]  # the CPU has no graphs
    first.run()
    found = first.run(x)["y"]
    assert isinstance(found, OrtValueOnTheCpu)
    np.testing.assert_allclose(found.numpy(), y[:, 10:], atol=1e-5)
    np.testing.assert_allclose(first.state["m"].numpy(), after.m, atol=1e-5)
    with pytest.raises(ValueError, match="runs by bound"):
        model.run(x)
