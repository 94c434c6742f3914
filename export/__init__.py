"""Neurons for other runtimes; needs the extra "onnx"."""

from elm_neuro.export.onnx import ExportError, Step, VerifyReport, lower_step, to_onnx, verify

__all__ = ["ExportError", "Step", "VerifyReport", "lower_step", "to_onnx", "verify"]
