"""What defines the whole published network apart from its weights, and its state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from elm_neuro.nn._config import check_fields, check_flag, check_size
from elm_neuro.nn._network_config import ELMNetworkConfig

READOUT_MEMORY = 3  # units of a readout neuron, as published


class ELMNetworkClassifierState(NamedTuple):
    """The states of both layers, :class:`NetworkState`, one after the other; zeros at the start."""

    hidden_a: Tensor  # (batch, num_neuron)
    hidden_b: Tensor  # (batch, num_neuron, num_branch)
    hidden_m: Tensor  # (batch, num_neuron, num_memory)
    hidden_r: Tensor  # (batch, num_neuron)
    readout_a: Tensor  # (batch, output_size)
    readout_b: Tensor  # (batch, output_size, num_branch)
    readout_m: Tensor  # (batch, output_size, 3)
    readout_r: Tensor  # (batch, output_size)


@dataclass(frozen=True, kw_only=True)
class ELMNetworkClassifierConfig:
    """The hidden layer, the number of classes, and whether a linear map follows; the readout layer follows from these.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: `output_size` is below 1.
    """

    hidden: ELMNetworkConfig
    output_size: int
    linear: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.hidden, ELMNetworkConfig):
            raise TypeError(f"hidden must be an ELMNetworkConfig, got {type(self.hidden).__name__}")
        check_size("output_size", self.output_size)
        check_flag("linear", self.linear)

    @property
    def readout(self) -> ELMNetworkConfig:
        """The readout layer: neurons of the hidden layer's kind with 3 memory units and a linear MLP, without a high
        pass, that read the hidden layer alone and give what they hold. Dropout is the hidden layer's.
        """
        return replace(
            self.hidden,
            input_size=self.hidden.output_size,
            output_size=self.output_size,
            num_memory=READOUT_MEMORY,
            num_mlp_layers=0,
            mlp_hidden_size=None,
            tau_high_pass=None,
            output="identity",
            wiring="random",
            recurrent_fraction=0.0,
            binarize=False,
        )

    def __setstate__(self, values: dict[str, Any]) -> None:
        """From a pickle, which may be a stranger's: checked as when it is made."""
        vars(self).update(values)
        self.__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and objects, as JSON holds them."""
        return {"hidden": self.hidden.to_dict(), "output_size": self.output_size, "linear": self.linear}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ELMNetworkClassifierConfig:
        """Inverse of :meth:`to_dict`.

        >>> config = ELMNetworkClassifierConfig(hidden=ELMNetworkConfig(input_size=20, output_size=5), output_size=4)
        >>> ELMNetworkClassifierConfig.from_dict(config.to_dict()) == config
        True
        """
        check_fields(cls, values)
        if not isinstance(values["hidden"], dict):
            raise TypeError(f"hidden must be an object, got {type(values['hidden']).__name__}")
        return cls(**values | {"hidden": ELMNetworkConfig.from_dict(values["hidden"])})

    def check_size(self, num_tensors: int) -> None:
        """Refuse a made-up configuration that asks for more layers than a file has tensors."""
        self.hidden.check_size(num_tensors)
