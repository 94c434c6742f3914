"""Networks with our layers as NIR graphs and files, and back: :func:`write` and :func:`read`.

NIR, the neuromorphic intermediate representation, describes a network by 18 primitives. None of them is a pointwise
function but a threshold, so that an ELM neuron, with a ReLU and a tanh between its linear parts, is none that they can
be put together to. Here a layer is therefore one node of its own, :class:`ElmNeuroLayer`, which holds all that it is:
what is read back gives the same numbers, bit by bit. Only this package reads it. :func:`to_nir` with ``portable=True``
writes NIR's own primitives where they say exactly the same, which is so for a LIF, and else refuses and says why.

- ``nir.read`` knows its own nodes alone: :func:`register` teaches it ours, :func:`unregister` undoes it; importing this
  module changes nothing. :func:`read` needs neither, names what it does not know, and is safe with a stranger's file.
- nirtorch takes our maps: ``torch_to_nir(net, module_map(), default_dict={}, stateful_modules=set(module_map()))`` and
  ``nir_to_torch(graph, node_map())``. They keep the bias of a ``nir.Affine``, which nirtorch 2.6 loses.
- What is made of a graph is nirtorch's module, ``y, state = net(x, state)``, x (batch, time, channel): hand the state
  on to go on.

>>> from elm_neuro import ELM, SpikingELM
>>> net = torch.nn.Sequential(SpikingELM(ELM(3, 2, num_memory=4)), torch.nn.Linear(2, 1))
>>> graph = to_nir(net)
>>> sorted(type(node).__name__ for node in graph.nodes.values())
['Affine', 'ElmNeuroLayer', 'Input', 'Output']
>>> y, state = from_nir(graph)(torch.zeros(8, 50, 3))
>>> y.shape
torch.Size([8, 50, 1])
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elm_neuro import pretrained
from elm_neuro.adapters._nir_file import check_names, read_graph
from elm_neuro.adapters._nir_node import ElmNeuroLayer, affine, affine_node, lif, nir, nirtorch, portable_node
from elm_neuro.files import write_whole
from elm_neuro.nn import is_layer

__all__ = [
    "ElmNeuroLayer",
    "from_nir",
    "module_map",
    "node_map",
    "read",
    "register",
    "to_nir",
    "unregister",
    "write",
]

ModuleMap = dict[type[nn.Module], Callable[[Any], Any]]
NodeMap = dict[type[Any], Callable[[Any], nn.Module]]


def to_nir(
    module: nn.Module, *, portable: bool = False, modules: Mapping[Any, Callable[[Any], Any]] | None = None
) -> Any:
    """A network, or one layer, as a NIR graph.

    Args:
        module: a layer that keeps the protocol :class:`elm_neuro.nn.Layer` and can be saved, an ``nn.Sequential`` of
            such layers and Linears, or any module that calls them: ``torch.fx`` follows it, and takes from what a layer
            returns the output alone.
        portable: in NIR's own primitives, which other libraries read.
        modules: nodes for further classes of modules, by class.

    Raises:
        TypeError: a module is of a class that has no node.
        ValueError: `portable` and NIR has no primitives for a layer, or it does more than its weights say; the message
            says what.

    >>> from elm_neuro import ELM
    >>> to_nir(ELM(3, 2), portable=True)
    Traceback (most recent call last):
    ValueError: ELM cannot be written in NIR's own primitives, which have nothing for the functions between linear...
    """
    makers = module_map(portable=portable) | dict(modules or {})
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module, got {type(module).__name__}")
    _check_parts(module, makers)
    if type(module) in makers:
        node = makers[type(module)](module)
        return node if isinstance(node, nir.NIRGraph) else nir.NIRGraph.from_list(node)
    return nirtorch.torch_to_nir(module, makers, default_dict={}, stateful_modules=set(makers))


def from_nir(
    graph: Any,
    *,
    delta_t: float = 1.0,
    nodes: Mapping[Any, Callable[[Any], nn.Module]] | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The network of a NIR graph: nirtorch's module, ``y, state = net(x, state=None)``.

    Args:
        graph: as of :func:`to_nir`, :func:`read` or ``nir.read``.
        delta_t: time step in ms of what has none of its own, a ``nir.LIF``.
        nodes: modules for further classes of nodes, or in the place of ours, by class.
        device: where to put it; the CPU by default.
        dtype: floating type to convert it to; as it is in the graph by default.

    Raises:
        ValueError: a node is of a class that has no module, or its contents do not fit each other; the message names
            it.
    """
    makers = {**nirtorch.nir_interpreter.DEFAULT_MAP, **node_map(delta_t=delta_t), **(nodes or {})}
    if not isinstance(graph, nir.NIRGraph):
        graph = nir.NIRGraph.from_list(_checked_node(graph))
    check_names(graph)
    try:
        with torch.device("cpu"):
            made = _made(graph, makers)
            ready = dict.fromkeys(makers, lambda node: made[id(node)])
            network: nn.Module = nirtorch.nir_to_torch(graph, ready, device=device, dtype=dtype)  # float32 by default
    except KeyError as error:  # of torch.nn.ModuleDict, for names such as "keys"
        raise ValueError(f"names of nodes must be none of an nn.ModuleDict: {error.args[0]}") from error
    return network


def write(path: str | os.PathLike[str], module: Any, *, portable: bool = False) -> None:
    """Write a network, or a graph of NIR, into a file, whole or not at all.

    Args:
        path: of the file.
        module: as for :func:`to_nir`, or a graph.
        portable: as for :func:`to_nir`.
    """
    graph = to_nir(module, portable=portable) if isinstance(module, nn.Module) else _checked_node(module)
    image = io.BytesIO()
    nir.write(image, graph)
    write_whole({Path(path): image.getvalue()})


def read(path: str | os.PathLike[str]) -> Any:
    """The graph in a NIR file, whoever wrote it; :func:`from_nir` makes a network of it.

    No file can run code, lead outside of itself, or ask for more memory than 16 MiB and 64 times its size.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds a node that is neither NIR's nor ours; the message names it.
    """
    return read_graph(Path(path))


def register() -> None:
    """Make :class:`ElmNeuroLayer` known to ``nir.read`` in this process.

    >>> from elm_neuro import ELM
    >>> register()
    >>> nir.dict2NIRNode(ElmNeuroLayer.of(ELM(3, 1, num_memory=2)).to_dict()).kind
    'ELM'
    >>> unregister()
    """
    if ElmNeuroLayer.__name__ not in _names():
        _names().append(ElmNeuroLayer.__name__)
    setattr(nir.ir, ElmNeuroLayer.__name__, ElmNeuroLayer)


def unregister() -> None:
    """Undo :func:`register`."""
    if ElmNeuroLayer.__name__ in _names():
        _names().remove(ElmNeuroLayer.__name__)
        delattr(nir.ir, ElmNeuroLayer.__name__)


def module_map(*, portable: bool = False) -> ModuleMap:
    """Our node for each class of layers that can be saved, and for Linears, as ``nirtorch.torch_to_nir`` takes them.

    >>> from elm_neuro import SpikingELM
    >>> SpikingELM in module_map(), torch.nn.Tanh in module_map()
    (True, False)
    """
    kinds = [pretrained.kind_of(name).module_class for name in pretrained.kinds()]
    make = portable_node if portable else ElmNeuroLayer.of
    layers: ModuleMap = {kind: make for kind in kinds if hasattr(kind, "state_type") and hasattr(kind, "step")}
    return {**layers, nn.Linear: affine_node}


def node_map(*, delta_t: float = 1.0) -> NodeMap:
    """Our module for each class of nodes that we know, as ``nirtorch.nir_to_torch`` takes them.

    Args:
        delta_t: time step in ms of a ``nir.LIF``.
    """
    return {
        ElmNeuroLayer: lambda node: node.layer(),
        nir.Affine: affine,
        nir.Linear: affine,
        nir.LIF: lambda node: lif(node, delta_t),
    }


def _names() -> list[str]:
    """The names that ``nir.read`` knows."""
    names: list[str] = getattr(nir.ir, "__all_ir")  # inside a class it would be another name
    return names


def _check_parts(module: nn.Module, makers: Mapping[Any, Callable[[Any], Any]]) -> None:
    """Refuse a layer without a node, and the faces of other hosts, before nirtorch looks into them."""
    kind = type(module).__name__
    if type(module) in makers:
        return
    if is_layer(module):
        raise TypeError(f"{kind} has no node: make it known to elm_neuro.pretrained.register")
    if is_layer(getattr(module, "core", None)):
        raise TypeError(f"{kind} is the face of another library: write its .core")
    holders = nn.Sequential | nn.ModuleList | nn.ModuleDict
    if type(module).__module__.startswith("torch.nn.") and not isinstance(module, holders):
        raise _no_node(kind)  # torch.fx does not look into torch's own
    for part in module.children():
        _check_parts(part, makers)


def _checked_node(graph: Any) -> Any:
    if not isinstance(graph, nir.NIRNode):
        raise TypeError(f"graph must be a NIR graph or node, got {type(graph).__name__}")
    return graph


def _no_node(kind: str) -> TypeError:
    return TypeError(f"{kind} has no node: give one by modules={{{kind}: ...}}")


def _made(graph: Any, makers: Mapping[Any, Callable[[Any], nn.Module]], inside: str = "") -> dict[int, nn.Module]:
    """The module of every node, by the node's id."""
    made: dict[int, nn.Module] = {}
    for name, node in graph.nodes.items():
        kind = type(node).__name__
        if isinstance(node, nir.NIRGraph):
            made |= _made(node, makers, f"{inside}{name}.")
        elif type(node) not in makers:
            raise ValueError(
                f"node {inside + name!r} must be of a class that has a module, got {kind}: "
                f"give one by nodes={{nir.{kind}: ...}}"
            )
        else:
            try:
                made[id(node)] = makers[type(node)](node)
            except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(f"node {inside + name!r} of class {kind} must make a module: {error}") from error
    return made
