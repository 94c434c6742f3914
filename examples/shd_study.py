"""Compare ELM, ELM Network, Branch-ELM, LSTM, LIF and adaptive LIF on SHD or SHD-Adding over bin sizes and seeds, and
repeat the ablations of the paper's figure 5.

    python examples/shd_study.py [--smoke]
    python examples/shd_study.py --train-file SHD/shd_train.h5 --test-file SHD/shd_test.h5 --task adding
    python examples/shd_study.py --bins 10 20 50 --updates 500 --minutes 60  # synthetic digits, what fits in an hour
    python examples/shd_study.py --models elm alif alif_elm --pool 5 --batch-size 32  # at equal parameters
    python examples/shd_study.py --task adding --models elm_network elm_equal --bins 2  # one layer, one neuron
    python examples/shd_study.py --ablations memory timescales --bins 2 --updates 20000
    python examples/shd_study.py --models --ablations latency --bins 2 --batch-size 32  # both gradients of ALIF

alif is the network of the recipe shd_alif (Blocks) and alif_elm one recurrent layer of adaptive LIF neurons read by an
ELM of half the memory, each as wide as the parameters of the ELM allow; they take the latency --latency.
elm_network is the network of the recipe shd_adding_elm_network, its times in ms, and elm_equal one ELM of as many
parameters, trained as elm.
Every point of the grid model x bin x seed is one training with the values of the paper's appendix B; Optuna keeps what
is done in STUDY/study.db, so the same command goes on where it was stopped, by Ctrl-C, --minutes or a crash, and
several processes may share it. --updates is part of the study: another number begins another study in the same file.
The best checkpoint on validation is tested. Written to STUDY, the folder --out: bins.md and bins.csv (the paper's
tables S8 and S9), bins.png/pdf (figures 5 b-d and S4), curves.csv, png, pdf (accuracy at every validation, at the
first of --bins), ablation_*.md, csv, png, pdf (figure 5 e, f; at the first of --bins, the paper's is 2). Needs the
extras data, train and study. Without files the digits are synthetic: their accuracies say nothing about SHD. Longer
than the other examples: it is a study to run, not a pattern to copy.

Longer than most examples: models, ablations and figures of one study, to be copied as one file.
"""

from __future__ import annotations

import argparse
import bisect
import csv
import itertools
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import optuna
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from rich.console import Console
from rich.table import Table

from elm_neuro import ALIF, ELM, LIF, BranchELM, ELMNetworkClassifier, plotting
from elm_neuro.datasets import SpokenDigits
from elm_neuro.files import whole_files
from elm_neuro.functional import MultiGaussian
from elm_neuro.training import (
    ALIFNetwork,
    Binning,
    LSTMClassifier,
    RecurrentLIFClassifier,
    SequenceClassifier,
    SHDAddingDataModule,
    SHDDataModule,
    SpikeClassification,
    SpikingNetwork,
    SpokenDigitsDataModule,
    num_parameters,
    quiet,
    seed_interval,
)

MODELS = {"elm": "ELM", "branch_elm": "Branch-ELM", "lstm": "LSTM", "chrono_lstm": "Chrono-LSTM", "lif": "LIF"}
MODELS |= {"alif": "ALIF", "alif_blocks": "ALIF, Blocks", "alif_elm": "ALIF + ELM"}
MODELS |= {"elm_network": "ELM Network", "elm_equal": "ELM, as many"}
PAPER = ["elm", "branch_elm", "lstm", "lif"]
SPIKING = ("alif", "alif_blocks", "alif_elm")
OPTIMIZED: dict[str, dict[str, Any]] = {  # the paper's, Blocks', and those of the demonstration's mixed network
    "lif": {"optimizer": "adamax", "learning_rate": 2e-3, "spike_l1": 0.01},
    "alif": {"optimizer": "adam", "learning_rate": 1e-3, "eps": 1e-5},
    "alif_blocks": {"optimizer": "adam", "learning_rate": 1e-3, "eps": 1e-5},
    "alif_elm": {"optimizer": "adam", "learning_rate": 3e-3, "input_dropout": 0.5},
    "elm_network": {
        "optimizer": "adamax",
        "learning_rate": 5e-3,
        "warmup_steps": 400,
        "label_smoothing": 0.01,
        "penalties": {"activity": 0.2, "mlp": 0.002},
    },
}
PARTS = {
    "train": "training",
    "valid": "validation",
    "test": "test",
    "seen": "seen speakers",
    "unseen": "unseen speakers",
}
ABLATIONS: dict[str, dict[str, list[Any]]] = {  # the networks, and the values of what is changed
    "memory": {"model": ["elm"], "num_memory": [10, 25, 50, 100, 200]},  # figure 5e; the MLP's width follows
    "timescales": {  # figure 5f: the longest initial time constant in ms
        "model": ["elm"],
        "tau_m_high": [10.0, 50.0, 150.0, 500.0, 1000.0],
    },
    "latency": {"model": ["alif", "alif_blocks"], "latency": [0.0, 10.0, 20.0, 50.0, 100.0]},
}
UNITS = {
    "bin_ms": "bin (ms)",
    "num_memory": "memory units",
    "tau_m_high": r"longest initial $\tau_m$ (ms)",
    "latency": "latency (ms)",
}


def network(
    model: str,
    *,
    num_channels: int,
    num_classes: int,
    bin_ms: float,
    num_memory: int = 100,
    tau_m_high: float = 150.0,
    latency: float = 10.0,
) -> torch.nn.Module:
    """A network at the paper's size, as in the recipes shd_* and shd_adding_*; those of adaptive LIF neurons at the
    ELM's.
    """
    elm: dict[str, Any] = {
        "num_memory": num_memory,
        "delta_t": bin_ms,
        "tau_m_init": (1.0, tau_m_high),
        "tau_m_spacing": "linear",
        "tau_m_bounds": (0.0, max(1000.0, 2 * tau_m_high)),
    }
    if model == "elm":
        return SequenceClassifier(ELM(num_channels, num_classes, learn_w_s=False, **elm))
    if model == "branch_elm":
        branches = {"num_branch": 100, "num_synapse_per_branch": math.ceil(num_channels / 20), "routing": "random"}
        return SequenceClassifier(BranchELM(num_channels, num_classes, **branches, **elm))
    if model == "lif":
        hidden = LIF(num_channels, 65, delta_t=bin_ms, tau_v=20.0, recurrent=True, detach_recurrent=False)
        return RecurrentLIFClassifier(hidden, output_size=num_classes)
    if model in SPIKING:
        settings: dict[str, Any] = {"delta_t": bin_ms, "tau_v": 20.0, "tau_a": 150.0, "b_init": 1.0, "latency": latency}
        settings |= {"recurrent": True, "surrogate": MultiGaussian()}
        settings |= {"gradient": "blocks" if model == "alif_blocks" else "loop"}
        half = {**elm, "num_memory": num_memory // 2}

        def sized(width: int) -> torch.nn.Module:
            first = ALIF(num_channels, width, **settings)
            if model != "alif_elm":
                return ALIFNetwork(first, ALIF(width, width, **settings), output_size=num_classes)
            return SpikingNetwork(first, ELM(width, num_classes, **half), readout="mean")

        return nearest(
            num_parameters(SequenceClassifier(ELM(num_channels, num_classes, learn_w_s=False, **elm))), sized
        )
    if model in ("elm_network", "elm_equal"):
        times: dict[str, Any] = {"delta_t": bin_ms, "tau_m_init": (bin_ms, max(1000.0, 4 * bin_ms))}
        dropout: dict[str, Any] = {"input_dropout": 0.2, "recurrent_dropout": 0.2}
        layered = ELMNetworkClassifier(
            num_channels, num_classes, 96, tau_high_pass=max(10.0, bin_ms), binarize=True, **dropout, **times
        )
        if model == "elm_network":
            return SequenceClassifier(layered)
        return nearest(
            num_parameters(layered),
            lambda width: SequenceClassifier(
                ELM(num_channels, num_classes, learn_w_s=False, **elm | {"num_memory": width})
            ),
        )
    timescales = (2 * bin_ms, max(2000.0, 4 * bin_ms)) if model == "chrono_lstm" else None
    return LSTMClassifier(num_channels, num_classes, 250, recurrent_dropout=0.3, timescales=timescales, delta_t=bin_ms)


def nearest(target: int, sized: Callable[[int], torch.nn.Module]) -> torch.nn.Module:
    """The network of the width whose number of parameters first reaches `target`."""

    def count(width: int) -> int:
        with torch.random.fork_rng(devices=[]):  # what is only counted must not change the weights that are drawn
            return num_parameters(sized(width))

    return sized(1 + bisect.bisect_left(range(1, 2048), target, key=count))


def data_module(args: argparse.Namespace, bin_ms: float) -> SHDDataModule:
    binning = Binning(bin_ms=bin_ms, pool=args.pool)
    train, test = args.train_file, args.test_file
    if args.task == "adding":
        digits = [
            SpokenDigits(split, num, 0, args.cache_dir)
            for split, num in zip(("train", "test"), args.digits, strict=True)
        ]
        source, target = (train, test) if train else digits
        pairs = (args.updates * args.batch_size // args.epochs, *args.eval_pairs)
        return SHDAddingDataModule(
            source, target, held_out=args.held_out, num_pairs=pairs, binning=binning, batch_size=args.batch_size
        )
    valid = args.valid_speakers or 0.2
    if train:
        return SHDDataModule(
            train, test, held_out=args.held_out, valid=valid, binning=binning, batch_size=args.batch_size
        )
    num_train, num_test = args.digits
    options: dict[str, Any] = {"valid": valid, "binning": binning, "batch_size": args.batch_size}
    return SpokenDigitsDataModule(num_train=num_train, num_test=num_test, cache_dir=args.cache_dir, **options)


class Curve(Callback):
    """Accuracy at every validation, with the updates and the processor's seconds until then."""

    def __init__(self) -> None:
        self.points: list[dict[str, float]] = []
        self.start = time.process_time()

    def on_validation_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        seconds = round(time.process_time() - self.start, 3)
        trained = float(module.train_accuracy.compute())  # type: ignore[operator, union-attr]  # since the epoch began
        valid = float(trainer.callback_metrics["valid/accuracy"])
        point = {"updates": trainer.global_step, "processor_seconds": seconds, "train": trained, "valid": valid}
        self.points.append(point)


def train(args: argparse.Namespace, model: str, bin_ms: float, seed: int, **changes: Any) -> dict[str, Any]:
    """Train one point of the grid for `args.updates` updates, and test its best checkpoint on validation."""
    lightning.seed_everything(seed, verbose=False)
    data = data_module(args, bin_ms)
    classes = 19 if args.task == "adding" else 20
    sizes = {"num_channels": data.num_channels, "num_classes": classes}
    net = network(model, bin_ms=bin_ms, **sizes, **{"latency": args.latency} | changes)
    options = OPTIMIZED.get(model, {"optimizer": "adamax", "learning_rate": 5e-3, "input_dropout": 0.5})
    if args.learning_rate is not None:
        options = options | {"learning_rate": args.learning_rate}
    module = SpikeClassification(net, num_classes=classes, seed=seed, **options)
    start = time.perf_counter()
    every = max(
        1, args.updates // args.epochs
    )  # updates from one validation to the next, whatever the size of an epoch
    with tempfile.TemporaryDirectory() as folder, quiet():
        best = ModelCheckpoint(folder, "best", monitor="valid/accuracy", mode="max", save_on_train_epoch_end=False)
        curve = Curve()
        trainer = lightning.Trainer(
            accelerator="auto",
            devices=1,
            gradient_clip_val=1.0 if model == "elm_network" else None,  # as published
            max_steps=args.updates,
            val_check_interval=every,
            check_val_every_n_epoch=None,
            callbacks=[best, curve],
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, datamodule=data)
        trained = float(trainer.callback_metrics.get("train/accuracy", math.nan))
        test = trainer.test(module, datamodule=data, ckpt_path="best", verbose=False, weights_only=True)[0]
        validation = float(best.best_model_score) if best.best_model_score is not None else math.nan
    results = {"train": trained, "valid": validation, "test": test["test/accuracy"], "majority": test["test/majority"]}
    results |= {
        group: test[f"test/accuracy_{group}"] for group in ("seen", "unseen") if f"test/accuracy_{group}" in test
    }
    seconds = {
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - curve.start, 3),
    }
    return results | {"parameters": num_parameters(net), **seconds, "curve": curve.points}


def grids(args: argparse.Namespace) -> dict[str, dict[str, list[Any]]]:
    """Name and search space of each study: the comparison, and each ablation of the ELM neuron."""
    seeds, bins = {"seed": args.seeds}, {"bin_ms": args.bins}
    results: dict[str, dict[str, list[Any]]] = {"bins": {"model": args.models, **bins, **seeds}} if args.models else {}
    return results | {
        f"ablation_{name}": {"bin_ms": args.bins[:1], **ABLATIONS[name], **seeds} for name in args.ablations
    }


def search(
    args: argparse.Namespace, name: str, space: dict[str, list[Any]], deadline: float, console: Console
) -> optuna.Study:
    """Train what is not done yet of a grid, one point after another, until it is full or the time is up."""
    data = (
        f"{args.train_file}, {args.test_file}, held out {args.held_out}"
        if args.train_file
        else f"synthetic digits {args.digits}"
    )
    training = f"{args.updates} updates of {args.batch_size}, pool {args.pool}, validated {args.epochs} times"
    if "latency" not in space and not set(SPIKING).isdisjoint(space["model"]):
        training += f", latency {args.latency:g} ms"
    if args.learning_rate is not None:
        training += f", learning rate {args.learning_rate:g}"
    settings = f"{args.task}, {training}, {data}"
    study = optuna.create_study(
        study_name=f"{name}: {settings}",
        storage=f"sqlite:///{args.out / 'study.db'}",
        direction="maximize",
        load_if_exists=True,
    )
    points = product(space)
    for point in points:
        done = rows(study, space)
        if point in done:
            continue
        if time.monotonic() > deadline:
            console.print(
                f"{name}: the time is up with {len(done)} of {len(points)} points; the same command goes on",
                highlight=False,
            )
            break
        settings_of_point = dict(zip(space, point, strict=True))
        results = train(args, **settings_of_point)
        trial = study.ask()  # a point that is interrupted leaves none
        for part, value in (settings_of_point | results).items():
            trial.set_user_attr(part, value)
        study.tell(trial, results["test"])
        words = ", ".join(f"{axis} {value}" for axis, value in settings_of_point.items())
        console.print(
            f"{words}: test {results['test']:.1%}, validation {results['valid']:.1%}, {results['seconds']:.0f} s",
            highlight=False,
        )
    return study


def rows(study: optuna.Study, space: dict[str, list[Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What is done of a grid: each point, (value of each axis), with its figures."""
    done = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    runs = [trial.params | trial.user_attrs for trial in done]
    results = {tuple(run[axis] for axis in space): run for run in runs if run.keys() >= space.keys()}
    return {point: results[point] for point in product(space) if point in results}


def product(space: dict[str, list[Any]]) -> list[tuple[Any, ...]]:
    return list(itertools.product(*space.values()))


def by_setting(results: list[dict[str, Any]], axis: str) -> dict[tuple[str, float], list[dict[str, Any]]]:
    """The runs of each (model, setting), one a seed."""
    groups = defaultdict(list)
    for run in results:
        groups[run["model"], run[axis]].append(run)
    return dict(groups)


def write(args: argparse.Namespace, name: str, axis: str, results: list[dict[str, Any]], console: Console) -> None:
    """Table and figure of one study: mean and 95 % t interval over the seeds."""
    groups = by_setting(results, axis)
    parts = {part: title for part, title in PARTS.items() if any(part in run for run in results)}
    majority = max(run["majority"] for run in results)
    header = ["model", axis, "parameters", "seeds", *parts.values()]
    table = []
    for (model, setting), runs in groups.items():
        cells = [
            str(seed_interval([run[part] for run in runs if part in run])) if any(part in run for run in runs) else "–"
            for part in parts
        ]
        table.append([MODELS[model], f"{setting:g}", f"{runs[0]['parameters']:,}", str(len(runs)), *cells])
    table.append(
        ["majority class", *["–"] * 3, *(f"{100 * majority:.1f} %" if part == "test" else "–" for part in parts)]
    )
    source = f"{args.train_file}" if args.train_file else "synthetic digits, which say nothing about SHD"
    protocol = "SHD-Adding" if args.task == "adding" else "SHD"
    what = f"{protocol} protocol on {source}: {args.updates} updates of {args.batch_size}, {name}"
    lines = [f"| {' | '.join(line)} |" for line in (header, ["---"] * 3 + ["---:"] * (len(header) - 3), *table)]
    note = "Mean and 95 % t interval over the seeds; best checkpoint on validation."
    columns = sorted({column for run in results for column in run} - {"curve"})
    with whole_files(args.out / f"{name}.md", args.out / f"{name}.csv") as (text, points):
        text.write_text(f"# {what}\n\n{note}\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
        with points.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(results)
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for part, title in list(parts.items())[:3] if name == "bins" else [("test", "test")]:
        lines_of: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for (model, setting), runs in groups.items():
            lines_of[MODELS[model]].append((setting, *seed_interval([run[part] for run in runs])))
        panels[title] = dict(lines_of)
    figure = plotting.accuracies(panels, xlabel=UNITS[axis], majority=majority, log=axis != "latency")
    plotting.save(plotting.note(figure, f"{protocol} protocol on {source}"), args.out / name)
    shown = Table(*header, title=what, title_justify="left")
    for line in table:
        shown.add_row(*line)
    console.print(shown)


def write_curves(args: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Points and figure of how the networks learned, at the first bin: mean and range over the seeds."""
    runs = [run for run in results if run["bin_ms"] == args.bins[0] and run.get("curve")]
    if not runs:  # of a study that began before curves were kept
        return
    with whole_files(args.out / "curves.csv") as (path,), path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["model", "bin_ms", "seed", *runs[0]["curve"][0]])
        writer.writeheader()
        writer.writerows(
            {key: run[key] for key in ("model", "bin_ms", "seed")} | point for run in runs for point in run["curve"]
        )
    panels: dict[str, dict[str, list[tuple[float, float, float]]]] = {"training": {}, "validation": {}}
    for part, lines_of in zip(("train", "valid"), panels.values(), strict=True):
        for (model, _), group in by_setting(runs, "bin_ms").items():
            at = defaultdict(list)
            for point in itertools.chain.from_iterable(run["curve"] for run in group):
                at[point["updates"]].append(point[part])
            lines_of[MODELS[model]] = [
                (updates, (max(seeds) + min(seeds)) / 2, (max(seeds) - min(seeds)) / 2) for updates, seeds in at.items()
            ]
    majority = max(run["majority"] for run in runs)
    figure = plotting.accuracies(panels, xlabel="updates", majority=majority, log=False)
    source = f"{args.train_file}" if args.train_file else "synthetic digits"
    plotting.save(
        plotting.note(figure, f"{source}, {args.bins[0]:g} ms bins; bars from the lowest to the highest seed"),
        args.out / "curves",
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["shd", "adding"], default="shd")
    parser.add_argument("--train-file", type=Path, help="SHD-format file; synthetic digits by default")
    parser.add_argument(
        "--test-file", type=Path, help="SHD-format file; without it speakers of --train-file are held out"
    )
    parser.add_argument(
        "--held-out", type=int, nargs="+", help="speakers of --train-file who only test, where there is no --test-file"
    )
    parser.add_argument(
        "--valid-speakers",
        type=int,
        nargs="+",
        help="speakers who only validate, of --task shd; default: a fifth of the samples",
    )
    parser.add_argument(
        "--models",
        choices=list(MODELS),
        nargs="*",
        default=PAPER,
        help="networks to compare; none runs the ablations only",
    )
    parser.add_argument(
        "--ablations",
        choices=list(ABLATIONS),
        nargs="*",
        default=[],
        help="memory and timescales of the ELM neuron, as in figure 5 e and f; latency: ALIF by either gradient",
    )
    parser.add_argument(
        "--bins", type=float, nargs="+", default=[10.0], metavar="MS", help="the paper's: 1 2 4 6 8 10 20 50 100"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the paper has 5")
    parser.add_argument(
        "--updates",
        type=int,
        default=1000,
        help="of the weights, for each point; the paper's: 56980 (SHD), 140000 (adding)",
    )
    parser.add_argument("--learning-rate", type=float, help="of every model; default: as each was published")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no further point after so long")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pool", type=int, default=1, help="neighbouring channels that become one; the paper has none")
    parser.add_argument("--latency", type=float, default=10.0, metavar="MS", help="of adaptive LIF neurons")
    parser.add_argument("--epochs", type=int, default=10, help="how often to validate; the paper has 70")
    parser.add_argument(
        "--eval-pairs",
        type=int,
        nargs=2,
        default=[2048, 4096],
        metavar=("VALID", "TEST"),
        help="pairs of --task adding",
    )
    parser.add_argument(
        "--digits", type=int, nargs=2, default=[1440, 720], metavar=("TRAIN", "TEST"), help="synthetic digits"
    )
    parser.add_argument("--cache-dir", help="folder of the synthetic digits")
    parser.add_argument("--out", type=Path, default=Path("runs/shd_study"), help="folder of the study")
    parser.add_argument("--smoke", action="store_true", help="small, in seconds; the accuracies mean nothing")
    args = parser.parse_args()
    if args.smoke:
        args.updates, args.epochs, args.pool, args.seeds, args.bins = 4, 2, 35, args.seeds[:2], [50.0]
        args.digits, args.eval_pairs, args.models = (
            [120, 60],
            [16, 16],
            ["elm", "lif"] if args.models == PAPER else args.models,
        )
    if (
        min(args.updates, args.epochs, args.batch_size, args.pool, *args.bins, *args.digits, *args.eval_pairs) <= 0
        or args.epochs > args.updates
    ):
        parser.error("--updates must be at least --epochs, and every size above 0")
    if args.learning_rate is not None and not 0 < args.learning_rate < math.inf:
        parser.error(f"--learning-rate must be a finite number above 0, got {args.learning_rate}")
    if args.train_file and not args.test_file and not args.held_out and args.task == "shd":
        parser.error("--train-file needs --test-file, or --held-out speakers to test on")
    if args.train_file and not args.train_file.is_file():
        parser.error(f"--train-file must be an SHD-format file, got {args.train_file}")
    return args


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=max(120, Console().width))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    deadline = time.monotonic() + 60 * args.minutes
    for name, space in grids(args).items():
        study = search(args, name, space, deadline, console)
        if results := list(rows(study, space).values()):
            axis = "bin_ms" if name == "bins" else [*ABLATIONS[name.removeprefix("ablation_")]][-1]
            write(args, name, axis, results, console)
            if name == "bins":
                write_curves(args, results)


if __name__ == "__main__":
    main()
