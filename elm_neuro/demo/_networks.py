"""Data and networks of the demonstration: LIF neurons read by an ELM neuron, and LIF neurons alone in as many
parameters.
"""

from __future__ import annotations

from typing import Any, cast

import lightning

from elm_neuro.datasets import SpokenDigits
from elm_neuro.demo._settings import CONTROL, MIXED, DemoSettings, Tuned
from elm_neuro.nn import ELM, LIF
from elm_neuro.training import (
    Binning,
    LIFNetwork,
    SHDAddingDataModule,
    SHDDataModule,
    SpikeClassification,
    SpikingNetwork,
    SpokenDigitsDataModule,
    num_parameters,
)

TAU_S = 10.0  # ms


def data_module(
    settings: DemoSettings, *, bin_ms: float, seed: int, valid: float | list[int] | None = None
) -> SHDDataModule:
    """The data of a run, in steps of `bin_ms`; `valid` replaces the settings' validation samples."""
    binning = Binning(bin_ms=bin_ms, pool=settings.pool, scale=settings.scale, output="frames")
    if settings.task == "adding":
        return _pairs(settings, binning)
    options: dict[str, Any] = {
        "valid": settings.valid if valid is None else valid,
        "binning": binning,
        "batch_size": settings.batch_size,
        "seed": seed,
    }
    if settings.train_file is None:
        return SpokenDigitsDataModule(
            num_train=settings.num_train, num_test=settings.num_test, cache_dir=settings.cache_dir, **options
        )
    return SHDDataModule(settings.train_file, settings.test_file, held_out=list(settings.held_out) or None, **options)


def _pairs(settings: DemoSettings, binning: Binning) -> SHDAddingDataModule:
    """The sums of a run: the same lists for every seed."""
    source: str | SpokenDigits = settings.train_file or SpokenDigits("train", settings.num_train, 0, settings.cache_dir)
    target = (
        settings.test_file if settings.train_file else SpokenDigits("test", settings.num_test, 0, settings.cache_dir)
    )
    held_out = list(settings.held_out) or None
    return SHDAddingDataModule(
        source, target, held_out=held_out, num_pairs=settings.num_pairs, binning=binning, batch_size=settings.batch_size
    )


def build(
    name: str, settings: DemoSettings, *, num_channels: int, seed: int, tuned: Tuned | None = None
) -> SpikeClassification:
    """A network with new weights.

    Args:
        name: `MIXED`, or `CONTROL` with as many parameters as the mixed one.
        settings: sizes and time step.
        num_channels: inputs.
        seed: of the weights and of the dropout.
        tuned: in place of the network's entry in `TUNED`.
    """
    lightning.seed_everything(seed, verbose=False)
    tuned = tuned or settings.tuned[name]
    delta_t, tau_v, num_hidden = tuned.bin_ms, settings.tau_v, settings.num_hidden
    num_classes, (tau_m_init, tau_m_bounds) = settings.num_classes, settings.tau_m
    neuron = ELM(
        num_hidden,
        num_classes,
        settings.num_memory,
        delta_t=delta_t,
        tau_s=TAU_S,
        tau_m_init=tau_m_init,
        tau_m_bounds=tau_m_bounds,
    )
    hidden = LIF(num_channels, num_hidden, delta_t=delta_t, tau_v=tau_v)
    network: SpikingNetwork | LIFNetwork = SpikingNetwork(hidden, neuron, readout=settings.readout)
    if name == CONTROL:
        count = num_parameters(network)
        network = LIFNetwork.matching(
            count, input_size=num_channels, output_size=num_classes, delta_t=delta_t, tau_v=tau_v
        )
    return SpikeClassification(
        network,
        num_classes=num_classes,
        learning_rate=tuned.learning_rate,
        input_dropout=tuned.input_dropout,
        seed=seed,
    )


def mixed_network(module: SpikeClassification) -> SpikingNetwork:
    """The network of a module that :func:`build` made under the name `MIXED`.

    Raises:
        TypeError: it is the control.
    """
    if not isinstance(module.network, SpikingNetwork):
        raise TypeError(f"module must hold the network {MIXED!r}, got {type(module.network).__name__}")
    return module.network


def elm_neuron(module: SpikeClassification) -> ELM:
    """The ELM neuron in that network."""
    return cast(ELM, mixed_network(module).neuron)
