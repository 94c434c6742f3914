"""What the benchmarks stand beside: the authors' neuron, the scratch prototype, layers of norse and snnTorch. Nothing
of theirs is kept here.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch import Tensor

from elm_neuro import ELM


def load_upstream(checkout: Path) -> type[torch.nn.Module]:
    if not (checkout / "src/expressive_leaky_memory_neuron.py").is_file():
        raise SystemExit(
            "--upstream must be a checkout of the authors' repository, found no "
            f"src/expressive_leaky_memory_neuron.py in {checkout}"
        )
    sys.path.insert(0, str(checkout))
    sys.modules.setdefault("seaborn", types.ModuleType("seaborn"))  # imported there for figures only
    from src.expressive_leaky_memory_neuron import ELM as upstream

    return upstream


def upstream_twin(upstream: type[torch.nn.Module], neuron: ELM, index: int | None = None) -> torch.nn.Module:
    """Their neuron with the weights of ours, of number `index` in a population."""
    config, cell = neuron.config, neuron.cell
    low, high = config.bounds
    branches = (
        {}
        if config.num_branch is None
        else {"num_branch": 45, "num_synapse_per_branch": 100, "input_to_synapse_routing": "neuronio_routing"}
    )
    times = {
        "memory_tau_min": low,
        "memory_tau_max": high,
        "learn_memory_tau": config.learn_tau_m,
        "delta_t": config.delta_t,
    }
    twin = upstream(config.input_size, config.output_size, config.num_memory, **times, **branches)
    values = {
        f"mlp.network.{2 * i}.{name}": p for i, layer in enumerate(cell.mlp) for name, p in layer.named_parameters()
    }
    values |= {f"w_y.{name}": p for name, p in cell.w_y.named_parameters()}
    values |= {"_proto_w_s": cell._proto_w_s, "_proto_tau_m": cell._proto_tau_m}
    values = {name: value if index is None else value[index] for name, value in values.items()}
    values["_proto_w_s"] = values["_proto_w_s"].flatten()
    twin.load_state_dict({name: value.detach() for name, value in values.items()}, strict=False)
    return twin


def load_prototype(folder: Path) -> types.ModuleType:
    """The scratch wrapper, its kernel built beside a copy of it; flags are those of its README."""
    built = Path(tempfile.mkdtemp(prefix="elm_prototype_"))
    shutil.copy(folder / "fast.py", built)
    flags = "-O3 -w -march=x86-64-v3 -fno-math-errno -ffp-contract=fast -shared -fPIC".split()
    subprocess.run(["g++", *flags, "-o", str(built / "libelm_x86-64-v3.so"), str(folder / "elm_core.cpp")], check=True)
    os.environ["ELM_ARCH"] = "x86-64-v3"
    spec = importlib.util.spec_from_file_location("elm_prototype", built / "fast.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class SnnTorchLayer(torch.nn.Module):
    """snnTorch's recurrent LSTM over a sequence, behind a linear layer: 1.0 forgets its state in every step where
    input and width differ.
    """

    def __init__(self, input_size: int, width: int) -> None:
        import snntorch

        super().__init__()
        self.before, self.layer = torch.nn.Linear(input_size, width), snntorch.SLSTM(width, width)

    def forward(self, x: Tensor) -> Tensor:
        syn, mem = self.layer.init_slstm()
        spikes = []
        for x_t in self.before(x).unbind(1):
            spike, syn, mem = self.layer(x_t, syn, mem)
            spikes.append(spike)
        return torch.stack(spikes, dim=1)


def hosts(input_size: int, width: int) -> dict[str, torch.nn.Module]:
    """The same width in other libraries."""
    import norse.torch

    return {
        "norse LSNN": norse.torch.LSNNRecurrent(input_size, width),
        "snnTorch SLSTM": SnnTorchLayer(input_size, width),
    }
