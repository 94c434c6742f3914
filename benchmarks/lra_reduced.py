"""What small networks learn of REDUCED tasks of Long Range Arena on one core: the ELM beside a Chrono-LSTM of as many
parameters and as many updates, several seeds, curves and a table.

    OMP_NUM_THREADS=1 python benchmarks/lra_reduced.py [--work reports/lra_reduced] [--tasks listops pathfinder]
    [--seeds 0 1 2] [--smoke]

Generates the data, runs the recipes lra_*_reduced and lra_*_reduced_lstm for each seed, tests the checkpoint that is
best on validation, and writes results.json, results.md and reduced.png. Started again it goes on where it was stopped.
The sequences are shorter, the networks smaller and the updates fewer than the paper's: nothing here compares with a
published figure. Times are processor time of fit: reading, training and validation.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from elm_neuro import plotting
from elm_neuro.cli import main as elm_neuro
from elm_neuro.files import write_whole

GENERATE = {
    "listops": "listops --num 64000 --min-length 99 --max-length 201 --out listops_100_200.safetensors",
    "pathfinder": "pathfinder --num 24000 --contour-length 3 --distractors 0 --out pathfinder32_reduced",
}
TITLES = {"listops": "ListOps of 100–200 tokens, reduced", "pathfinder": "Pathfinder 32, reduced (3 paddles)"}
NETWORKS = {"ELM": "", "Chrono-LSTM": "_lstm"}
SMOKE = {"listops": ["--trainer.limit_train_batches", "4", "--trainer.max_epochs", "1"]}


def generate(task: str, smoke: bool) -> None:
    arguments = GENERATE[task].split()
    if smoke:
        arguments[arguments.index("--num") + 1] = "400"
    out = Path(arguments[-1])
    if task == "listops" and out.exists():
        return
    run(["lra", "generate", *arguments, "--workers", "1"])


def run(arguments: list[str]) -> None:
    if (status := elm_neuro(arguments)) != 0:
        raise SystemExit(status)


def trained(task: str, network: str, seed: int, extra: list[str]) -> dict[str, Any]:
    """What the test of one run found; the run is made, or gone on with, where it is not there."""
    recipe = f"lra_{task}_reduced{NETWORKS[network]}"
    folder = Path("runs") / f"{recipe}_{seed}"
    evaluation, seconds = folder / "test" / "evaluation.json", folder / "seconds.json"
    if not evaluation.exists():
        options = ["--name", folder.name, "--seed_everything", str(seed), "--data.seed", str(seed)]
        resume = ["--resume"] if (folder / "last.ckpt").exists() else []
        start = time.process_time()
        run(["fit", "--config", recipe, *options, "--trainer.enable_progress_bar", "false", *resume, *extra])
        before = json.loads(seconds.read_text()) if resume and seconds.exists() else 0.0
        write_whole({seconds: json.dumps(before + time.process_time() - start).encode()})
        run(["test", "--config", recipe, "--ckpt_path", str(folder / "best.ckpt")])
    curve = EventAccumulator(str(folder))
    curve.Reload()
    points = [(event.step, event.value) for event in curve.Scalars("valid/accuracy")]
    return {
        "task": task,
        "network": network,
        "seed": seed,
        "seconds": json.loads(seconds.read_text()),
        "curve": points,
        **json.loads(evaluation.read_text()),
    }


@plotting.styled
def figure_of(results: list[dict[str, Any]]) -> Figure:
    """Accuracy on validation over the updates: a line a seed; dotted what needs no network."""
    tasks = list(dict.fromkeys(result["task"] for result in results))
    figure = Figure(figsize=(3.6 * len(tasks) + 0.4, 3.2))
    for axis, letter, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], "ab", tasks, strict=False):
        chosen = [result for result in results if result["task"] == task]
        for network, colour in zip(NETWORKS, plotting.PALETTE, strict=False):
            for number, result in enumerate(one for one in chosen if one["network"] == network):
                axis.plot(*np.array(result["curve"]).T, color=colour, linewidth=1.2, label=None if number else network)
        marks = {"commonest answer": "majority", "best answer to each root operator": "by_group"}
        for (name, key), style in zip(marks.items(), (":", "--"), strict=True):
            if key in chosen[0]:
                axis.axhline(chosen[0][key], color=plotting.INK, linewidth=0.9, linestyle=style, label=f"{name} (test)")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.set_xlabel("updates")
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axis.margins(x=0.02)
        plotting.label_panel(axis, letter, TITLES[task])
    figure.axes[0].set_ylabel("accuracy on validation")
    lines = {line.get_label(): line for axis in figure.axes for line in axis.lines if line.get_label()[:1] != "_"}
    figure.legend([*lines.values()], [*lines], loc="outside lower center", ncols=4, columnspacing=1.4)
    return figure


def table_of(results: list[dict[str, Any]]) -> str:
    lines = [
        "| reduced task | network | seeds | test accuracy | each | commonest answer | root operator | minutes |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for task, network in dict.fromkeys((result["task"], result["network"]) for result in results):
        chosen = [one for one in results if (one["task"], one["network"]) == (task, network)]
        accuracy = 100 * np.array([one["accuracy"] for one in chosen])
        each = ", ".join(f"{value:.1f}" for value in accuracy)
        root = f"{100 * chosen[0]['by_group']:.1f} %" if "by_group" in chosen[0] else ""
        minutes = np.mean([one["seconds"] for one in chosen]) / 60
        lines.append(
            f"| {TITLES[task]} | {network} | {len(chosen)} | {accuracy.mean():.1f} % | {each} | "
            f"{100 * chosen[0]['majority']:.1f} % | {root} | {minutes:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("reports/lra_reduced"))
    parser.add_argument("--tasks", nargs="+", choices=[*GENERATE], default=[*GENERATE])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--smoke", action="store_true", help="ListOps only, a few updates: the accuracies mean nothing")
    options = parser.parse_args()
    tasks, seeds = (["listops"], [0]) if options.smoke else (options.tasks, options.seeds)
    options.work.mkdir(parents=True, exist_ok=True)
    os.chdir(options.work)
    results = []
    for task in tasks:
        generate(task, options.smoke)
        results += [
            trained(task, network, seed, SMOKE[task] if options.smoke else []) for seed in seeds for network in NETWORKS
        ]
    write_whole({Path("results.json"): json.dumps(results, indent=1).encode()})
    write_whole({Path("results.md"): table_of(results).encode() + b"\n"})
    plotting.save(figure_of(results), Path("reduced"))
    print(table_of(results))


if __name__ == "__main__":
    main()
