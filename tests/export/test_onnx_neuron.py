"""The runtime that needs NumPy and onnxruntime only."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from elm_neuro import ELM, LIF, BranchELM

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)
SOURCE = Path(__file__).parents[2] / "export" / "onnx_neuron.py"
FORMS = ["step", "sequence", "unrolled"]


@pytest.fixture(scope="module")
def runtime() -> Any:
    """Loaded by its path, as a user without elm_neuro does."""
    spec = importlib.util.spec_from_file_location("onnx_neuron", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OnnxNeuron


def neuron() -> BranchELM:
    torch.manual_seed(0)
    return BranchELM(6, 2, num_memory=3, num_branch=3, num_synapse_per_branch=4)


def written(path: Path, form: str, **options: Any) -> Path:
    export.to_onnx(neuron(), path, form=form, num_steps=10 if form == "unrolled" else None, verify=False, **options)
    return path


def test_it_imports_nothing_else() -> None:
    found = set(re.findall(r"^(?:import|from) ([\w.]+)", SOURCE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert found == {"__future__", "json", "os", "sys", "collections.abc", "typing", "numpy", "onnxruntime"}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_sequence_runs_alike_in_every_form_and_goes_on(
    tmp_path: Path, runtime: Any, form: str, batch_first: bool
) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", form, batch_first=batch_first), num_threads=1)
    x = torch.randn(2, 30, 6)
    frames = x if batch_first else x.transpose(0, 1)
    time = 1 if batch_first else 0
    with torch.no_grad():
        y, after = neuron()(x)
    y = y if batch_first else y.transpose(0, 1)
    first, state = model.run(np.take(frames.numpy(), range(20), axis=time))
    second, state = model.run(np.take(frames.numpy(), range(20, 30), axis=time), state)
    np.testing.assert_allclose(np.concatenate([first["y"], second["y"]], axis=time), y, atol=1e-5)
    for name, value in after._asdict().items():
        np.testing.assert_allclose(state[name], value, atol=1e-5)


def test_steps_are_the_sequence_and_leave_the_given_state_alone(tmp_path: Path, runtime: Any) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", "step"))
    x = np.random.default_rng(0).random((2, 9, 6))
    state = model.initial_state(2)
    kept = {name: value.copy() for name, value in state.items()}
    found, end = model.run(x, state)
    steps = list(model.stream(x.swapaxes(0, 1), state))
    for t, (outputs, _) in enumerate(steps):
        np.testing.assert_array_equal(outputs["y"], found["y"][:, t])
    last = steps[-1][1]
    for name in kept:
        np.testing.assert_array_equal(state[name], kept[name])
        np.testing.assert_array_equal(last[name], end[name])
    with torch.no_grad():
        np.testing.assert_allclose(found["y"], neuron()(torch.from_numpy(x).float())[0], atol=1e-5)


def test_a_network_and_a_head_have_their_outputs_by_name(tmp_path: Path, runtime: Any) -> None:
    torch.manual_seed(0)
    export.to_onnx(
        nn.Sequential(LIF(6, 4), ELM(4, 2, num_memory=3)),
        tmp_path / "net.onnx",
        form="sequence",
        head="neuronio",
        verify=False,
    )
    model = runtime(tmp_path / "net.onnx")
    outputs, state = model.run(np.ones((1, 5, 6), dtype=np.int8))
    assert {name: value.shape for name, value in outputs.items()} == {"spike_probability": (1, 5), "soma_mv": (1, 5)}
    assert sorted(state) == ["0.v", "1.b", "1.m"]
    assert "form='sequence'" in repr(model)


def test_the_last_step_of_a_classifier_is_one_output(tmp_path: Path, runtime: Any) -> None:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    torch.manual_seed(0)
    net = training.SequenceClassifier(ELM(6, 3, num_memory=3))
    export.to_onnx(net, tmp_path / "net.onnx", form="unrolled", num_steps=5, verify=False)
    x = np.random.default_rng(0).random((2, 15, 6), dtype=np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(runtime(tmp_path / "net.onnx").run(x)[0]["y"], net(torch.from_numpy(x)), atol=1e-5)


def test_it_lies_beside_the_model_on_request(tmp_path: Path) -> None:
    written(tmp_path / "neuron.onnx", "step", runtime=True)
    assert (tmp_path / "onnx_neuron.py").read_bytes() == SOURCE.read_bytes()


def test_models_of_others_are_refused(tmp_path: Path, runtime: Any) -> None:
    import onnx

    with pytest.raises(FileNotFoundError, match=r"there is no .*none\.onnx"):
        runtime(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(ValueError, match=r"path must be an ONNX model that onnxruntime can load, got .*broken\.onnx"):
        runtime(tmp_path / "broken.onnx")
    model = onnx.load(str(written(tmp_path / "neuron.onnx", "step")))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "bare.onnx"))
    with pytest.raises(
        ValueError, match=r"path must be a model of elm_neuro\.export, got .*bare\.onnx without its metadata"
    ):
        runtime(tmp_path / "bare.onnx")
    model = onnx.load(str(tmp_path / "neuron.onnx"))
    next(entry for entry in model.metadata_props if entry.key == "elm_neuro.options").value = '{"form": "loop"}'
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(
        ValueError, match=r"path must be a model of elm_neuro\.export, got .*other\.onnx without its metadata"
    ):
        runtime(tmp_path / "other.onnx")
    model = onnx.load(str(tmp_path / "neuron.onnx"))
    del model.graph.output[2]  # m_next
    onnx.save(model, str(tmp_path / "less.onnx"))
    with pytest.raises(ValueError, match=r"got inputs \['x', 'b', 'm'\] and outputs \['y', 'b_next'\]"):
        runtime(tmp_path / "less.onnx")
    with pytest.raises(ValueError, match="providers must name one at least, got none"):
        runtime(tmp_path / "neuron.onnx", providers=[])


def test_a_readout_of_a_whole_sequence_is_not_had_in_pieces(tmp_path: Path, runtime: Any) -> None:
    import onnx

    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    path, x = tmp_path / "net.onnx", np.zeros((2, 10, 6), np.float32)
    export.to_onnx(training.SequenceClassifier(ELM(6, 3, num_memory=3)), path, form="unrolled", num_steps=5)
    model = onnx.load(str(path))
    for value in ('{"y": "whole"}', '["y"]'):  # as files have it that do not say of what kind it is
        next(entry for entry in model.metadata_props if entry.key == "elm_neuro.readouts").value = value
        onnx.save(model, str(path))
        assert runtime(path).run(x[:, :5])[0]["y"].shape == (2, 3)
        with pytest.raises(ValueError, match="x must have the model's 5 steps for y, a whole sequence, got 10"):
            runtime(path).run(x)


@pytest.mark.parametrize(
    ("x", "state", "message"),
    [
        (np.zeros((1, 5, 7)), None, r"x must have shape \(batch, time, 6\), got \(1, 5, 7\)"),
        (np.zeros((5, 6)), None, r"x must have shape \(batch, time, 6\), got \(5, 6\)"),
        (np.full((1, 5, 6), np.nan), None, "x must be finite, got 30 values that are not"),
        (np.full((1, 5, 6), "a"), None, "x must hold numbers, got <U1"),
        (
            np.zeros((2, 5, 6)),
            {"b": np.zeros((1, 3)), "m": np.zeros((2, 3))},
            r"state b must have shape \(2, 3\), got \(1, 3\)",
        ),
        (np.zeros((2, 5, 6)), {"b": np.zeros((2, 3))}, r"state must hold \['b', 'm'\], got \['b'\]"),
        (np.zeros((2, 5, 6)), (1, 2), r"state must hold \['b', 'm'\], got tuple"),
        (np.zeros((2, 5, 6)), {"b": np.full((2, 3), np.inf), "m": np.zeros((2, 3))}, "state b must be finite, got 6"),
    ],
)
def test_inputs_that_do_not_fit_are_named(tmp_path: Path, runtime: Any, x: Any, state: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runtime(written(tmp_path / "neuron.onnx", "sequence")).run(x, state)


def test_calls_that_do_not_fit_are_named(tmp_path: Path, runtime: Any) -> None:
    unrolled = runtime(written(tmp_path / "unrolled.onnx", "unrolled"))
    with pytest.raises(ValueError, match="x must have a multiple of the model's 10 steps, got 15"):
        unrolled.run(np.zeros((1, 15, 6)))
    with pytest.raises(ValueError, match="step needs a model of the form \"step\", got 'unrolled': use run"):
        unrolled.step(np.zeros((1, 6)))
    with pytest.raises(ValueError, match=r"providers must be of those in this onnxruntime, .*, got NoneSuch$"):
        runtime(tmp_path / "unrolled.onnx", providers=["NoneSuch"])
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(
            ValueError, match="got CUDAExecutionProvider; CUDAExecutionProvider comes with pip install onnxruntime-gpu"
        ):
            runtime(tmp_path / "unrolled.onnx", providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(ValueError, match="num_threads must be at least 1, got 0"):
        runtime(tmp_path / "unrolled.onnx", num_threads=0)


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


def test_zeros_are_of_the_batch_that_the_model_takes(tmp_path: Path, runtime: Any) -> None:
    model = runtime(written(tmp_path / "neuron.onnx", "step", batch_size=3))
    assert model.step(np.zeros((3, 6)), model.initial_state())[0]["y"].shape == (3, 2)
    assert model.initial_state(2)["m"].shape == (2, 3)


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
    import types

    recorded = Recorded()
    fake = types.SimpleNamespace(**{name: getattr(onnxruntime, name) for name in ("SessionOptions", "RunOptions")})
    fake.get_available_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    fake.InferenceSession, fake.OrtValue = recorded.session, OrtValueOnTheCpu
    monkeypatch.setitem(runtime.__init__.__globals__, "onnxruntime", fake)
    return recorded


class OrtValueOnTheCpu(onnxruntime.OrtValue):  # type: ignore[misc]
    """Values for a GPU, on the CPU."""

    @staticmethod
    def ortvalue_from_numpy(array: Any, device: str = "cpu", number: int = 0) -> Any:
        assert (device, number) == ("cuda", 1)
        return OrtValueOnTheCpu(onnxruntime.OrtValue.ortvalue_from_numpy(array)._ortvalue)

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
