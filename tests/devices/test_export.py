"""Modules on every device as ONNX models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.layers import LAYERS

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)


@pytest.mark.parametrize("options", [{"form": "step"}, {"form": "sequence", "input_dtype": "uint8"}])
@pytest.mark.parametrize("name", ["BranchELM", "SpikingELM", "ALIF"])
def test_a_module_is_exported_and_verified_where_it_lies(
    name: str, options: dict[str, Any], tmp_path: Path, device: torch.device
) -> None:
    torch.manual_seed(0)
    module = LAYERS[name]().to(device)
    report = export.to_onnx(module, tmp_path / "net.onnx", **options)
    assert report.num_steps > 0 and next(module.parameters()).device.type == device.type
    assert export.verify(tmp_path / "net.onnx", module.cpu(), num_steps=8).errors.keys() == report.errors.keys()
