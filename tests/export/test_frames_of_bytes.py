"""Models whose frames are bytes: the numbers are those of float frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from elm_neuro import ELM, LIF, BranchELM, SpikingELM

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)
onnx_neuron = pytest.importorskip("elm_neuro.export.onnx_neuron", exc_type=ImportError)

FORMS = ["step", "sequence", "unrolled"]
DTYPES = ["uint8", "int8"]
SMALL: dict[str, Any] = {"num_memory": 3, "num_branch": 3, "num_synapse_per_branch": 4}


def network(name: str = "ELM") -> nn.Module:
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "ELM": lambda: ELM(6, 2, num_memory=3),
        "population": lambda: BranchELM(6, 2, **SMALL, num_neuron=2),
        "spiking": lambda: SpikingELM(BranchELM(6, 2, **SMALL), threshold=0.02, reset="subtract"),
        "mixed": lambda: nn.Sequential(nn.Linear(6, 5), LIF(5, 8), ELM(8, 2, num_memory=3)),
        "double": lambda: ELM(6, 2, num_memory=3).double(),
    }
    network: nn.Module = made[name]()
    return network


def written(path: Path, form: str, input_dtype: str | None, name: str = "ELM", **options: Any) -> Any:
    steps = 10 if form == "unrolled" else None
    report = export.to_onnx(network(name), path, form=form, num_steps=steps, input_dtype=input_dtype, **options)
    return onnx_neuron.OnnxNeuron(path, num_threads=1), report


def frames(input_dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    """Of all numbers that such bytes hold."""
    limits = np.iinfo(input_dtype)
    return np.random.default_rng(0).integers(limits.min, limits.max + 1, shape, dtype=input_dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("input_dtype", DTYPES)
def test_they_give_what_float_frames_give(tmp_path: Path, form: str, input_dtype: str) -> None:
    model, report = written(tmp_path / "bytes.onnx", form, input_dtype)
    plain, _ = written(tmp_path / "plain.onnx", form, None)
    assert report.num_steps > 0
    x = frames(input_dtype, 3, 10, 6)
    (found, state), (wanted, after) = model.run(x), plain.run(x)
    np.testing.assert_array_equal(found["y"], wanted["y"])
    with torch.no_grad():
        y = network()(torch.from_numpy(x).float())[0]
    np.testing.assert_allclose(found["y"], y, rtol=1e-5, atol=1e-4)
    for part, value in after.items():
        np.testing.assert_array_equal(state[part], value)


@pytest.mark.parametrize("input_dtype", DTYPES)
@pytest.mark.parametrize("name", ["population", "spiking", "mixed", "double"])
def test_every_kind_of_layer_is_verified_with_them(tmp_path: Path, name: str, input_dtype: str) -> None:
    path = tmp_path / "net.onnx"
    model, report = written(path, "sequence", input_dtype, name)
    assert not report.silent and model.x_dtype is np.dtype(input_dtype).type
    again = export.verify(path, network(name), num_steps=9, seed=3)
    assert again.errors.keys() == report.errors.keys()


def test_lengths_heads_layouts_and_lower_precision_go_with_them(tmp_path: Path) -> None:
    model, _ = written(
        tmp_path / "a.onnx", "sequence", "uint8", lengths=True, head="neuronio", batch_first=False, precision="int8"
    )
    x = frames("uint8", 9, 3, 6)
    found, _ = model.run(x, lengths=[9, 0, 4])
    assert (found["soma_mv"][4:, 2] == 0).all() and (found["soma_mv"][:, 1] == 0).all()


def test_verify_finds_a_cast_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    written(path, "sequence", "int8")
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, str(path))
    with pytest.raises(export.ExportError, match="must have the inputs and outputs of the module, input x INT8"):
        export.verify(path, network())
    entry = next(entry for entry in model.metadata_props if entry.key == "elm_neuro.options")
    entry.value = entry.value.replace('"int8"', '"uint8"')
    cast = next(node for node in model.graph.node if node.op_type == "Cast")
    cast.output[0] += "_bytes"
    twice = onnx.helper.make_node("Cast", [cast.output[0]], [cast.output[0].removesuffix("_bytes")], to=1)
    cast.attribute[0].i = onnx.TensorProto.BOOL  # every spike is 1, whatever it weighs
    model.graph.node.insert(1, twice)
    onnx.save(model, str(path))
    with pytest.raises(export.ExportError, match="off by"):
        export.verify(path, network())


def test_numbers_that_bytes_do_not_hold_are_refused(tmp_path: Path) -> None:
    model, _ = written(tmp_path / "net.onnx", "sequence", "uint8", verify=False)
    fits = model.run(frames("uint8", 1, 4, 6))[0]["y"]
    for dtype in (np.int64, np.float32, np.float64, np.uint16):
        np.testing.assert_array_equal(model.run(frames("uint8", 1, 4, 6).astype(dtype))[0]["y"], fits)
    assert model.run(np.ones((1, 4, 6), bool))[0]["y"].shape == (1, 4, 2)
    for value in (0.5, -1, 256, np.nan, np.inf, 1e30):
        x = np.zeros((1, 4, 6))
        x[0, 2, 1] = value
        with pytest.raises(ValueError, match="x must hold whole numbers from 0 to 255"):
            model.run(x)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_buffers_hold_bytes_and_states_floats(tmp_path: Path, form: str, as_tensor: bool) -> None:
    model, _ = written(tmp_path / "net.onnx", form, "uint8", verify=False)
    x = frames("uint8", *((2, 6) if form == "step" else (2, 10, 6)))
    buffer = torch.from_numpy(x.copy()) if as_tensor else x.copy()
    bound = model.bound(buffer)
    step = model.step if form == "step" else model.run
    expected, after = step(x)
    np.testing.assert_array_equal(bound.run()["y"], expected["y"])
    expected, after = step(255 - x, after)
    np.testing.assert_array_equal(bound.run(255 - buffer)["y"], expected["y"])
    assert "float32" in str(bound.state["m"].dtype)
    np.testing.assert_array_equal(bound.state["m"], after["m"])
    bound.reset({name: value + 1 for name, value in after.items()})
    for wrong in (x.astype(np.float32), torch.from_numpy(x).float(), x.astype(np.int8)):
        with pytest.raises(ValueError, match="x must hold uint8 as the model does, got"):
            bound.run(wrong)
        with pytest.raises(ValueError, match="x must hold uint8 as the model does, got"):
            model.bound(wrong)


def test_other_dtypes_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"input_dtype must be None or one of \['uint8', 'int8'\], got 'int16'"):
        export.to_onnx(network(), tmp_path / "net.onnx", input_dtype="int16")
