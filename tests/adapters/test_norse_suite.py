"""norse's own tests, run on our neurons: the host says itself whether they fit.

norse ships its tests. They run from where norse is installed, in a process of their own in which this file is a pytest
plugin: before collection it puts thin subclasses of our faces in the place of norse's LIF and LSNN classes, and
afterwards it tells for every test how often one of ours ran in it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

norse = pytest.importorskip("norse")

pytestmark = pytest.mark.slow  # test_norse.py has the protocol, norse's containers and its training loop

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = ("test_sequential.py", "test_lsnn.py", "test_lif.py", "test_lift.py", "test_training.py")
REPORT = "ELM_NEURO_NORSE_REPORT"  # names the file that the plugin writes: {test: [outcome, calls of our classes]}

# The tests that must fail, and why: they are about the equations and keywords of a LIF, not about norse's protocol.
NOT_OURS = {
    "test_lif.py::test_lif_recurrent_cell_autapses": "autapses: an ELM has no recurrent weight matrix",
    "test_lif.py::test_lif_recurrent_cell_no_autapses": "autapses: an ELM has no recurrent weight matrix",
    "test_lsnn.py::test_lsnn_recurrent_cell_autapses": "autapses: an ELM has no recurrent weight matrix",
    "test_lsnn.py::test_lsnn_recurrent_cell_no_autopses": "autapses: an ELM has no recurrent weight matrix",
    "test_lsnn.py::test_lsnn_cell": "wants 1.8 in the synaptic current i, a field of the LSNN's state",
    "test_lif.py::test_lif_datatype": "sparse and boolean input, and the synaptic current i",
    "test_sequential.py::test_state_sequence_apply_with_state": (
        "builds a LIF's state (v, i) from two scalars; a state of ours has the batch's shape"
    ),
}
NO_GPU = ("test_sequential.py::test_lif_box_compile_gpu", "test_lift.py::test_compile_lift")

# The tests of norse's own parts, which none of ours takes part in.
WITHOUT_US = {
    "test_sequential.py::test_recurrent_sequential_output_index",
    "test_sequential.py::test_recurrent_sequential_stateful",
    "test_sequential.py::test_recurrent_sequential_stateless",
    "test_sequential.py::test_sequential_compile",  # of a LIFBoxCell
    "test_sequential.py::test_sequential_debug_hook_twice",  # calls nothing
    "test_lift.py::test_lift_conv",
}

calls: Counter[str] = Counter()
current = ""


def replacements() -> dict[str, Any]:
    """Our faces by the names of norse's classes, with their constructors, counting their calls."""
    from elm_neuro.adapters import norse as faces

    def sizes(input_size: int, hidden_size: int) -> dict[str, Any]:
        """One neuron with as many outputs, branches and memory units as the LIF layer has neurons: norse's tests look
        at the state's shape.
        """
        synapses = {
            "num_synapse_per_branch": input_size,
            "routing": "random",
            "activation": "silu",
        }  # of one or two units, none may be dead
        return {
            "input_size": input_size,
            "output_size": hidden_size,
            "num_memory": hidden_size,
            "num_branch": hidden_size,
        } | synapses

    class Counted(torch.nn.Module):
        def drop_biases(self) -> None:
            """A LIF has none: without input it is silent."""
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.zeros_(parameter)

        def forward(self, x: Any, state: Any = None) -> Any:
            calls[current] += 1
            return super().forward(x, state)

        @property
        def input_weights(self) -> Any:
            return self.core.core.cell.mlp[0].weight

        @property
        def recurrent_weights(self) -> Any:
            return self.core.core.cell.w_y.weight

    class Layer(Counted, faces.ELM):
        def __init__(self, input_size: int, hidden_size: int, p: Any = None, *, dt: float = 0.001) -> None:
            super().__init__(**sizes(input_size, hidden_size), dt=dt)
            self.drop_biases()

    class Cell(Counted, faces.ELMCell):
        def __init__(self, input_size: int, hidden_size: int, p: Any = None, *, dt: float = 0.001) -> None:
            super().__init__(**sizes(input_size, hidden_size), dt=dt)
            self.drop_biases()

    class Sized(torch.nn.Module):
        """norse's layers without weights take any width: one of ours is made for the first that comes."""

        kind: Any = Layer

        def __init__(self, p: Any = None, **options: Any) -> None:
            super().__init__()
            self.options, self.inner = options, None

        def forward(self, x: Any, state: Any = None) -> Any:
            if self.inner is None:
                self.inner = self.kind(x.shape[-1], x.shape[-1], **self.options)
            return self.inner(x, state)

    class SizedCell(Sized):
        kind = Cell

    return {
        "LIF": Sized, "LSNN": Sized, "LIFCell": SizedCell, "LSNNCell": SizedCell,
        "LIFRecurrent": Layer, "LSNNRecurrent": Layer, "LIFRecurrentCell": Cell, "LSNNRecurrentCell": Cell,
        "LIFState": faces.SpikingELMState, "LIFFeedForwardState": faces.SpikingELMState,
        "LSNNState": faces.SpikingELMState, "LSNNFeedForwardState": faces.SpikingELMState,
    }  # fmt: skip


class Plugin:
    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        global current
        current = f"{item.path.name}::{item.name}"
        torch.manual_seed(0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.outcomes[current] = report.outcome

    def pytest_sessionfinish(self) -> None:
        Path(os.environ[REPORT]).write_text(
            json.dumps({name: [outcome, calls[name]] for name, outcome in self.outcomes.items()}), encoding="utf-8"
        )


def pytest_configure(config: pytest.Config) -> None:
    """In the process of norse's tests, where this file is a plugin."""
    import norse.torch

    for module in (norse.torch, norse.torch.module.lif, norse.torch.module.lsnn):
        for name, face in replacements().items():
            if hasattr(module, name):
                setattr(module, name, face)
    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # trace, but write no C++: a minute less
    config.pluginmanager.register(Plugin())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """What became of each of norse's tests, and how often one of our classes was called in it."""
    folder = Path(norse.__file__).parent / "torch" / "module" / "test"
    if not folder.is_dir():
        pytest.skip("no norse tests in this installation")
    here = tmp_path_factory.mktemp("norse")
    options = [
        "-p",
        Path(__file__).stem,
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        f"--rootdir={here}",
        "--import-mode=importlib",
        "-q",
        "--tb=short",
    ]
    paths = os.pathsep.join(
        [str(REPOSITORY), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    variables = os.environ | {REPORT: str(here / "report.json"), "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "pytest", *options, *[str(folder / name) for name in FILES]]
    done = subprocess.run(command, env=variables, cwd=here, capture_output=True, text=True, check=False, timeout=280)
    if not (here / "report.json").is_file():
        pytest.fail(f"norse's tests did not run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    found: dict[str, tuple[str, int]] = {
        name: tuple(entry) for name, entry in json.loads((here / "report.json").read_text("utf-8")).items()
    }
    print(done.stdout[-5000:])  # shown where a test below fails
    return found


def test_the_tests_that_fail_are_exactly_those_listed(report: dict[str, tuple[str, int]]) -> None:
    assert {name for name, (outcome, _) in report.items() if outcome == "failed"} == set(NOT_OURS)


def test_the_others_pass(report: dict[str, tuple[str, int]]) -> None:
    skipped = {name for name, (outcome, _) in report.items() if outcome == "skipped"}
    assert skipped <= set(NO_GPU)
    assert sum(outcome == "passed" for outcome, _ in report.values()) >= 41


def test_our_neurons_ran_in_them(report: dict[str, tuple[str, int]]) -> None:
    passed = {name: count for name, (outcome, count) in report.items() if outcome == "passed"}
    assert {name for name, count in passed.items() if count == 0} - set(NO_GPU) == WITHOUT_US
