"""Train a Branch-ELM on recordings of a cortical neuron, evaluate it beside a published checkpoint, and draw what it
does.

    python examples/neuronio.py [--smoke] [--data FOLDER] [--model DIR] [--steps 400] [--out neuronio]

FOLDER holds simulation files of the NeuronIO data set (Beniaguev et al. 2021, on Kaggle); they are converted into --out
once. Without it a leaky membrane with random synapses stands in for the cell: figures on it say nothing about NeuronIO.
DIR is a checkpoint of the authors' repository, or a folder of save_pretrained. What is trained on and what is evaluated
is the same here, so the figures show that the neuron can follow the cell, not that it generalises:
`elm-neuro fit --config neuronio_branch_elm` trains on the whole data set and its split.
"""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader

from elm_neuro import BranchELM, plotting
from elm_neuro.checkpoints import from_upstream
from elm_neuro.datasets import NeuronIODataset, convert_neuronio
from elm_neuro.training import (
    evaluation_figures,
    evaluation_remarks,
    evaluation_table,
    neuronio_loss,
    predict_protocols,
    summarise_protocols,
)


def made_up_cell(file: Path, *, num_simulations: int, num_steps: int, seed: int = 0) -> None:
    """A simulation file of a leaky membrane that fires above a threshold, in NeuronIO's format: always the same cell,
    other input for another seed.
    """
    rng = np.random.default_rng(0)
    weight = np.concatenate((rng.gamma(2.0, 0.5, 639), -rng.gamma(2.0, 0.45, 639)))  # mV
    rng = np.random.default_rng(seed) if seed else rng
    simulations = []
    for _ in range(num_simulations):
        rate = 0.004 * np.repeat(rng.gamma(4.0, 0.25, num_steps // 50 + 1), 50)[:num_steps]
        spikes = rng.random((1278, num_steps)) < rate
        drive, v, voltage, fired = weight @ spikes, 0.0, [], []
        for t in range(num_steps):
            v = 0.95 * v + 0.6 * drive[t]
            voltage.append(-70.0 + v)
            if v > 14.0:
                voltage[-1], v = 20.0, -2.0
                fired.append(t + 1.0)
        lists = [
            {i: np.flatnonzero(row).tolist() for i, row in enumerate(half)} for half in (spikes[:639], spikes[639:])
        ]
        one = {
            "exInputSpikeTimes": lists[0],
            "inhInputSpikeTimes": lists[1],
            "outputSpikeTimes": np.array(fired, np.float16),
        }
        simulations.append(one | {"somaVoltageLowRes": np.array(voltage, np.float16)})
    file.parent.mkdir(parents=True, exist_ok=True)
    whole = {"Params": {}, "Results": {"listOfSingleSimulationDicts": simulations}}
    file.write_bytes(pickle.dumps(whole, protocol=4))


def train(files: list[Path], *, steps: int, num_memory: int) -> BranchELM:
    torch.manual_seed(0)
    neuron = BranchELM(1278, 2, num_memory, num_branch=45, num_synapse_per_branch=100)
    dataset = NeuronIODataset(files, num_windows=8 * steps)
    optimizer = torch.optim.Adam(neuron.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    loader = DataLoader(dataset, batch_size=8, collate_fn=NeuronIODataset.collate)
    for x, spikes, soma in track(loader, description="training", transient=True):
        loss = neuronio_loss(neuron(x)[0], spikes, soma).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(neuron.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    print(f"{steps} steps of 8 windows of 500 ms: loss {loss.item():.4f} on the last")
    return neuron.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of simulation files; a made-up cell by default")
    parser.add_argument("--model", type=Path, help="folder of an upstream checkpoint, to evaluate beside")
    parser.add_argument("--steps", type=int, default=400, help="of training (default: 400, a minute or so)")
    parser.add_argument("--out", type=Path, default=Path("neuronio"))
    parser.add_argument("--smoke", action="store_true", help="a few steps on a small cell")
    args = parser.parse_args()
    steps, num_memory = (12, 5) if args.smoke else (args.steps, 20)
    source = args.data
    if source is None:
        source = args.out / "made_up"
        made_up_cell(
            source / "sim__made_up.p", num_simulations=2 if args.smoke else 8, num_steps=1500 if args.smoke else 6000
        )
    converted = args.out / "converted"
    files = [converted / name for name in convert_neuronio([source], converted)]

    neuron = train(files, steps=steps, num_memory=num_memory)
    neuron.save_pretrained(args.out / "neuron")
    networks = {"trained here": neuron} | ({args.model.name: from_upstream(args.model)} if args.model else {})
    console, curves = Console(), {}
    for name, network in networks.items():
        curves[name] = predict_protocols(network, files)  # of these are both the table and the curve
        outcome = summarise_protocols(curves[name], num_draws=20 if args.smoke else 200)
        console.print(name, evaluation_table(outcome))
        for line in evaluation_remarks(outcome):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    source = None if args.data else "a made-up cell, not NeuronIO"
    for name, figure in evaluation_figures(neuron, curves, files[0], source=source).items():
        plotting.save(figure, args.out / name)
    print(
        f"neuron and figures are in {args.out}"
        + ("" if args.data else "; the cell is made up: these are no figures on NeuronIO")
    )


if __name__ == "__main__":
    main()
