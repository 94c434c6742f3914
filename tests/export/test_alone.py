"""The runtime file onnx_neuron.py alone: in a process, and in an environment, without anything else of ours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from elm_neuro import BranchELM, ELMState  # noqa: E402
from elm_neuro.checkpoints import neuronio_head  # noqa: E402
from elm_neuro.export import to_onnx  # noqa: E402

FORMS = ("step", "sequence", "unrolled")
BLOCKED = ("elm_neuro", "onnx", "torch")
NUM_STEPS = 12
TOLERANCE = 1e-5  # of the largest value

# Runs in the other process: whatever of BLOCKED is there must not be, and outputs must be those of the recording. The
# file is loaded by its path.
PROBE = """
import importlib.util, json, sys
blocked, folder = json.loads(sys.argv[1]), sys.argv[2]
if sys.argv[3] == "block":
    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in blocked:
                raise ImportError(name + " is blocked")
    sys.meta_path.insert(0, Refuse())
for name in blocked:
    try:
        there = importlib.util.find_spec(name) is not None
    except ImportError:
        there = False
    if there:
        sys.exit(name + " can be imported here")
import numpy as np
spec = importlib.util.spec_from_file_location("onnx_neuron", folder + "/onnx_neuron.py")
runtime = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runtime)
recorded = dict(np.load(folder + "/recorded.npz"))
errors = {}
for form in ("step", "sequence", "unrolled"):
    neuron = runtime.OnnxNeuron(folder + "/" + form + ".onnx")
    state = {name: recorded[name] for name in neuron.state_shapes}
    outputs, after = neuron.run(recorded["x"], state)
    found = outputs | {name + "_next": value for name, value in after.items()}
    for name, value in found.items():
        want = recorded[name]
        assert value.shape == want.shape, (form, name, value.shape, want.shape)
        errors[form + " " + name] = float(abs(value - want).max() / max(1.0, abs(want).max()))
neuron = runtime.OnnxNeuron(folder + "/step.onnx")
stepped, state = [], {name: recorded[name] for name in neuron.state_shapes}
for outputs, state in neuron.stream(recorded["x"].swapaxes(0, 1), state):
    stepped.append(outputs["soma_mv"])
difference = np.stack(stepped, axis=1) - recorded["soma_mv"]
errors["stream soma_mv"] = float(abs(difference).max() / abs(recorded["soma_mv"]).max())
refused = ""
try:
    runtime.OnnxNeuron(folder + "/step.onnx", providers=["NoSuchProvider"])
except ValueError as error:
    refused = str(error)
roots = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"errors": errors, "refused": refused, "roots": roots}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each form, the runtime file beside them, and torch's numbers."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("alone")
    neuron = BranchELM(10, 2, 5, num_branch=4, num_synapse_per_branch=6).eval()
    for form in FORMS:
        number = NUM_STEPS // 2 if form == "unrolled" else None  # run twice, with the state carried
        to_onnx(neuron, place / f"{form}.onnx", form=form, num_steps=number, head="neuronio", runtime=True)
    x, b, m = torch.randn(3, NUM_STEPS, 10), torch.randn(3, 4), torch.randn(3, 5)
    with torch.no_grad():
        y, state = neuron(x, ELMState(b, m))
        head = neuronio_head(y)
    record = {"x": x, "b": b, "m": m, **head._asdict(), "b_next": state.b, "m_next": state.m}
    np.savez(place / "recorded.npz", **{name: value.numpy() for name, value in record.items()})
    return place


def probe(python: Path | str, folder: Path, mode: str) -> dict[str, Any]:
    command = [str(python), "-I", "-c", PROBE, json.dumps(BLOCKED), str(folder), mode]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any]) -> None:
    names = ("spike_probability", "soma_mv", "b_next", "m_next")
    assert set(found["errors"]) == {f"{form} {name}" for form in FORMS for name in names} | {"stream soma_mv"}
    assert {name: error for name, error in found["errors"].items() if not error <= TOLERANCE} == {}
    assert "NoSuchProvider" in found["refused"]
    assert not set(BLOCKED) & set(found["roots"])


def test_the_runtime_file_gives_torchs_numbers_where_torch_onnx_and_elm_neuro_cannot_be_imported(folder: Path) -> None:
    check(probe(sys.executable, folder, "block"))


def test_the_check_itself_sees_a_wrong_number_and_a_library_that_is_there(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    recorded = dict(np.load(other / "recorded.npz"))
    np.savez(other / "recorded.npz", **(recorded | {"soma_mv": recorded["soma_mv"] + 0.1}))
    with pytest.raises(AssertionError, match="sequence soma_mv"):
        check(probe(sys.executable, other, "block"))
    with pytest.raises(AssertionError, match="can be imported here"):
        probe(sys.executable, folder, "look")


@pytest.mark.slow  # downloads and installs NumPy and onnxruntime into an environment of their own
@pytest.mark.timeout(600)
def test_the_runtime_file_needs_numpy_and_onnxruntime_alone(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "environment"
    made = [sys.executable, "-m", "venv", str(place)]
    python = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    wanted = [f"numpy=={np.__version__}", f"onnxruntime=={onnxruntime.__version__}"]
    for command in (made, [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    check(probe(python, folder, "look"))
