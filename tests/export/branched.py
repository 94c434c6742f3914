"""A small neuron, its models, and the runtime as a user without elm_neuro loads it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from elm_neuro import BranchELM

SOURCE = Path(__file__).parents[2] / "export" / "onnx_neuron.py"
FORMS = ["step", "sequence", "unrolled"]


def loaded() -> Any:
    """The class of the file at its path."""
    spec = importlib.util.spec_from_file_location("onnx_neuron", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.OnnxNeuron


def neuron() -> BranchELM:
    torch.manual_seed(0)
    return BranchELM(6, 2, num_memory=3, num_branch=3, num_synapse_per_branch=4)


def written(path: Path, form: str, **options: Any) -> Path:
    from elm_neuro import export

    export.to_onnx(neuron(), path, form=form, num_steps=10 if form == "unrolled" else None, verify=False, **options)
    return path
