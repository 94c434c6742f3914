"""The report of the demonstration: table, figures, metrics, trained neuron."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from elm_neuro import __version__, plotting
from elm_neuro.checkpoints import save_pretrained
from elm_neuro.demo._networks import build, elm_neuron, mixed_network
from elm_neuro.demo._run import DemoRun
from elm_neuro.demo._settings import CONTROL, MIXED, DemoSettings
from elm_neuro.files import write_whole
from elm_neuro.training import num_parameters, seed_interval

GROUPS = {"accuracy": "all speakers", "accuracy_seen": "seen speakers", "accuracy_unseen": "unseen speakers"}
LIBRARIES = ("torch", "numpy", "lightning", "torchmetrics", "h5py", "matplotlib", "onnx", "onnxruntime")
SHOWN = 4  # samples in the rasters


def metrics_of(runs: Sequence[DemoRun], settings: DemoSettings, *, seconds: float) -> dict[str, Any]:
    """All figures of a demonstration with its settings and versions, as JSON holds them."""
    networks = {}
    for name in (MIXED, CONTROL):
        own = [run for run in runs if run.name == name]
        values = {group: [run.test[group] for run in own] for group in GROUPS if group in own[0].test}
        spread = {group: seed_interval(shares).half for group, shares in values.items()}
        networks[name] = {
            "parameters": num_parameters(own[0].module.network),
            "mean": {group: statistics.fmean(shares) for group, shares in values.items()},
            "interval": spread if len(own) > 1 else None,  # 95 %, Student's t
            "runs": [_record(run) for run in own],
        }
    data = runs[0].data
    seen, speakers = data.seen_speakers, data.part("test").speakers
    validated_on = getattr(data, "validation_speakers", None)
    familiar = seen.tolist() + ([] if validated_on is None else validated_on.tolist())
    return {
        "data": {
            "name": settings.data_name,
            "synthetic": settings.train_file is None,
            "samples": {part: len(data.part(part)) for part in ("train", "valid", "test")},
            "speakers": {
                "train": seen.tolist(),
                "test only": sorted(set(speakers.flatten().tolist()) - set(familiar) - {-1}),
            },
        },
        "networks": networks,
        "majority": runs[0].test["majority"],
        "settings": asdict(settings),
        "fingerprints": runs[0].data.state_dict(),
        "tuned": {name: asdict(tuned) for name, tuned in settings.tuned.items()},
        "seconds": round(seconds, 1),
        "peak_memory_mib": _peak_memory(),
        "threads": torch.get_num_threads(),
        "versions": {"elm_neuro": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in LIBRARIES},
    }


def _record(run: DemoRun) -> dict[str, Any]:
    who = {str(speaker): {"accuracy": right, "samples": num} for speaker, (right, num) in run.module.by_speaker.items()}
    return {
        "seed": run.seed,
        "seconds": round(run.seconds, 1),
        "test": run.test,
        "speakers": who,
        "history": run.history,
    }


def table_of(metrics: Mapping[str, Any]) -> Table:
    """Test accuracies of both networks beside the majority class."""
    table = Table(title=f"Test accuracy on {metrics['data']['name']}", title_justify="left")
    for column in ("network", "parameters", *GROUPS.values()):
        table.add_column(column, justify="left" if column == "network" else "right")
    for row in _rows(metrics):
        table.add_row(*row)
    return table


def verdict(metrics: Mapping[str, Any]) -> str:
    """Which network is ahead, in a sentence that also says so when it is the control."""
    mixed, control = (metrics["networks"][name]["mean"] for name in (MIXED, CONTROL))
    parts = []
    for group, words in GROUPS.items():
        if group in mixed and group in control:
            points = 100 * (mixed[group] - control[group])
            lead = f"{abs(points):.1f} points {'ahead' if points > 0 else 'behind'}" if abs(points) >= 0.05 else "level"
            parts.append(f"{lead} on {words}")
    runs = len(metrics["networks"][MIXED]["runs"])
    return f"{MIXED} against {CONTROL}: {', '.join(parts)} ({runs} run{'s' if runs > 1 else ''} each)."


def write_figures(runs: Sequence[DemoRun], settings: DemoSettings, report: Path) -> None:
    """Rasters, workings, time constants and learning curves, as PNG and PDF, of the first seed; the curves of all."""
    run = next(run for run in runs if run.name == MIXED)
    network, neuron = mixed_network(run.module).eval(), elm_neuron(run.module)
    dataset = run.data.part("test")
    chosen = _first_of_each(dataset.labels, SHOWN)
    x, labels, _ = dataset.batch(chosen)
    frames = x if isinstance(x, torch.Tensor) else x.to_dense()
    with torch.no_grad():
        spikes, _ = network.hidden(frames)
        answers = network(frames).argmax(1)
        traces = neuron.traces(spikes[:1])
    words = run.data.class_names
    titles = [
        f"“{words[label]}”\nheard as “{words[answer]}”"
        for label, answer in zip(labels.tolist(), answers.tolist(), strict=True)
    ]
    untrained = elm_neuron(build(MIXED, settings, num_channels=run.data.num_channels, seed=run.seed))
    delta_t, tau_m, before = settings.tuned[MIXED].bin_ms, neuron.tau_m, untrained.tau_m
    histories = {name: [run.history for run in runs if run.name == name] for name in (MIXED, CONTROL)}
    figures = {
        "rasters": plotting.rasters(list(frames), list(spikes), delta_t=delta_t, titles=titles),
        "neuron": plotting.workings(
            spikes[0],
            traces,
            tau_m=tau_m,
            delta_t=delta_t,
            answer=int(labels[0]),
            names=words,
            source="the LIF layer, which the ELM neuron reads",
        ),
        "timescales": plotting.timescales(before, tau_m, bounds=settings.tau_m[1]),
        "learning_curve": plotting.learning_curves(histories, majority=runs[0].test["majority"]),
    }
    if run.module.confusion is not None:
        figures["confusion"] = plotting.confusion_matrix(run.module.confusion, names=words, title=MIXED)
    for name, figure in figures.items():
        plotting.save(plotting.note(figure, settings.data_name), report / name)


def write_neuron(runs: Sequence[DemoRun], report: Path) -> Path:
    """The ELM neuron of the first seed's mixed network, as `from_pretrained` reads it; returns its folder."""
    run = next(run for run in runs if run.name == MIXED)
    save_pretrained(elm_neuron(run.module), report / "elm")
    return report / "elm"


def write_report(metrics: Mapping[str, Any], report: Path) -> None:
    """metrics.json, and report.md for readers."""
    contents = {
        "metrics.json": json.dumps(metrics, indent=2, ensure_ascii=False) + "\n",
        "report.md": _markdown(metrics),
    }
    write_whole({report / name: text.encode() for name, text in contents.items()})


def _rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, network in metrics["networks"].items():
        cells = []
        for group in GROUPS:
            values = [run["test"][group] for run in network["runs"] if group in run["test"]]
            spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{100 * statistics.fmean(values):.1f}{spread} %" if values else "–")
        rows.append([name, f"{network['parameters']:,}", *cells])
    return [*rows, ["majority class", "–", f"{100 * metrics['majority']:.1f} %", *["–"] * (len(GROUPS) - 1)]]


def _markdown(metrics: Mapping[str, Any]) -> str:
    data, onnx, adding = metrics["data"], metrics.get("onnx"), metrics["settings"]["task"] == "adding"
    rows = [["network", "parameters", *GROUPS.values()], ["---", *["---:"] * (1 + len(GROUPS))], *_rows(metrics)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    samples, speakers, settings = data["samples"], data["speakers"], metrics["settings"]
    memory = f", at most {metrics['peak_memory_mib']} MiB" if metrics["peak_memory_mib"] else ""
    bins = " and ".join(f"{tuned['bin_ms']:g} ms ({name})" for name, tuned in metrics["tuned"].items())
    if data["synthetic"]:
        source = (
            "**The data are synthetic**: spike trains of made-up spoken digits from a seeded generator, in the form of "
            "the Spiking "
            "Heidelberg Digits. An accuracy on them is not an accuracy on SHD or on recorded speech."
        )
    else:
        source = f"The data are those of {data['name']}."
    if adding:
        source += (
            " Two digits follow each other and the class is their sum, by the fixed protocol v1 of SHD-Adding, at "
            "settings easier than the "
            f"paper's. The most frequent sum alone scores {100 * metrics['majority']:.1f} %."
        )
    logits = "logits at the last step" if adding else "logits averaged over time"
    of_a_seed = "of weights and dropout" if adding else "of weights, order and validation split"
    counts = "" if settings["scale"] == 1 else f", a spike counts {settings['scale']:g}"
    pictures = {
        "rasters": "Spikes of test samples, and of the LIF layer that reads them",
        "neuron": "One test sample on its way through the ELM neuron",
        "timescales": "Memory time constants of the ELM neuron before and after training",
        "confusion": f"Which class {MIXED} takes for which, in the test set",
        "learning_curve": "Accuracy and loss over the epochs",
    }
    of = f"seed {settings['seeds'][0]}, {data['name']}"
    shown = [f"![{words}]({name}.png)\n\n{words} ({of}; [PDF]({name}.pdf)).\n" for name, words in pictures.items()]
    files = [
        "metrics.json: every figure, the settings, the versions",
        "checkpoints/: both networks, as Lightning resumes them; elm/: the ELM neuron, for "
        "`elm_neuro.checkpoints.from_pretrained`",
    ]
    if onnx:
        files.append(f"ONNX model of one time step of the ELM neuron: {onnx['outcome']}")
    return "\n".join(
        [
            f"# {MIXED} against {CONTROL} on {data['name']}",
            "",
            source,
            "",
            table,
            "",
            verdict(metrics)
            + " Both have the same number of parameters up to 2 %, the same epochs and "
            + ("the same settings, chosen with the first." if adding else "the same grid of settings to be tuned over.")
            + (" ± is the standard deviation over the seeds." if len(settings["seeds"]) > 1 else ""),
            "",
            f"{MIXED}: a layer of LIF neurons read by one ELM neuron, {logits}. {CONTROL}: a layer of LIF neurons, a "
            "recurrent one "
            "whose fed-back spikes pass no gradient (as in Blocks, Taylor et al. 2023), leaky integrators averaged "
            "over time.",
            "",
            f"{samples['train']} training, {samples['valid']} validation and {samples['test']} test samples. Speakers "
            "trained on: "
            f"{_list(speakers['train'])}; only in the test set: {_list(speakers['test only'])}. "
            f"{settings['num_epochs']} epochs, time steps of {bins}, "
            f"{settings['pool']} neighbouring channels pooled{counts}. Seeds {_list(settings['seeds'])}: {of_a_seed}. "
            f"The last epoch's weights are tested. {metrics['seconds']:.0f} s in all{memory}.",
            "",
            "## Figures",
            "",
            *shown,
            "## Files",
            "",
            *(f"- {line}" for line in files),
            "",
        ]
    )


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "not known"


def _first_of_each(labels: torch.Tensor, num: int) -> list[int]:
    """The first sample of each of the first `num` classes that there are, spread over both languages."""
    classes = labels.unique().tolist()
    spread = [classes[i * len(classes) // num] for i in range(min(num, len(classes)))]
    return [int((labels == label).nonzero()[0]) for label in dict.fromkeys(spread)]


def _peak_memory() -> int | None:
    """In MiB; None where the system does not tell."""
    if find_spec("resource") is None:
        return None
    import resource

    return int(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if platform.system() == "Linux" else 1024**2)
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
