"""What several tests of the native backend share: sizes to try, models that run side by side, a process apart."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from elm_neuro import ELM, BranchELM, ELMState, SpikeEvents
from elm_neuro.backends.native import _library
from tests.tolerances import assert_close

REPOSITORY = Path(__file__).resolve().parents[2]
X86_SETS = ast.literal_eval(
    re.search(r"X86_SETS = (\{.*?\n\})", (REPOSITORY / "setup.py").read_text(encoding="utf-8"), re.DOTALL)[1]  # type: ignore[index]
)
COMPILER = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
native = pytest.mark.skipif(bool(_library.missing()), reason="no C++ compiler")


def gradients(neuron: ELM, x: torch.Tensor | SpikeEvents, start: ELMState | None = None) -> list[torch.Tensor]:
    """Output, last state and gradients of a random function of them in all parameters and the first state."""
    leaves = [*neuron.parameters(), *(start or ())]
    for leaf in leaves:
        leaf.grad = None
    y, after = neuron(x, start)
    generator = torch.Generator().manual_seed(3)
    results = [y, *after]
    sum(
        (r * torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype)).sum() for r in results
    ).backward()  # type: ignore[union-attr]
    return [r.detach() for r in results] + [leaf.grad.clone() for leaf in leaves if leaf.grad is not None]


def compare(neuron: ELM, x: torch.Tensor, start: ELMState | None, *, scale: float) -> None:
    """Native equals the float64 reference; `scale` as in assert_close."""
    neuron.backend = "native"
    results = gradients(neuron, x, start)
    double = ELM.from_config(neuron.config, routing=neuron.cell.input_to_synapse_indices, backend="reference").double()
    double.load_state_dict(neuron.state_dict())
    start64 = None if start is None else ELMState(*(part.detach().double().requires_grad_() for part in start))
    for index, (result, wanted) in enumerate(zip(results, gradients(double, x.double(), start64), strict=True)):
        assert_close(
            result.double(), wanted, dtype=x.dtype, scale=scale if x.dtype == torch.float64 or index < 3 else 10.0
        )


def sizes(dtype: torch.dtype) -> None:
    """Memories from 1 unit to more than a hundred, batches of every remainder of a tile, odd lengths, all depths."""
    generator = torch.Generator().manual_seed(0)
    for num_memory, batch, num_steps, options in [
        (1, 1, 1, {}),
        (2, 3, 5, {"num_mlp_layers": 0}),
        (7, 15, 17, {"activation": "silu", "num_mlp_layers": 2}),
        (16, 2, 33, {"mlp_hidden_size": 3}),
        (17, 9, 70, {"num_mlp_layers": 3}),
        (33, 4, 129, {"variant": "v2", "activation": "silu"}),
        (100, 5, 40, {"num_mlp_layers": 2, "mlp_hidden_size": 49}),
        (300, 2, 20, {"num_mlp_layers": 0}),
        (150, 3, 13, {}),
        (5, 13, 19, {"num_neuron": 3}),
        (3, 2, 300, {"num_neuron": 2, "num_mlp_layers": 0}),
    ]:
        neuron = ELM(90, 2, num_memory=num_memory, generator=generator, **options).to(dtype)  # type: ignore[arg-type]
        for density in (0.02, 0.7):
            x = (torch.rand(batch, num_steps, 90, generator=generator) < density).to(dtype)
            zeros = neuron.cell.initial_state(batch)
            start = ELMState(
                *(torch.randn(part.shape, generator=generator).to(dtype).requires_grad_() for part in zeros)
            )
            compare(neuron, x, start if num_steps % 2 else None, scale=1e-3 if dtype == torch.float64 else 1.0)


def run_python(code: str, cwd: Path = REPOSITORY, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(cwd)} | environment,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def stress(*, seconds: float, num_threads: int) -> None:
    """Models of other sizes, dtypes and kinds of input, each in its own thread, against the same alone, bit for bit."""
    torch.manual_seed(0)
    wide = ELM(130, 3, num_memory=70, num_mlp_layers=2, activation="silu", backend="native")
    branched = BranchELM(
        100, 2, num_memory=30, num_branch=20, num_synapse_per_branch=10, num_neuron=3, backend="native"
    ).double()
    dense, sparse = torch.randn(11, 120, 130), (torch.rand(13, 90, 100) < 0.05).double()
    cases = [(wide, dense), (branched, sparse)]
    alone = [gradients(model, x) for model, x in cases]
    rounds, failures = [0, 0], [0, 0]
    end = time.monotonic() + seconds

    def work(index: int) -> None:
        torch.set_num_threads(num_threads)
        while time.monotonic() < end or rounds[index] < 3:
            failures[index] += not all(
                torch.equal(a, b) for a, b in zip(gradients(*cases[index]), alone[index], strict=True)
            )
            rounds[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(rounds) >= 3
    assert failures == [0, 0]
