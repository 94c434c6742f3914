"""What a recurrent layer of ELM neurons owns: wiring, weights and time constants, and what one step makes of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from elm_neuro.functional import NetworkParams, NetworkState, Surrogate, decay, memory_gain
from elm_neuro.functional._timescales import bounded_tau, proto_tau, spaced_tau
from elm_neuro.functional._wiring import WIRINGS, Wiring, check_wiring, small_world_wiring
from elm_neuro.nn._cell import Affine
from elm_neuro.nn._checks import check_batch, checked_state
from elm_neuro.nn._config import check_generator
from elm_neuro.nn._hanging import is_untouched, reason_to_call, tensor_of
from elm_neuro.nn._layer import Configured
from elm_neuro.nn._meaning import Meaning
from elm_neuro.nn._narrow import state_dtype, wide
from elm_neuro.nn._network_config import ELMNetworkConfig
from elm_neuro.nn._routing import NAME, Routed


class NetworkNeurons(Meaning, Routed, Configured, nn.Module):
    """The parameters of :class:`elm_neuro.nn.ELMNetwork`, and its state.

    Args:
        config: sizes, time constants and switches.
        wiring: a name, an index or a function.
        generator: source of the random wiring and initial weights.
    """

    surrogate: Surrogate
    without_decay = ("_proto_tau_m", "bias")  # time constants and thresholds

    def __init__(
        self, config: ELMNetworkConfig, wiring: str | Tensor | Wiring, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self._config, self.surrogate = config, config.surrogate
        self.hold_routing(self._wired(wiring, generator))
        self._register_neurons(generator)

    def _wired(self, wiring: str | Tensor | Wiring, generator: torch.Generator | None) -> Tensor:
        """The sources of all synapses, (num_neuron, num_branch, num_synapse_per_branch)."""
        config, shape = self._config, self._config.index_shape
        if torch.get_default_device().type == "meta":  # a place for the index of a file
            return torch.empty(shape, dtype=torch.int64)
        if isinstance(wiring, Tensor):
            return check_wiring(wiring, config.input_size, shape)
        check_generator(generator)
        if not (isinstance(wiring, str) or callable(wiring)):
            raise TypeError(f"wiring must be a name, an index tensor or a function, got {type(wiring).__name__}")
        if wiring == "index":
            raise ValueError(f'wiring must be an index tensor of shape {shape}, got only its name, "index"')
        options: dict[str, Any] = {"recurrent_fraction": config.fraction, "generator": generator}
        if not isinstance(wiring, str):
            return check_wiring(wiring(config.input_size, shape[0], shape[1:], **options), config.input_size, shape)
        draw = WIRINGS[wiring]
        if draw is small_world_wiring:
            options["rewiring"] = config.rewiring
        return draw(config.input_size, shape[0], shape[1:], **options)

    def _register_neurons(self, generator: torch.Generator | None) -> None:
        config, num_neuron = self._config, self._config.output_size

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            bound = 1.0 / math.sqrt(fan_in)
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))

        self.w_s = uniform(*config.index_shape, fan_in=config.num_synapse_per_branch)
        widths = [config.num_branch + config.num_memory, *[config.hidden_size] * config.num_mlp_layers]
        sizes = itertools.pairwise([*widths, config.num_memory])
        self.mlp = nn.ModuleList(Affine(*pair, num_neuron, generator) for pair in sizes)
        self.w_y = uniform(num_neuron, config.num_memory, fan_in=config.num_memory)
        self.bias = nn.Parameter(torch.zeros(num_neuron))
        tau_m = spaced_tau(config.num_memory, config.tau_m_init, config.tau_m_spacing)
        proto = proto_tau(tau_m, config.bounds, dtype=torch.get_default_dtype()).repeat(num_neuron, 1)
        self._proto_tau_m: Tensor
        if config.learn_tau_m:
            self.register_parameter("_proto_tau_m", nn.Parameter(proto))
        else:
            self.register_buffer("_proto_tau_m", proto)

    @property
    def config(self) -> ELMNetworkConfig:
        """What was constructed, with the surrogate that is set now."""
        config = self._config
        return config if config.surrogate is self.surrogate else replace(config, surrogate=self.surrogate)

    @property
    def emits_spikes(self) -> bool:
        """Whether the activity is spikes."""
        return self._config.output == "spike"

    @property
    def wiring(self) -> Tensor:
        """Source of each synapse, (output_size, num_branch, num_synapse_per_branch): an input, or input_size +
        neuron.
        """
        index: Tensor = self.settled_routing()
        return index

    @property
    def tau_m(self) -> Tensor:
        """Memory time constants in ms, (output_size, num_memory)."""
        return bounded_tau(self._proto_tau_m, self._config.bounds)

    def meaning(self) -> dict[str, Any]:
        """What the numbers of the state dict are of."""
        config = self._config
        names = ("variant", "delta_t", "lambda_", "tau_b", "tau_high_pass", "activation", "output", "input_scale")
        return {name: getattr(config, name) for name in names} | {"tau_m_bounds": config.bounds}

    def adopt_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the wiring from a file whose other tensors are to be loaded afterwards.

        Raises:
            ValueError: the index does not fit.
        """
        if (index := tensors.get(NAME)) is not None:
            self.input_to_synapse_indices = check_wiring(index, self._config.input_size, self._config.index_shape, NAME)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As :class:`Meaning`; a RuntimeError also for an index that points outside of the sources."""
        name = prefix + NAME
        index, shape = state_dict.get(name), self._config.index_shape
        if isinstance(index, Tensor) and tuple(index.shape) == shape and not index.is_meta:
            try:
                check_wiring(index, self._config.input_size, shape, name)
            except ValueError as error:
                raise RuntimeError(str(error)) from error
        super()._load_from_state_dict(state_dict, prefix, *args)

    def effective_parameters(self) -> NetworkParams:
        """What one step works with: time constants as decay factors, nothing narrower than float32. Differentiable.
        Pruning and old norms of ``torch.nn.utils`` are brought up to date.

        Raises:
            RuntimeError: the layer does more than its parameters say: it is another's, or has hooks.
        """
        if (reason := self.reason_to_call()) is not None:
            raise RuntimeError(f"the layer is not its parameters alone: {reason}; call it")
        return self.parameters_as_they_are()

    def parameters_as_they_are(self, *, layers: bool = True) -> NetworkParams:
        """:meth:`effective_parameters` without a look at who hangs on the layer; without those of the linear `layers`
        for a step that calls them.
        """
        config = self._config
        tau_m = bounded_tau(wide(self._proto_tau_m), config.bounds)
        kappa_m = decay(tau_m, config.delta_t)
        own: Any = self.mlp if layers else ()
        constant = {
            name: None if tau is None else kappa_m.new_full(shape, math.exp(-config.delta_t / tau))
            for name, tau, shape in (
                ("kappa_b", config.tau_b, config.index_shape[:2]),
                ("kappa_r", config.tau_high_pass, config.index_shape[:1]),
            )
        }
        return NetworkParams(
            index=self.settled_routing().flatten(1),
            w_s=wide(self.w_s).flatten(1),
            mlp_weight=tuple(wide(tensor_of(layer, "weight")) for layer in own),
            mlp_bias=tuple(wide(tensor_of(layer, "bias")) for layer in own),
            w_y=wide(self.w_y),
            bias=wide(self.bias),
            kappa_m=kappa_m,
            gain=memory_gain(tau_m, config.delta_t, lambda_=config.lambda_, variant=config.variant, kappa_m=kappa_m),
            **constant,
        )

    def reason_to_call(self) -> str | None:
        """Why only a call of this layer does what it is meant to do; None where its parameters say all."""
        raise NotImplementedError

    def reason_to_call_inside(self) -> str | None:
        """Why a step must call the modules inside; None where their weights say all."""
        layer: Any
        for name, layer in self.mlp.named_children():
            if is_untouched(layer, Affine):
                continue
            if (reason := reason_to_call(layer, Affine.forward)) is not None:
                return f"mlp.{name}: {reason}"
        return None

    def initial_state(self, batch: int) -> NetworkState:
        """Zeros, in the parameters' dtype but not narrower than float32, on their device."""
        check_batch(batch)
        like = self.bias
        return NetworkState(*(like.new_zeros(shape, dtype=state_dtype(like)) for shape in self.state_shapes(batch)))

    def check_state(self, state: NetworkState, batch: int) -> NetworkState:
        """`state` where it fits this layer and a batch of `batch`.

        Raises:
            TypeError: `state` is not four tensors of the parameters' dtype.
            ValueError: a tensor has the wrong shape or device.
        """
        return checked_state(NetworkState, state, self.state_shapes(batch), self.bias)

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the state's tensors."""
        layer = (batch, self._config.output_size)
        return layer, (*layer, self._config.num_branch), (*layer, self._config.num_memory), layer
