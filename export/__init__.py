"""Neurons for other runtimes; needs the extra "onnx"."""

from elm_neuro.export import _hosts  # noqa: F401  # makes their layers known
from elm_neuro.export._graph import Graph, Value
from elm_neuro.export._lowering import Lowering, Trace, register
from elm_neuro.export.onnx import ExportError, VerifyReport, to_onnx, verify

__all__ = ["ExportError", "Graph", "Lowering", "Trace", "Value", "VerifyReport", "register", "to_onnx", "verify"]
