"""Evaluation on NeuronIO: the published protocol to the letter, and beside it what a network says by itself."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from elm_neuro.datasets import Simulations, open_simulations, read_simulation_file
from elm_neuro.datasets.neuronio._simulations import SOMA_BIAS_MV, SOMA_CAP_MV, SOMA_SCALE_MV
from elm_neuro.datasets.neuronio._store import SUFFIXES
from elm_neuro.datasets.neuronio._windows import gather
from elm_neuro.training.neuronio._metrics import (
    Figures,
    Prediction,
    aligned,
    chosen,
    figures,
    intervals,
    pooled,
    undefined,
)

Progress = Callable[[str, int, int], None]  # the file, simulations done, simulations in all


@dataclass(frozen=True)
class Windows:
    """How the published protocol cuts a simulation.

    Each window starts from a state of zero, ``window_ms - burn_in_ms`` after the one before, and loses its first
    `burn_in_ms`, but for the first window, which keeps them; the last one is padded with silence.

    Args:
        window_ms: length of a window.
        burn_in_ms: what is thrown away.

    Raises:
        ValueError: the burn-in is not within the window.
    """

    window_ms: int = 500
    burn_in_ms: int = 150

    def __post_init__(self) -> None:
        if not 0 <= self.burn_in_ms < self.window_ms:
            raise ValueError(f"burn_in_ms must be in [0, window_ms = {self.window_ms}), got {self.burn_in_ms}")

    def cuts(self, num_steps: int) -> Iterator[tuple[int, int, int]]:
        """Start, end, and first step that counts, of each window of `num_steps`; none counts where another does."""
        start = counts_from = 0
        while counts_from < num_steps:
            end = min(start + self.window_ms, num_steps)
            yield start, end, counts_from
            start, counts_from = start + self.window_ms - self.burn_in_ms, end


def predict(
    network: nn.Module,
    simulations: Simulations,
    windows: Windows | None,
    *,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> Prediction:
    """Spike probability and voltage of every simulation.

    Args:
        network: maps :class:`SpikeEvents` (batch, time, 1278) to outputs (batch, time, 2), alone or before a state, as
            :class:`elm_neuro.nn.ELM`: logit of a spike, and voltage as :func:`elm_neuro.datasets.soma_target`.
        simulations: of one file.
        windows: how to cut them; None runs each simulation from start to end.
        batch_size: stretches of time run at once.
        progress: called with the number of simulations done.
    """
    num, num_steps = len(simulations), simulations.num_steps
    logit, soma_hat = np.zeros((num, num_steps), np.float32), np.zeros((num, num_steps), np.float32)
    cuts = [(0, num_steps, 0)] if windows is None else list(windows.cuts(num_steps))
    length = num_steps if windows is None else windows.window_ms
    todo = [(i, *cut) for i in range(num) for cut in cuts]
    for first in range(0, len(todo), batch_size):
        batch = todo[first : first + batch_size]
        y = _outputs(network, simulations, batch, length)
        for (i, start, end, counts_from), own in zip(batch, y, strict=True):
            logit[i, counts_from:end], soma_hat[i, counts_from:end] = own[counts_from - start : end - start].T
        if progress is not None:
            progress(batch[-1][0] if first + batch_size < len(todo) else num)
    probability = torch.sigmoid(torch.from_numpy(logit)).numpy()
    soma = np.minimum(simulations.soma_mv.astype(np.float64), SOMA_CAP_MV) - SOMA_BIAS_MV
    spikes = np.stack([simulations.spikes(i) for i in range(num)])
    return Prediction(spikes, probability, soma, SOMA_SCALE_MV * soma_hat.astype(np.float64))


def _outputs(
    network: nn.Module, simulations: Simulations, batch: Sequence[tuple[int, int, int, int]], length: int
) -> np.ndarray[Any, Any]:
    rows = [simulations.rows(i, start, end) for i, start, end, _ in batch]
    x: Any = gather([indptr for indptr, _ in rows], [channel for _, channel in rows], length, "events")
    parameter = next(network.parameters())
    with torch.inference_mode():
        y = network(x.to(parameter.device, parameter.dtype))
    y = y if isinstance(y, Tensor) else y[0]
    if tuple(y.shape) != (len(batch), length, 2):
        raise ValueError(f"network must give outputs (batch, time, 2), spike logit and soma, got {tuple(y.shape)}")
    if not bool(torch.isfinite(y).all()):
        raise ValueError("network must give finite outputs, got NaN or infinity: it has diverged")
    return np.asarray(y.float().cpu().numpy())


class Protocols(NamedTuple):
    """What a network predicts on some files, at the steps that count: tables and curves are both made of these."""

    published: Prediction
    raw: Prediction
    windows: Windows
    files: tuple[str, ...]  # their names


def predict_protocols(
    network: nn.Module,
    files: Sequence[str | os.PathLike[str]],
    *,
    windows: Windows | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Protocols:
    """Predictions of a network on NeuronIO by the published protocol, and as the network says them by itself.

    "published": predictions in windows, the voltage aligned to the truth of each file, simulations with at most 24
    spikes, without their first 500 ms, all pooled. "raw": each simulation in one go, nothing aligned, all simulations,
    without their first 500 ms. Files are read one after the other; kept are four numbers for each ms of a simulation,
    0.1 MB for one of 6 s.

    Args:
        network: as in :func:`predict`; it is put into evaluation mode.
        files: pickles of NeuronIO or converted files, all of one length.
        windows: of the published protocol; 500 ms with a burn-in of 150 ms by default.
        batch_size: stretches of time run at once.
        progress: called while it runs.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: there is no file, one is damaged, they differ in length, or the network does not fit.
    """
    if not files:
        raise ValueError("files must name at least one file, got none")
    windows, was_training = windows or Windows(), network.training
    published: list[Prediction] = []
    raw: list[Prediction] = []
    network.eval()
    try:
        for file in files:
            simulations = read(file)
            for own, cut, done in ((published, windows, 0), (raw, None, len(simulations))):

                def tell(num: int, file: Any = file, done: int = done, total: int = 2 * len(simulations)) -> None:
                    if progress is not None:
                        progress(str(file), done + num, total)

                prediction = predict(network, simulations, cut, batch_size=batch_size, progress=tell)
                if cut is not None:
                    prediction = prediction._replace(soma_hat=aligned(prediction.soma, prediction.soma_hat))
                own.append(
                    Prediction(
                        prediction.spikes,
                        prediction.probability,
                        *(part.astype(np.float32) for part in (prediction.soma, prediction.soma_hat)),
                    )
                )
    finally:
        network.train(was_training)
    names = tuple(Path(file).name for file in files)
    return Protocols(chosen(pooled(published)), chosen(pooled(raw), max_spikes=None), windows, names)


def summarise_protocols(predictions: Protocols, *, num_draws: int = 200, seed: int = 0) -> dict[str, Any]:
    """The published figures of predictions, and the honest ones beside them.

    Args:
        predictions: of :func:`predict_protocols`.
        num_draws: of the bootstrap over simulations; 0 leaves intervals out.
        seed: of the bootstrap.

    Returns:
        For "published" and "raw": "figures" by the authors' names (None where undefined, and "undefined" says why),
        "intervals" of 95 %, "simulations" and "spikes" that counted; and "protocol".
    """
    return {
        "published": _summary(predictions.published, num_draws, seed),
        "raw": _summary(predictions.raw, num_draws, seed),
        "protocol": {
            "window_ms": predictions.windows.window_ms,
            "burn_in_ms": predictions.windows.burn_in_ms,
            "files": list(predictions.files),
            "bootstrap_draws": num_draws,
            "level": 0.95,
        },
    }


def evaluate(
    network: nn.Module,
    files: Sequence[str | os.PathLike[str]],
    *,
    windows: Windows | None = None,
    num_draws: int = 200,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What :func:`summarise_protocols` says of what :func:`predict_protocols` predicts; their arguments, result and
    errors.
    """
    predictions = predict_protocols(network, files, windows=windows, batch_size=batch_size, progress=progress)
    return summarise_protocols(predictions, num_draws=num_draws, seed=seed)


def read(file: str | os.PathLike[str]) -> Simulations:
    """Simulations of a converted file or of a pickle."""
    return open_simulations(file) if Path(file).suffix in SUFFIXES.values() else read_simulation_file(file)


def _summary(prediction: Prediction, num_draws: int, seed: int) -> dict[str, Any]:
    values: Figures = figures(prediction)
    return {
        "figures": values,
        "undefined": undefined(values, prediction),
        "intervals": intervals(prediction, num_draws=num_draws, seed=seed) if num_draws else None,
        "simulations": len(prediction.spikes),
        "spikes": int(prediction.spikes.sum()),
    }
