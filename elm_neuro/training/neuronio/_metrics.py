"""How well spikes and voltage of NeuronIO are predicted: the published figures, and intervals over simulations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import auc, roc_curve

Floats: TypeAlias = NDArray[np.floating]
Figures: TypeAlias = dict[str, float | None]

FALSE_POSITIVES = (0.0025, 0.0100)  # rates at which the authors look at the curve
MAX_SPIKES = 24  # simulations with more spikes are left out: Beniaguev et al., ``evaluate_CNN_test.py``
SKIP_MS = 500  # and the start of each
FPR_POINTS = 20_000
SPIKE_KEYS = (*(f"{kind} @ {rate:.4f} FP" for rate in FALSE_POSITIVES for kind in ("TP", "AUC")), "AUC")
SOMA_KEYS = ("soma_explained_variance_percent", "soma_RMSE", "soma_MAE")


class Prediction(NamedTuple):
    """Truth and prediction of some simulations of one length."""

    spikes: NDArray[np.bool_]  # (simulation, ms)
    probability: Floats  # (simulation, ms), of a spike; anything that rises with it will do
    soma: Floats  # (simulation, ms), mV above -67.7 mV, spikes cut off at -55 mV
    soma_hat: Floats  # (simulation, ms), the same, predicted


def aligned(soma: Floats, soma_hat: Floats) -> Floats:
    """The prediction shifted and stretched to mean and standard deviation of the truth, over all simulations of a file
    and all their ms.

    Published figures come from predictions aligned like this, which knows the truth: RMSE, MAE and explained variance
    of what a network really says are others. A constant prediction becomes the mean.
    """
    spread = float(soma_hat.std())
    scale = float(soma.std()) / spread if spread > 0 else 0.0
    return np.asarray((soma_hat - soma_hat.mean()) * scale + soma.mean())


def chosen(prediction: Prediction, *, max_spikes: int | None = MAX_SPIKES, skip_ms: int = SKIP_MS) -> Prediction:
    """What the published figures are made of: simulations with at most `max_spikes` steps with a spike over their whole
    length, without their first `skip_ms`.
    """
    keep = np.ones(len(prediction.spikes), bool) if max_spikes is None else prediction.spikes.sum(1) <= max_spikes
    return Prediction(*(part[keep][:, skip_ms:] for part in prediction))


def figures(prediction: Prediction) -> Figures:
    """TP and AUC at low rates of false positives, AUC, explained variance in percent, RMSE and MAE in mV.

    TP @ x FP is the rate of true positives where the rate of false ones is nearest to x, but never before the curve's
    second point; AUC @ x FP the mean of the rate of true positives over rates of false ones below x, of 20,000 evenly
    spaced ones.

    Source: ``extract_core_results`` in upstream's ``neuronio_eval_utils.py`` at 52e68a6, after Beniaguev et al. 2021.

    Returns:
        The figures by the authors' names; None where they are undefined: those of the spikes without a spike or with
        nothing else, those of the voltage without a step, its explained variance where the truth is constant.
    """
    truth, score = prediction.spikes.ravel(), prediction.probability.ravel()
    soma, error = (
        prediction.soma.ravel().astype(np.float64),
        (prediction.soma - prediction.soma_hat).ravel().astype(np.float64),
    )
    values: Figures = dict.fromkeys((*SPIKE_KEYS, *SOMA_KEYS))
    if truth.any() and not truth.all():
        fpr, tpr, _ = roc_curve(truth, score)
        grid = np.linspace(0, 1, FPR_POINTS)
        for rate in FALSE_POSITIVES:
            values[f"TP @ {rate:.4f} FP"] = float(tpr[max(1, int(np.argmin(np.abs(fpr - rate))))])
            end = min(max(1, int(np.argmin(np.abs(grid - rate)))), FPR_POINTS - 1)
            values[f"AUC @ {rate:.4f} FP"] = float(np.interp(grid[:end], fpr, tpr).mean())
        values["AUC"] = float(auc(fpr, tpr))
    if soma.size:
        values["soma_RMSE"], values["soma_MAE"] = float(np.sqrt(np.mean(error**2))), float(np.mean(np.abs(error)))
        if soma.var() > 0:
            values["soma_explained_variance_percent"] = float(100.0 * (1.0 - error.var() / soma.var()))
    return values


def intervals(
    prediction: Prediction, *, num_draws: int = 200, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap over simulations: they are drawn with replacement, and the figures made anew, `num_draws`
    times.

    Steps of one simulation depend on each other, so simulations are drawn, not steps.

    Returns:
        Lower and upper end by the names of :func:`figures`; None where fewer than two simulations are there, or a
        figure is undefined in more than half of the draws (those are left out otherwise).

    Raises:
        ValueError: `num_draws` is below 1 or `level` not within (0, 1).
    """
    if num_draws < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"num_draws must be at least 1 and level in (0, 1), got {num_draws} and {level}")
    num = len(prediction.spikes)
    if num < 2:
        return dict.fromkeys((*SPIKE_KEYS, *SOMA_KEYS))
    rng = np.random.default_rng(seed)
    drawn = [figures(Prediction(*(part[own] for part in prediction))) for own in rng.integers(0, num, (num_draws, num))]
    ends: dict[str, tuple[float, float] | None] = {}
    for key in (*SPIKE_KEYS, *SOMA_KEYS):
        values = [value for one in drawn if (value := one[key]) is not None]
        low, high = (
            np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) if 2 * len(values) > num_draws else (np.nan, np.nan)
        )
        ends[key] = None if np.isnan(low) else (float(low), float(high))
    return ends


def pooled(predictions: Sequence[Prediction]) -> Prediction:
    """Simulations of several files as one.

    Raises:
        ValueError: there are none, or they differ in length.
    """
    lengths = sorted({one.spikes.shape[1] for one in predictions})
    if len(lengths) != 1:
        raise ValueError(f"simulations must be as long as each other to be pooled, got lengths of {lengths} ms")
    return Prediction(*(np.concatenate(parts) for parts in zip(*predictions, strict=True)))


def undefined(values: Mapping[str, float | None], prediction: Prediction) -> str:
    """Why figures are undefined; empty where none is."""
    if not prediction.spikes.size:
        return f"no simulation is left: all have more than {MAX_SPIKES} spikes"
    if values["AUC"] is None:
        return (
            "there is no output spike to predict" if not prediction.spikes.any() else "every step has an output spike"
        )
    return "the voltage is constant" if any(value is None for value in values.values()) else ""
