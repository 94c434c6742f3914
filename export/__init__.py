"""Neurons for other runtimes; needs the extra "onnx"."""

try:
    import onnx  # noqa: F401  # named here where it is missing
    import onnxruntime  # noqa: F401
except ImportError as error:
    raise ImportError(f'elm_neuro.export needs {error.name or "onnx"}: pip install "elm-neuro[onnx]"') from error

from elm_neuro.export import lowerings  # noqa: F401  # makes its layers known
from elm_neuro.export._graph import Graph
from elm_neuro.export._lowering import Lowering, Trace, register
from elm_neuro.export._nodes import ExportError, Value
from elm_neuro.export._verify import VerifyReport
from elm_neuro.export.onnx import to_onnx, verify

__all__ = ["ExportError", "Graph", "Lowering", "Trace", "Value", "VerifyReport", "register", "to_onnx", "verify"]
