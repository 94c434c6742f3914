"""What `elm-neuro neuronio eval` and `elm-neuro info` say: tables, and the networks of the paper."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.table import Table
from torch import nn

from elm_neuro.checkpoints import save_pretrained
from elm_neuro.datasets.neuronio._simulations import NUM_INPUTS
from elm_neuro.nn import ELM, BranchELM
from elm_neuro.pretrained import describe
from elm_neuro.training.networks._classifiers import num_parameters
from elm_neuro.training.neuronio._networks import (
    LIFRegression,
    LSTMRegression,
    counted_flops,
    flops_per_step,
    linear_elm,
)

SAMPLE_MS = 500  # a window of the paper
NAMES = {
    "AUC": ("spikes: AUC", 4),
    "TP @ 0.0025 FP": ("spikes: true positives at 0.25 % false ones", 4),
    "TP @ 0.0100 FP": ("spikes: true positives at 1 % false ones", 4),
    "AUC @ 0.0025 FP": ("spikes: mean true positives below 0.25 % false ones", 4),
    "AUC @ 0.0100 FP": ("spikes: mean true positives below 1 % false ones", 4),
    "soma_RMSE": ("voltage: RMSE (mV)", 3),
    "soma_MAE": ("voltage: mean absolute error (mV)", 3),
    "soma_explained_variance_percent": ("voltage: explained variance (%)", 2),
}


class Published(NamedTuple):
    """What the paper's tables give a network."""

    parameters: float
    flops: float  # of a sample of 500 ms


# Tables S5 to S7 of Spieler et al., arXiv:2306.16922, by memory units, or hidden units of the LSTM. They do not say how
# they were counted.
BRANCH_ELM = {
    10: Published(5.9e3, 16.04e6),
    15: Published(6.9e3, 17.06e6),
    20: Published(8.1e3, 18.27e6),
    25: Published(9.5e3, 19.69e6),
    30: Published(11.1e3, 21.3e6),
    40: Published(14.9e3, 25.13e6),
    50: Published(19.5e3, 29.76e6),
}
VANILLA_ELM = {
    10: Published(26.06e3, 28.49e6),
    15: Published(39.39e3, 41.84e6),
    20: Published(52.92e3, 55.38e6),
    25: Published(66.65e3, 69.13e6),
    35: Published(94.71e3, 97.22e6),
    50: Published(138.3e3, 140.85e6),
    75: Published(214.95e3, 217.58e6),
    100: Published(296.6e3, 299.3e6),
}
LSTM = {
    15: Published(77.67e3, 77.77e6),
    25: Published(130.45e3, 130.61e6),
    50: Published(265.9e3, 266.23e6),
    100: Published(551.8e3, 552.45e6),
    150: Published(857.7e3, 858.68e6),
    250: Published(1529.5e3, 1531.13e6),
}
# Found by comparing the tables with the equations, to the last printed digit (a test holds it); the paper says neither.
INFO_REMARK = (
    "The paper does not say how it counted. With m memory units its ELM and Branch-ELM have 4 m - 2 parameters more "
    "than the equations, as many as two for each of the 2 m hidden units and a readout without its 2 biases; its LSTM "
    "has one bias a gate where torch has two, and no bias at the readout. Its FLOPs a step, beside those of the matrix "
    "products, are 26 m + 29,220 (Branch-ELM, 4,500 synapses), 26 m + 4,805 (ELM, 1,278 synapses) and 21 for each unit "
    "of an LSTM, where the equations written out have 17 m + 27,002, 17 m + 5,114 and 30: a routed synapse costs 6 "
    "here, another one 4; what a synapse costs there is not stated."
)


def evaluation_table(outcome: Mapping[str, Any]) -> Table:
    """Published and honest figures side by side, with their intervals."""
    protocol = outcome["protocol"]
    title = (
        f"{len(protocol['files'])} file(s), windows of {protocol['window_ms']} ms, burn-in {protocol['burn_in_ms']} ms"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in ("published protocol", "raw"):
        table.add_column(name, justify="right")
    for key, (words, digits) in NAMES.items():
        table.add_row(words, *(_cell(outcome[kind], key, digits) for kind in ("published", "raw")))
    for key in ("simulations", "spikes"):
        table.add_row(key, *(f"{outcome[kind][key]:,}" for kind in ("published", "raw")), end_section=key == "spikes")
    return table


def _cell(summary: Mapping[str, Any], key: str, digits: int) -> str:
    value = summary["figures"][key]
    if value is None:
        return "undefined"
    ends = (summary["intervals"] or {}).get(key)
    return f"{value:.{digits}f}" + (f" [{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]" if ends else "")


def evaluation_remarks(outcome: Mapping[str, Any]) -> list[str]:
    """What a reader of the table must know."""
    lines = [
        "published protocol: windows from a state of zero, voltage aligned to mean and spread of the truth of each "
        "file, simulations with at most "
        "24 spikes. raw: whole simulations in one go, nothing aligned, all simulations. Both without the first 500 ms.",
        "[low, high]: 95 %, bootstrap over simulations.",
    ]
    why = {outcome[kind]["undefined"] for kind in ("published", "raw")} - {""}
    return lines + [f"undefined: {'; '.join(sorted(why))}."] * bool(why)


def paper_networks() -> dict[str, tuple[nn.Module, Published | None]]:
    """Every network of tables S4 to S7, and what tables S5 to S7 give it."""
    memory_times: dict[str, Any] = {
        "tau_m_init": (1.0, 100.0),
        "tau_m_spacing": "linear",
        "tau_m_bounds": (0.0, 500.0),
        "lambda_": 10.0,
    }
    branches: dict[str, Any] = {"num_branch": 45, "num_synapse_per_branch": 100, "routing": "neuronio"}
    networks: dict[str, tuple[nn.Module, Published | None]] = {
        "LIF": (LIFRegression(), None),
        "linear ELM, 1 memory unit": (linear_elm(), None),
    }
    networks |= {
        f"Branch-ELM, {m} memory units": (BranchELM(NUM_INPUTS, 2, m, **branches, **memory_times), given)
        for m, given in BRANCH_ELM.items()
    }
    networks |= {
        f"ELM, {m} memory units": (ELM(NUM_INPUTS, 2, m, learn_w_s=False, **memory_times), given)
        for m, given in VANILLA_ELM.items()
    }
    return networks | {f"LSTM, {h} units": (LSTMRegression(hidden_size=h), given) for h, given in LSTM.items()}


def info_table(networks: Mapping[str, tuple[nn.Module, Published | None]]) -> Table:
    """Trained parameters and FLOPs for 500 ms of one sample, where they are counted, beside those of the paper and how
    far they are off.
    """
    table = Table(title="", title_justify="left")
    for name in ("network", "parameters", "in the paper", f"MFLOPs for {SAMPLE_MS} ms", "in the paper"):
        table.add_column(name, justify="left" if name == "network" else "right")
    for name, (network, published) in networks.items():
        count, per_step = num_parameters(network), counted_flops(network)
        steps = SAMPLE_MS / getattr(network, "delta_t", 1.0)
        theirs = ["–", "–"]
        if published is not None:
            flops = steps * flops_per_step(network)
            theirs = [
                f"{published.parameters:,.0f} ({100 * (published.parameters / count - 1):+.1f} %)",
                f"{published.flops / 1e6:.2f} ({100 * (published.flops / flops - 1):+.1f} %)",
            ]
        ours = "–" if per_step is None else f"{steps * per_step / 1e6:.2f}"
        table.add_row(name, f"{count:,}", theirs[0], ours, theirs[1])
    return table


class SaveNeuron(Callback):
    """Writes the neuron into a folder, as `save_pretrained` does, whenever the loss on validation is the lowest so far.

    ``elm-neuro neuronio eval --model FOLDER`` reads it. Networks of a kind that `save_pretrained` does not know are
    left alone.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder, self.lowest = Path(folder), float("inf")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it."""
        network: Any = pl_module.network
        loss = float(trainer.callback_metrics.get("valid/loss", float("nan")))
        if trainer.is_global_zero and not trainer.sanity_checking and loss < self.lowest and _can_be_saved(network):
            self.lowest = loss
            save_pretrained(network, self.folder)

    def state_dict(self) -> dict[str, Any]:
        """The lowest loss."""
        return {"lowest": self.lowest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.lowest = float(state_dict["lowest"])


def _can_be_saved(network: Any) -> bool:
    """Whether its class and those of its parts are registered."""
    try:
        describe(network)
    except TypeError:
        return False
    return True
