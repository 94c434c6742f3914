"""A layer of elm_neuro as a node of NIR, and back: its kind, configuration and tensors, as :mod:`elm_neuro.pretrained`
has them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from elm_neuro import pretrained
from elm_neuro.adapters._face import check_version
from elm_neuro.files import with_each_name_once
from elm_neuro.nn import ALIF, LIF, ALIFCell, ELMConfig, check_layer, is_layer, output_shape
from elm_neuro.nn._alif_config import BETA_RANGE
from elm_neuro.nn._hanging import reason_to_call
from elm_neuro.pretrained._tensors import FLOATS

try:
    import nir
    import nirtorch
except ImportError as error:
    raise ImportError('elm_neuro.adapters.nir needs nir and nirtorch: pip install "elm-neuro[nir]"') from error

__all__ = ["ElmNeuroLayer", "affine", "affine_node", "lif", "nir", "nirtorch", "portable_node"]

OLDEST = {"nir": "1.0.8", "nirtorch": "2.6"}
for _package, _oldest in OLDEST.items():
    check_version("nir", metadata.version(_package), _oldest, package=_package)

FIELDS = {"kind": str, "config": str, "dtype": str, "weights": dict}


@dataclass(eq=False)
class ElmNeuroLayer(nir.NIRNode):  # type: ignore[misc]  # nir has no types
    """A layer of elm_neuro with all that it is: what NIR's own primitives cannot say.

    Args:
        kind: the class, by the name that :func:`elm_neuro.pretrained.register` knows it under.
        config: its configuration, as JSON.
        dtype: of its floating point tensors.
        weights: its tensors by name; those in bfloat16 as float32, which holds them exactly.

    Raises:
        ValueError: there is no such layer, or the tensors are not its own; the message says which.

    >>> node = ElmNeuroLayer.of(LIF(3, 2))
    >>> node.kind, node.input_type, node.output_type
    ('LIF', {'input': array([3])}, {'output': array([2])})
    >>> type(node.layer()).__name__
    'LIF'
    """

    kind: str
    config: str
    dtype: str
    weights: dict[str, Any]

    def __post_init__(self) -> None:
        layer = self.layer()
        self.input_type = {"input": np.array([layer.input_size])}
        self.output_type = {"output": np.array(output_shape(layer))}

    @classmethod
    def of(cls, layer: nn.Module) -> Self:
        """The node of a layer.

        Raises:
            TypeError: it is none that can be saved.
        """
        check_layer(layer, "layer")
        description = pretrained.describe(layer, "layer")
        tensors = {name: tensor.detach().cpu() for name, tensor in pretrained.weights_of(layer).items()}
        dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
        if len(dtypes) != 1:
            raise ValueError(f"layer must have parameters of one dtype, got {sorted(map(str, dtypes))}")
        if wrong := [name for name in tensors if "/" in name]:
            raise ValueError(f"names of tensors must have no slash, which divides groups of a file, got {wrong[0]!r}")
        return cls(
            kind=description["class"],
            config=json.dumps(description["config"]),
            dtype=str(dtypes.pop()).removeprefix("torch."),
            weights={name: _array(tensor) for name, tensor in tensors.items()},
        )

    @classmethod
    def from_dict(cls, kwargs: dict[str, Any]) -> Self:
        """The node of what :meth:`to_dict` gave, or a file."""
        values = {name: value for name, value in kwargs.items() if name not in ("type", "metadata")}
        for name, kind in FIELDS.items():
            if not isinstance(values.get(name), kind):
                got = type(values[name]).__name__ if name in values else "nothing"
                raise ValueError(f"{name} must be of type {kind.__name__}, got {got}")
        if extra := sorted(set(values) - set(FIELDS)):
            raise ValueError(f"a node must hold {', '.join(FIELDS)}, got also {extra[0]!r:.100}")
        return cls(**values, metadata=kwargs.get("metadata", {}))

    def layer(self) -> Any:
        """A layer of its own weights, which it shares with nobody.

        Raises:
            ValueError: as the class.
        """
        try:
            config = json.loads(self.config, object_pairs_hook=with_each_name_once)
            kind, config = pretrained.described({"class": self.kind, "config": config}, "node")
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"node: {error}") from error
        dtypes = {str(one).removeprefix("torch."): one for one in FLOATS}
        if self.dtype not in dtypes:
            raise ValueError(f"dtype must be one of {list(dtypes)}, got {self.dtype!r:.100}")
        tensors = {name: _tensor(name, value, dtypes[self.dtype]) for name, value in self.weights.items()}
        layer = pretrained.with_tensors(kind, config, tensors, "node")
        if not is_layer(layer):
            raise ValueError(f"kind must be a layer as elm_neuro.nn.Layer describes it, got {self.kind}")
        return layer


def affine(node: Any) -> nn.Linear:
    """The layer of a ``nir.Affine`` or ``nir.Linear``, whose bias nirtorch 2.6 loses.

    Raises:
        ValueError: weight and bias do not fit each other.
    """
    weight, bias = np.asarray(node.weight), getattr(node, "bias", None)
    if weight.ndim != 2 or weight.dtype.kind != "f":
        raise ValueError(f"weight must be a matrix of floating point numbers, got {weight.dtype} {weight.shape}")
    if bias is not None and (np.shape(bias) != weight.shape[:1] or np.asarray(bias).dtype != weight.dtype):
        raise ValueError(
            f"bias must be {weight.shape[:1]} of {weight.dtype} to fit weight, got {np.asarray(bias).dtype} "
            f"{np.shape(bias)}"
        )
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(torch.tensor(weight, device="cpu"))
    if bias is not None:
        linear.bias = nn.Parameter(torch.tensor(np.asarray(bias), device="cpu"))
    return linear


def affine_node(linear: nn.Linear) -> Any:
    """The node of an ``nn.Linear``, with arrays of its own."""
    weight = _array(linear.weight.detach().cpu())
    return nir.Linear(weight) if linear.bias is None else nir.Affine(weight, _array(linear.bias.detach().cpu()))


def portable_node(layer: Any) -> Any:
    r"""A layer in NIR's own primitives: of ours only a LIF, which ``nir.Affine`` and ``nir.LIF`` say exactly.

    With a current that is constant within each step, the solution of NIR's equation :math:`\tau \dot v = -v + R i` is
    :math:`v_t = \beta v_{t-1} + (1 - \beta) R\, i_t` with :math:`\beta = e^{-\Delta t / \tau}`: our equation
    with :math:`R = 1 / (1 - \beta)`. Times of NIR are seconds.

    Raises:
        ValueError: NIR has no primitives for it, or it does more than its weights say; the message says what.
    """
    name, cell = type(layer).__name__, getattr(layer, "cell", layer)
    if not isinstance(layer, ALIF | ALIFCell):
        if not isinstance(getattr(layer, "core", layer).config, ELMConfig):
            raise ValueError(
                f"{name} cannot be written in NIR's own primitives: of a LIF alone it is known which say the same; "
                "portable=False writes it as a node of its own, which elm_neuro reads"
            )
        lacking = "the functions between linear parts, such as the ReLU and the tanh of an ELM"
    elif (reason := _reason_to_call(layer, cell)) is not None:
        raise ValueError(
            f"{name} cannot be written in NIR's own primitives, which would be its weights alone: {reason}"
        )
    elif layer.config.adaptive:
        lacking = "a threshold that rises with every spike"
    elif layer.config.recurrent:
        lacking = "a connection with a delay of one step that every reader takes for the same"
    elif layer.config.latency_steps:
        lacking = "a time after a spike in which a neuron takes no input"
    else:
        beta = cell.effective_parameters().beta.detach().double().cpu().numpy()
        one = np.ones_like(beta)
        tau = -layer.delta_t / 1000.0 / np.log(beta)
        neurons = nir.LIF(tau=tau, r=1.0 / (1.0 - beta), v_leak=0.0 * one, v_threshold=one, v_reset=0.0 * one)
        return nir.NIRGraph.from_list(affine_node(cell), neurons)
    raise ValueError(
        f"{name} cannot be written in NIR's own primitives, which have nothing for {lacking}; "
        "portable=False writes it as a node of its own, which elm_neuro reads"
    )


def _reason_to_call(layer: ALIF | ALIFCell, cell: Any) -> str | None:
    """Why the weights of a layer of LIF neurons do not say all that it does."""
    if (reason := reason_to_call(layer, ALIF.forward, ALIFCell.forward)) is not None:
        return reason
    return cell.reason_to_call() if isinstance(cell, ALIFCell) else f"cell: {type(cell).__name__} is another's"


def lif(node: Any, delta_t: float) -> LIF:
    """The layer of a ``nir.LIF``, each neuron with an input of its own, in steps of `delta_t` ms.

    Raises:
        ValueError: it has what our LIF has not: a leak or reset to elsewhere than 0.
    """
    tau, r, threshold = (np.asarray(part, np.float64) for part in (node.tau, node.r, node.v_threshold))
    if tau.ndim != 1 or np.any(node.v_leak) or np.any(node.v_reset):
        raise ValueError("a LIF must have one dimension and leak and reset to 0: give a module of your own for it")
    if not (np.isfinite(r).all() and (tau > 0).all() and (threshold > 0).all()):
        raise ValueError("tau and v_threshold of a LIF must be above 0, r a finite number")
    beta = np.exp(-delta_t / 1000.0 / tau)
    if beta.size and not (BETA_RANGE[0] <= beta.min() and beta.max() <= BETA_RANGE[1]):
        low, high = (-delta_t / 1000.0 / math.log(limit) for limit in BETA_RANGE)
        raise ValueError(f"tau must be in [{low:.3g}, {high:.3g}] s at steps of {delta_t} ms, got {tau.min():.3g}")
    layer = LIF(len(tau), len(tau), delta_t=delta_t)
    with torch.no_grad():
        layer.cell.beta.copy_(torch.tensor(beta))
        layer.cell.weight.copy_(torch.diag(torch.tensor(r * (1.0 - beta) / threshold)))
    return layer


def _array(tensor: Tensor) -> NDArray[Any] | np.generic:
    """A copy for a file: bfloat16 is no type of numpy, and HDF5 does not pack a single number."""
    wide = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    array: NDArray[Any] = wide.contiguous().numpy().copy()
    return array if array.ndim else array[()]


def _tensor(name: str, value: object, dtype: torch.dtype) -> Tensor:
    """A tensor of `dtype`, or of the integers that they are."""
    array = np.asarray(value)
    stored = "float32" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")
    native = array.astype(array.dtype.newbyteorder("="), copy=True)
    if native.dtype != stored and native.dtype.kind not in "iub":
        raise ValueError(f"weights must be {stored} or integers, got {name!r:.100} of {array.dtype}")
    tensor = torch.from_numpy(native.reshape(array.shape))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
