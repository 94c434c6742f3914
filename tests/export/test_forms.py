"""Every form of the export computes what the neuron computes: in onnxruntime, in onnx's reference evaluator, and by the
paper's equations.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from elm_neuro import ELM, BranchELM, ELMState
from elm_neuro.checkpoints import from_upstream, neuronio_head
from tests import oracle
from tests.strategies import INPUT_SIZE, neurons
from tests.tolerances import assert_close

onnx = pytest.importorskip("onnx")
onnx_reference = pytest.importorskip("onnx.reference")
onnxruntime = pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)

FORMS = ["step", "sequence", "unrolled"]
LOOPS = {"Scan", "Loop", "If"}
Arrays = dict[str, np.ndarray[Any, Any]]


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def through(run: Any, form: str, x: Tensor, state: ELMState) -> tuple[Tensor, ELMState]:
    """A sequence (batch, time, ...) through `run(names, feed)` of a model of any form."""
    names, fed = ["y", "b_next", "m_next"], {name: part.numpy() for name, part in state._asdict().items()}
    if form != "step":
        y, b, m = run(names, {"x": x.numpy(), **fed})
        return torch.from_numpy(y), ELMState(torch.from_numpy(b), torch.from_numpy(m))
    outputs = []
    for x_t in x.unbind(1):
        y, b, m = run(names, {"x": x_t.numpy(), **fed})
        fed = {"b": b, "m": m}
        outputs.append(torch.from_numpy(y))
    return torch.stack(outputs, 1), ELMState(*(torch.from_numpy(part) for part in fed.values()))


def written(neuron: ELM, path: Path, form: str, num_steps: int, **options: Any) -> Any:
    export.to_onnx(neuron, path, form=form, num_steps=num_steps if form == "unrolled" else None, **options)
    return session(path)


def small(**options: Any) -> BranchELM:
    torch.manual_seed(0)
    return BranchELM(INPUT_SIZE, 2, num_memory=3, num_branch=3, num_synapse_per_branch=4, **options)


def wide(**options: Any) -> ELM:
    """So many inputs that the export filters behind the first layer."""
    torch.manual_seed(0)
    return ELM(40, 2, num_memory=3, **options)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_neuron_runs_the_same_in_onnxruntime(
    tmp_path: Path, form: str, dtype: torch.dtype, data: st.DataObject
) -> None:
    neuron = data.draw(neurons(dtype=dtype))
    shared_input = neuron.config.num_neuron is None or data.draw(st.booleans())
    own = () if shared_input else (neuron.config.num_neuron,)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    batch, num_steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12 if dtype == torch.float32 else 70))
    x = torch.randn(batch, num_steps, *own, INPUT_SIZE, generator=generator, dtype=dtype)
    state = ELMState(
        *(torch.randn(part.shape, generator=generator, dtype=dtype) for part in neuron.cell.initial_state(batch))
    )
    opset = data.draw(st.sampled_from([17, 18, 21, 26]))
    model = written(
        neuron, tmp_path / "neuron.onnx", form, num_steps, shared_input=shared_input, opset=opset, verify=False
    )
    neuron.backend = "reference"
    with torch.no_grad():
        y, after = neuron(x, state)
    found, end = through(model.run, form, x, state)
    for actual, expected in zip((found, *end), (y, *after), strict=True):
        if dtype == torch.float64:
            assert_close(actual, expected)
        else:
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize(
    "neuron",
    [small(tau_s=(2.0, 5.0, 9.0)), small(num_neuron=2, flatten_output=True), wide()],
    ids=["taus", "population", "wide"],
)
@pytest.mark.parametrize("form", FORMS)
def test_the_reference_evaluator_agrees(tmp_path: Path, form: str, neuron: ELM) -> None:
    x = torch.randn(2, 70, neuron.config.input_size)
    state = ELMState(*(torch.randn(part.shape) for part in neuron.cell.initial_state(2)))
    runtime = written(neuron, tmp_path / "neuron.onnx", form, 70)
    evaluator = onnx_reference.ReferenceEvaluator(onnx.load(str(tmp_path / "neuron.onnx")))
    for one, other in zip(through(runtime.run, form, x, state), through(evaluator.run, form, x, state), strict=True):
        for a, b in zip(
            (one,) if isinstance(one, Tensor) else one, (other,) if isinstance(other, Tensor) else other, strict=True
        ):
            assert_close(a, b)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("branch_activation", [None, "relu", "silu", "tanh"])
def test_the_model_follows_the_equations_of_the_paper(
    tmp_path: Path, form: str, variant: str, branch_activation: str | None
) -> None:
    neuron = small(
        variant=variant, branch_activation=branch_activation, activation="silu", num_mlp_layers=2, tau_s=(2.0, 5.0, 9.0)
    ).double()
    model = written(neuron, tmp_path / "neuron.onnx", form, 40, verify=False)
    x = torch.randn(2, 40, INPUT_SIZE, dtype=torch.float64)
    y, (b, m) = through(model.run, form, x, neuron.cell.initial_state(2))
    for sample in range(2):
        expected = oracle.run(neuron.cell, x[sample].numpy())
        for actual, wanted in zip((y[sample], b[sample], m[sample]), expected, strict=True):
            np.testing.assert_allclose(actual, wanted, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["num_memory_10", "num_memory_20"])
def test_the_authors_checkpoints_give_their_outputs(shared: Path, tmp_path: Path, name: str, form: str) -> None:
    reference = np.load(shared / "data/neuronio/reference_outputs.npz")
    neuron = from_upstream(shared / "data/checkpoints" / name)
    model = written(neuron, tmp_path / "neuron.onnx", form, 1000, verify=False)
    for window in range(len(reference["windows"])):
        step, channel = reference[f"w{window}_input_t"].astype(int), reference[f"w{window}_input_ch"].astype(int)
        x = np.zeros((1, 1000, 1278), dtype=np.float32)
        np.add.at(x, (0, step, channel), np.where(channel < 639, 1.0, -1.0))
        state = neuron.cell.initial_state(1)
        y, _ = through(model.run, form, torch.from_numpy(x), state)
        with torch.no_grad():
            ours, _ = neuron(torch.from_numpy(x), state)
        # against the authors' float64, as in tests/checkpoints/test_upstream.py
        np.testing.assert_allclose(y[0], reference[f"{name}_w{window}_logits_f64"], atol=2e-5, rtol=0)
        np.testing.assert_allclose(y, ours, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "neuron", [small(), small(num_neuron=2, flatten_output=True), wide()], ids=["branches", "population", "wide"]
)
def test_a_sequence_in_pieces_is_the_sequence_in_one(tmp_path: Path, neuron: ELM) -> None:
    neuron = neuron.double()
    model = written(neuron, tmp_path / "neuron.onnx", "sequence", 0)
    x = torch.randn(2, 101, neuron.config.input_size, dtype=torch.float64)
    state = neuron.cell.initial_state(2)
    whole, end = through(model.run, "sequence", x, state)
    pieces = []
    for piece in x.split([1, 31, 32, 33, 4], dim=1):
        y, state = through(model.run, "sequence", piece, state)
        pieces.append(y)
    assert_close(torch.cat(pieces, 1), whole)
    for one, other in zip(state, end, strict=True):
        assert_close(one, other)


@pytest.mark.grid(every=3)
@pytest.mark.parametrize("opset", [17, 18, 21, 22, 23, 24, 25, 26])
@pytest.mark.parametrize("form", FORMS)
def test_every_opset_from_the_oldest_to_the_newest_of_onnxruntime(tmp_path: Path, form: str, opset: int) -> None:
    report = export.to_onnx(
        small(tau_s=(2.0, 5.0, 9.0)),
        tmp_path / "neuron.onnx",
        form=form,
        num_steps=40 if form == "unrolled" else None,
        opset=opset,
    )
    assert (report.opset, report.form, report.runtime) == (opset, form, "onnxruntime")


def test_time_constants_at_their_ends(tmp_path: Path) -> None:
    """A trace that never fades and a memory whose decay rounds to 1, which has no gain to be scaled by."""
    neuron = small(tau_s=1e12, tau_m_init=(1e12, 1e12), tau_m_bounds=(0.0, 1e13), delta_t=1e-3)
    for form in FORMS:
        model = written(neuron, tmp_path / "neuron.onnx", form, 70)
        x, state = torch.randn(1, 70, INPUT_SIZE), ELMState(torch.ones(1, 3), torch.ones(1, 3))
        with torch.no_grad():
            y, after = neuron(x, state)
        found, end = through(model.run, form, x, state)
        for actual, expected in zip((found, *end), (y, *after), strict=True):
            assert_close(actual, expected)


def test_unrolled_has_no_control_flow_and_few_operators_a_step(tmp_path: Path) -> None:
    neuron = small()
    count = {}
    for num_steps in (64, 160):
        export.to_onnx(neuron, tmp_path / "neuron.onnx", form="unrolled", num_steps=num_steps, verify=False)
        operators = [node.op_type for node in onnx.load(str(tmp_path / "neuron.onnx")).graph.node]
        assert not LOOPS & set(operators)
        count[num_steps] = len(operators)
    assert count[160] - count[64] == 6 * 96 + 3  # records are joined 32 at a time, and then these


@pytest.mark.parametrize("num_steps", [33, 70])
def test_no_concat_is_longer_than_a_cuda_graph_can_record(tmp_path: Path, num_steps: int) -> None:
    neuron = small()
    export.to_onnx(neuron, tmp_path / "neuron.onnx", form="unrolled", num_steps=num_steps)  # verified
    joined = [node for node in onnx.load(str(tmp_path / "neuron.onnx")).graph.node if node.op_type == "Concat"]
    assert max(len(node.input) for node in joined) == 32


def test_a_sequence_has_one_scan_with_the_memory_alone(tmp_path: Path) -> None:
    export.to_onnx(small(), tmp_path / "neuron.onnx", form="sequence", verify=False)
    nodes = onnx.load(str(tmp_path / "neuron.onnx")).graph.node
    scans = [node for node in nodes if node.op_type == "Scan"]
    assert len(scans) == 1
    body = [node.op_type for node in scans[0].attribute[0].g.node] if scans[0].attribute[0].name == "body" else []
    body = body or [
        node.op_type for attribute in scans[0].attribute if attribute.name == "body" for node in attribute.g.node
    ]
    assert sorted(body) == ["Add", "Gemm", "Gemm", "Identity", "Mul", "Relu", "Tanh"]


def test_unrolled_over_500_steps_is_small_and_holds_each_weight_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    neuron = BranchELM(1278, 2, 20, num_branch=45, num_synapse_per_branch=100)
    export.to_onnx(neuron, tmp_path / "neuron.onnx", form="unrolled", num_steps=500, verify=False)
    model = onnx.load(str(tmp_path / "neuron.onnx"))
    weights = 4 * (1278 * 45 + 45 * 40 + 20 * 40 + 40 * 20 + 20 * 2)
    assert (tmp_path / "neuron.onnx").stat().st_size < weights + 5_000_000
    contents = [constant.raw_data for constant in model.graph.initializer if len(constant.raw_data) >= 256]
    assert len(contents) == len(set(contents))


@pytest.mark.parametrize("form", ["sequence", "unrolled"])
def test_time_first_and_a_fixed_batch(tmp_path: Path, form: str) -> None:
    neuron, x = small(), torch.randn(3, 9, INPUT_SIZE)
    model = written(neuron, tmp_path / "neuron.onnx", form, 9, batch_first=False, batch_size=3)
    sizes = {value.name: value.shape for value in (*model.get_inputs(), *model.get_outputs())}
    steps = 9 if form == "unrolled" else "time"
    assert sizes == {
        "x": [steps, 3, INPUT_SIZE],
        "b": [3, 3],
        "m": [3, 3],
        "y": [steps, 3, 2],
        "b_next": [3, 3],
        "m_next": [3, 3],
    }
    zeros = {name: part.numpy() for name, part in neuron.cell.initial_state(3)._asdict().items()}
    (y,) = model.run(["y"], {"x": x.transpose(0, 1).contiguous().numpy(), **zeros})
    with torch.no_grad():
        assert_close(torch.from_numpy(y).transpose(0, 1), neuron(x)[0])


@pytest.mark.parametrize("form", FORMS)
def test_the_head_of_neuronio_gives_probability_and_millivolt(tmp_path: Path, form: str) -> None:
    neuron, x = small(), torch.randn(2, 20, INPUT_SIZE)
    report = export.to_onnx(
        neuron, tmp_path / "neuron.onnx", form=form, num_steps=20 if form == "unrolled" else None, head="neuronio"
    )
    assert set(report.errors) == {"spike_probability", "soma_mv", "b_next", "m_next"}
    if form == "step":
        return
    zeros = {name: part.numpy() for name, part in neuron.cell.initial_state(2)._asdict().items()}
    probability, voltage = session(tmp_path / "neuron.onnx").run(
        ["spike_probability", "soma_mv"], {"x": x.numpy(), **zeros}
    )
    with torch.no_grad():
        expected = neuronio_head(neuron(x)[0])
    assert_close(torch.from_numpy(probability), expected.spike_probability)
    assert_close(torch.from_numpy(voltage), expected.soma_mv)


@pytest.mark.grid(every=3)
@pytest.mark.parametrize("precision", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("form", FORMS)
def test_lower_precision_is_in_the_matrices_alone_and_costs_what_the_report_says(
    tmp_path: Path, form: str, precision: str
) -> None:
    neuron, path = small(), tmp_path / "neuron.onnx"
    options = {"form": form, "num_steps": 20 if form == "unrolled" else None}
    exact = export.to_onnx(neuron, tmp_path / "exact.onnx", **options)
    on_cpu: Any = nullcontext()
    if precision == "bfloat16":
        on_cpu = pytest.warns(UserWarning, match="bfloat16 products, which onnxruntime's CPU provider cannot load")
    with on_cpu:
        report = export.to_onnx(neuron, path, precision=precision, **options)
    assert report.precision == precision
    assert 10 * exact.errors["y"] < report.errors["y"] <= report.tolerances["y"]
    assert report == export.verify(path, neuron)
    model = onnx.load(str(path))
    assert all(
        value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        for value in (*model.graph.input, *model.graph.output)
    )
    kind = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16, "int8": onnx.TensorProto.INT8}[
        precision
    ]
    matrices = [
        constant for constant in model.graph.initializer if "weight" in constant.name and len(constant.dims) == 2
    ]
    assert len(matrices) == 5  # branches, first layer from branches and memory, second layer, readout
    assert all(constant.data_type == kind for constant in matrices)


def test_half_precision_is_as_near_as_half_precision_can_be(tmp_path: Path) -> None:
    """One step from zero: three products of numbers with 11 and 8 bits, in a neuron whose values are about one."""
    neuron, x = small(), torch.randn(200, INPUT_SIZE)
    with torch.no_grad():
        expected = neuron.cell(x)[0].numpy()
    for precision, bits in (("float16", 11), ("bfloat16", 8)):
        export.to_onnx(neuron, tmp_path / "neuron.onnx", precision=precision, verify=False)
        evaluator = onnx_reference.ReferenceEvaluator(onnx.load(str(tmp_path / "neuron.onnx")))
        zeros = {name: part.numpy() for name, part in neuron.cell.initial_state(200)._asdict().items()}
        (y,) = evaluator.run(["y"], {"x": x.numpy(), **zeros})
        assert 0 < np.abs(y - expected).max() < 8 * 2.0**-bits * np.abs(expected).max()
