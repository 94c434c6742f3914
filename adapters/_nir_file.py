"""NIR files of strangers, by our own reader of HDF5: all is counted before it is read, and unknown nodes are named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from elm_neuro.adapters._nir_node import ElmNeuroLayer, nir
from elm_neuro.datasets.hdf5._file import File
from elm_neuro.datasets.hdf5._types import VariableLength
from elm_neuro.files import open_regular

SMALL, GROWTH = 1 << 24, 64  # bytes that any file may unpack to, and how many times its own size
MOST_OBJECTS, MOST_DEPTH = 20_000, 12  # groups and data sets of a file, and groups inside groups
MOST_NODES, MOST_EDGES = 1_000, 4_000  # nirtorch's time grows with the cube of them
NAME = re.compile(r"[\w.\- ]{1,200}")  # nirtorch writes names into the code that it runs
ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError)
KNOWN = [*getattr(nir.ir, "__all_ir"), ElmNeuroLayer.__name__]


def read_graph(path: Path) -> Any:
    """The graph in a NIR file.

    Raises:
        ValueError: it is damaged or too large, or holds what is none; the message names the file and the node.
    """
    with open_regular(path) as stream:
        try:
            tree = _Tree(File(stream, small=SMALL)).group("node", 0)
            return _graph(tree, "")
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{path}: {error}") from error


def check_names(graph: Any) -> None:
    """Refuse names that would be code in nirtorch's hands, and graphs that it would never be done with.

    Raises:
        ValueError: there is one; the message says which.
    """
    if len(graph.nodes) > MOST_NODES or len(graph.edges) > MOST_EDGES:
        raise ValueError(
            f"a graph must have at most {MOST_NODES} nodes and {MOST_EDGES} edges, got {len(graph.nodes)} and "
            f"{len(graph.edges)}"
        )
    seen: dict[str, str] = {}
    for name, node in graph.nodes.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"names of nodes must be letters, digits and any of '_.- ', got {name!r:.100}")
        other = seen.setdefault(name.replace(".", "_"), name)
        if other != name:
            raise ValueError(f"names of nodes must differ by more than dots, got {other!r} and {name!r}")
        ports = [*(getattr(node, "input_type", None) or {}), *(getattr(node, "output_type", None) or {})]
        if wrong := [port for port in ports if not NAME.fullmatch(str(port))]:
            raise ValueError(f"names of inputs must be letters, digits and any of '_.- ', got {wrong[0]!r:.100}")
        if isinstance(node, nir.NIRGraph):
            check_names(node)


class _Tree:
    """What a file holds, as dictionaries of arrays, numbers and texts."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._objects, self._bytes = 0, 0

    def group(self, path: str, depth: int) -> dict[str, Any]:
        if not self._file.is_group(path):
            raise ValueError(f"/{path} must be a group, as in a file of nir.write")
        if depth > MOST_DEPTH:
            raise ValueError(f"groups must be at most {MOST_DEPTH} deep, got /{path:.200}")
        values: dict[str, Any] = {}
        for name in self._file.keys(path):
            self._objects += 1
            if self._objects > MOST_OBJECTS:
                raise ValueError(f"a file must hold at most {MOST_OBJECTS} groups and arrays, got more")
            inner = f"{path}/{name}"
            values[name] = self.group(inner, depth + 1) if self._file.is_group(inner) else self._values(inner)
        return values

    def _values(self, path: str) -> Any:
        dataset = self._file.get(path)
        if dataset is None:
            raise ValueError(f"/{path} must be an array or a text, got nothing")
        self._bytes += dataset.num_bytes
        most = max(SMALL, GROWTH * self._file.size)
        if self._bytes > most:
            raise ValueError(f"a file must unpack to at most {most} bytes, got more at /{path}")
        if not isinstance(dataset.dtype, VariableLength):
            values = dataset.values()
            return values if values.ndim else values[()]
        if not dataset.dtype.is_text:
            raise ValueError(f"/{path} must hold numbers or texts, got rows of variable length")
        flat, lengths = dataset.rows()
        raw, ends = flat.tobytes(), np.cumsum(lengths).tolist()
        texts = [raw[end - length : end].decode() for length, end in zip(lengths.tolist(), ends, strict=True)]
        return np.array(texts, dtype=object).reshape(dataset.shape) if dataset.shape else texts[0]


def _graph(values: dict[str, Any], name: str) -> Any:
    """A graph of a dictionary, its nodes and graphs inside it."""
    where = f"node {name!r:.100}" if name else "the graph"
    if values.get("type") != "NIRGraph":
        return _node(values, where)
    nodes, edges = values.get("nodes", {}), values.get("edges")
    if not isinstance(nodes, dict) or not all(isinstance(node, dict) for node in nodes.values()):
        raise ValueError(f"nodes of {where} must be groups")
    if not isinstance(edges, np.ndarray) or (edges.size and (edges.ndim != 2 or edges.shape[1] != 2)):
        raise ValueError(f"edges of {where} must be pairs of names")
    pairs = [(str(before), str(after)) for before, after in edges.reshape(-1, 2).tolist()]
    if len(nodes) > MOST_NODES or len(pairs) > MOST_EDGES:
        raise ValueError(
            f"{where} must have at most {MOST_NODES} nodes and {MOST_EDGES} edges, got {len(nodes)} and {len(pairs)}"
        )
    made = {inner: _graph(node, f"{name}.{inner}" if name else inner) for inner, node in nodes.items()}
    metadata = values.get("metadata", {})
    with _Named(where):
        graph = nir.NIRGraph(made, pairs, metadata if isinstance(metadata, dict) else {})
    check_names(graph)
    return graph


def _node(values: dict[str, Any], where: str) -> Any:
    kind = values.get("type")
    if not isinstance(kind, str) or kind not in KNOWN:
        raise ValueError(f"{where} must be one of {', '.join(KNOWN)}, got {kind!r:.100}")
    with _Named(where):
        return ElmNeuroLayer.from_dict(values) if kind == ElmNeuroLayer.__name__ else nir.dict2NIRNode(values)


class _Named:
    """Says of which node an error is: nir itself asserts, and reads what may not be there."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ERRORS):
            said = str(error) or "its fields do not fit each other"
            raise ValueError(f"{self._where} must be what its type says: {said:.500}") from error
