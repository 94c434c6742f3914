"""One time step of the ELM neuron: the shell that owns the parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from elm_neuro import pretrained
from elm_neuro.backends import untraced
from elm_neuro.backends.elm._learned import Learned, Timescales
from elm_neuro.backends.parts._plain import may_look
from elm_neuro.functional import ELMParameters, ELMState, elm_step
from elm_neuro.functional._elm import linear
from elm_neuro.functional._routing import check_routing_index, routing_index
from elm_neuro.functional._timescales import bounded_tau, proto_tau, spaced_tau
from elm_neuro.nn._checks import check_batch, check_step, checked_lengths, checked_state, refuse_nan
from elm_neuro.nn._config import ELMCellOptions, ELMConfig, check_config, check_generator
from elm_neuro.nn._drawn import draw_anew
from elm_neuro.nn._hanging import buffer_of, is_untouched, reason_to_call, tensor_of
from elm_neuro.nn._keywords import check_keywords, spelled_out
from elm_neuro.nn._layer import Configured
from elm_neuro.nn._lengths import step_where_valid
from elm_neuro.nn._meaning import Meaning
from elm_neuro.nn._narrow import as_stored, state_dtype, wide
from elm_neuro.nn._routing import Routed
from elm_neuro.nn._saved import check_tau_s


@pretrained.register
class ELMCell(pretrained.Saved, Meaning, Routed, Configured, nn.Module):
    r"""One time step of an ELM neuron, ``y_t, state = cell(x_t, state)``.

    Args:
        input_size: number of inputs.
        output_size: number of outputs.
        num_memory: number of memory units.
        routing: None, "random", "window", "neuronio" (see :func:`elm_neuro.functional.routing_index`), or an index
            tensor ([num_neuron,] num_branch, num_synapse_per_branch) with -1 for an empty slot.
        generator: source of the random initial weights and routing; torch's global one by default.
        config: the remaining keywords are the fields of :class:`ELMConfig`; :class:`ELM` explains each.

    Shapes: x_t (batch, input_size) or, for a population, also (batch, num_neuron, input_size); y_t (batch,
    [num_neuron,] output_size); state as in :class:`ELMState`, None for zeros; lengths (batch,), 1 where the sample goes
    on and 0 where it has ended: there y_t is 0 and the state stays.

    >>> cell = ELMCell(3, 2, num_memory=4)
    >>> y, state = cell(torch.ones(5, 3))
    >>> y.shape, state.m.shape
    (torch.Size([5, 2]), torch.Size([5, 4]))
    """

    state_type = ELMState
    config_type = ELMConfig
    is_cell = True  # forward takes one step
    without_decay = ("_proto_w_s", "_proto_tau_m")  # parameters that weight decay would turn into others
    may_be_infinite = ("_proto_tau_m",)  # of published neurons: a time constant at its bound

    @spelled_out(ELMCellOptions, ELMConfig)
    @untraced  # compiled code may make a neuron, but torch.compile cannot draw from a generator
    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        num_memory: int = 100,
        routing: str | Tensor | None = None,
        generator: torch.Generator | None = None,
        **config: Unpack[ELMCellOptions],
    ) -> None:
        super().__init__()
        check_keywords(self, config, ELMCellOptions, ELMCell.__init__)
        check_generator(generator)
        if not (routing is None or isinstance(routing, str | Tensor)):
            raise TypeError(f"routing must be a name, None or an index tensor, got {type(routing).__name__}")
        self.config = ELMConfig(
            input_size=input_size,
            output_size=output_size,
            num_memory=num_memory,
            routing="index" if isinstance(routing, Tensor) else routing,
            **config,
        )
        self._register_routing(routing, generator)
        self._register_timescales()
        self._register_layers(generator)

    @classmethod
    def from_config(cls, config: ELMConfig, *, routing: Tensor | None = None) -> ELMCell:
        """A cell of this configuration with new weights; `routing` as in :meth:`ELM.from_config`."""
        check_config(config, ELMConfig)
        return cls(**(vars(config) if routing is None else vars(config) | {"routing": routing}))

    def reset_parameters(self) -> None:
        """Draw everything anew in place, from torch's global generator, as the constructor does: weights, time
        constants, a routing that is drawn. One that was given as an index stays.

        Raises:
            ValueError: the routing was given as an index and is not there: nobody has filled it since ``to_empty``.
        """
        index: Tensor | None = self.settled_routing() if self.config.routing == "index" else None
        if index is not None and bool((index < 0).all()):
            raise ValueError("routing must be loaded before weights are drawn anew, got an index nobody has filled")
        draw_anew(self, lambda: ELMCell.from_config(self.config, routing=None if index is None else index.cpu()))

    def _register_routing(self, routing: str | Tensor | None, generator: torch.Generator | None) -> None:
        config = self.config
        shape = (config.branches, config.num_synapse_per_branch)
        draws = config.num_neuron if config.num_neuron and (routing == "random" or config.shuffle_routing) else 1
        index: Tensor | None
        if isinstance(routing, Tensor):
            index = check_routing_index(routing, config.input_size, shape, config.num_neuron)
        elif config.num_branch is None:
            index = None
        elif torch.get_default_device().type == "meta":  # a place for the index of a file
            index = torch.empty((draws, *shape) if draws > 1 else shape, dtype=torch.int64)
        elif config.routing == "index":
            raise ValueError(f'routing must be an index tensor of shape {shape}, got only its name, "index"')
        else:
            drawn = [
                routing_index(routing, config.input_size, *shape, shuffle=config.shuffle_routing, generator=generator)
                for _ in range(draws)
            ]
            index = torch.stack(drawn) if draws > 1 else drawn[0]
        self.hold_routing(index)
        weight = torch.full(self._neurons(*shape), float(config.w_s_init))
        self._proto_w_s: Tensor
        self._hold("_proto_w_s", weight, learn=config.learn_w_s)

    def _register_timescales(self) -> None:
        config = self.config
        tau_s = torch.tensor(config.tau_s)
        self.tau_s: Tensor
        self.register_buffer("tau_s", tau_s)
        tau_m = spaced_tau(config.num_memory, config.tau_m_init, config.tau_m_spacing)
        proto = proto_tau(tau_m, config.bounds, dtype=torch.get_default_dtype()).expand(
            self._neurons(config.num_memory)
        )
        self._proto_tau_m: Tensor
        self._hold("_proto_tau_m", proto.clone(), learn=config.learn_tau_m)

    def _register_layers(self, generator: torch.Generator | None) -> None:
        config = self.config
        sizes = [config.branches + config.num_memory, *[config.hidden_size] * config.num_mlp_layers, config.num_memory]
        self.mlp = nn.ModuleList(Affine(*pair, config.num_neuron, generator) for pair in itertools.pairwise(sizes))
        self.w_y = Affine(config.num_memory, config.output_size, config.num_neuron, generator)

    def adopt_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the routing from a file whose other tensors are to be loaded afterwards.

        Raises:
            ValueError: the index is missing, is there without branches, or does not fit.
        """
        check_tau_s(tensors.get("tau_s"), self.config.tau_s)
        config, index = self.config, tensors.get("input_to_synapse_indices")
        if (index is None) != (config.num_branch is None):
            rule = "must be there where num_branch is given and only there"
            raise ValueError(f"input_to_synapse_indices {rule}, got num_branch {config.num_branch}")
        if index is not None:
            shape = (config.branches, config.num_synapse_per_branch)
            self.input_to_synapse_indices = check_routing_index(index, config.input_size, shape, config.num_neuron)

    def meaning(self) -> dict[str, Any]:
        """What the numbers of the state dict are of."""
        config = self.config
        return {
            "variant": config.variant,
            "delta_t": config.delta_t,
            "lambda_": config.lambda_,
            "tau_m_bounds": config.bounds,
            "activation": config.activation,
            "branch_activation": config.branch_activation,
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As :class:`Meaning`; a RuntimeError also for an index that points outside of the inputs."""
        index = state_dict.get(f"{prefix}input_to_synapse_indices")
        config, kept = self.config, self.input_to_synapse_indices
        if isinstance(index, Tensor) and kept is not None and index.shape == kept.shape and not index.is_meta:
            try:
                shape = (config.branches, config.num_synapse_per_branch)
                check_routing_index(index, config.input_size, shape, config.num_neuron)
            except ValueError as error:
                raise RuntimeError(f"{prefix}input_to_synapse_indices: {error}") from error
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _neurons(self, *shape: int) -> tuple[int, ...]:
        return shape if self.config.num_neuron is None else (self.config.num_neuron, *shape)

    def _hold(self, name: str, tensor: Tensor, *, learn: bool) -> None:
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)

    @property
    def w_s(self) -> Tensor:
        """Synaptic weights, rectified, ([num_neuron,] num_branch, num_synapse_per_branch)."""
        return torch.relu(self._proto_w_s)

    @property
    def tau_m(self) -> Tensor:
        """Memory time constants in ms, ([num_neuron,] num_memory)."""
        return bounded_tau(self._proto_tau_m, self.config.bounds)

    def effective_parameters(self) -> ELMParameters:
        """What one step works with: weights rectified, time constants as decay factors, nothing narrower than float32.
        Differentiable. Pruning and old norms of ``torch.nn.utils`` are brought up to date.

        Raises:
            RuntimeError: a module inside does more than its weights say: it is another's, or has hooks.
        """
        if (reason := self.reason_to_call()) is not None:
            raise RuntimeError(f"the neuron is not its parameters alone: {reason}; call it")
        return self.parameters_as_they_are()

    def parameters_as_they_are(self, *, layers: bool = True) -> ELMParameters:
        """:meth:`effective_parameters` after :meth:`reason_to_call`; without those of the linear `layers` for a step
        that calls them.
        """
        from elm_neuro.backends.elm._effective import parameters  # brings the kernels, which making a neuron needs not

        return parameters(self.learned_parameters(layers=layers))

    def learned_parameters(self, *, layers: bool = True) -> Learned:
        """What :meth:`parameters_as_they_are` computes from."""
        config, own = self.config, self._linear_layers() if layers else []
        found = [tensor_of(self, "_proto_w_s"), tensor_of(self, "_proto_tau_m"), buffer_of(self, "tau_s")]
        for layer in own:
            found += (tensor_of(layer, "weight"), tensor_of(layer, "bias"))
        tensors = tuple(map(wide, found))
        w_s, proto_tau_m, tau_s = tensors[:3]
        w_y, b_y = tensors[-2:] if layers else (tau_s, tau_s)
        params = ELMParameters(
            w_s, self.settled_routing(), tau_s, proto_tau_m, proto_tau_m, tensors[3:-2:2], tensors[4:-2:2],
            w_y, b_y, config.activation, config.branch_activation,
        )  # fmt: skip
        return Learned(params, Timescales(config.bounds, config.delta_t, config.lambda_, config.variant))

    def reason_to_call(self) -> str | None:
        """Why only a call of this cell does what it is meant to do; None where its parameters say all."""
        reason = None if is_untouched(self, ELMCell) else reason_to_call(self, ELMCell.forward)
        return self._reason_to_call_inside() if reason is None else f"cell: {reason}"

    def _linear_layers(self) -> list[Any]:
        """Modules of the MLP, and last of the readout."""
        own = self._modules
        inside: Any = own["mlp"]
        return [*inside._modules.values(), own["w_y"]]

    def _reason_to_call_inside(self) -> str | None:
        """Why a step must call the modules inside; None where their weights say all."""
        layer: Any
        for index, layer in enumerate(self._linear_layers()):
            if is_untouched(layer, Affine):
                continue
            reason = reason_to_call(layer, Affine.forward, nn.Linear.forward)
            if reason is None and layer.bias is None:
                reason = "it has no bias"
            if reason is not None:
                return f"{[*(f'mlp.{name}' for name in self.mlp._modules), 'w_y'][index]}: {reason}"
        return None

    @property
    def like(self) -> Tensor:
        """A parameter, of the dtype and on the device that all of them have; buffers may differ: FSDP lowers the
        precision of parameters alone.
        """
        found: Tensor = tensor_of(self, "_proto_tau_m")
        return found

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one sample's output in one step."""
        return self.config.output_shape

    def initial_state(self, batch: int, *, device: torch.device | None = None) -> ELMState:
        """Zeros, in the parameters' dtype but not narrower than float32, on their device by default."""
        check_batch(batch)
        like = self._proto_tau_m if device is None else self._proto_tau_m.to(device)
        return ELMState(*(like.new_zeros(shape, dtype=state_dtype(like)) for shape in self.state_shapes(batch)))

    def check_state(self, state: ELMState, batch: int) -> ELMState:
        """`state` where it fits this neuron and a batch of `batch`.

        Raises:
            TypeError: `state` is not a pair of tensors of the parameters' dtype.
            ValueError: a tensor has the wrong shape or device.
        """
        return checked_state(ELMState, state, self.state_shapes(batch), self._proto_tau_m)

    def state_shapes(self, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of b and m."""
        return (batch, *self._neurons(self.config.branches)), (batch, *self._neurons(self.config.num_memory))

    def step(self, x_t: Tensor, state: ELMState | None = None) -> tuple[Tensor, ELMState]:
        """The call itself: a cell is a layer of one step."""
        stepped: tuple[Tensor, ELMState] = self(x_t, state)
        return stepped

    def forward(
        self, x: Tensor, state: ELMState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, ELMState]:
        config, like = self.config, self.like
        check_step(x, config.input_size, like, num_neuron=config.num_neuron)
        batch = x.shape[0]
        before = self.initial_state(batch) if state is None else self.check_state(state, batch)
        if lengths is not None:
            lengths = checked_lengths(lengths, batch, 1, x.device)
            x = torch.where((lengths > 0).view(-1, *[1] * (x.ndim - 1)), x, 0.0)
        if self._reason_to_call_inside() is None:
            y, after = elm_step(wide(x), before, self.parameters_as_they_are())
        else:
            layers = [_called(layer, like) for layer in self._linear_layers()]
            y, after = elm_step(wide(x), before, self.parameters_as_they_are(layers=False), layers)
        if may_look(y):
            from elm_neuro.backends.native._sums import sum_of  # brings the kernels

            refuse_nan(self, x, state, None, sum_of(y), y.dtype)
        y = as_stored(y, like)
        if config.flatten_output and config.num_neuron is not None:
            y = y.flatten(-2)
        return (y, after) if lengths is None else step_where_valid(y, after, before, lengths)

    def extra_repr(self) -> str:
        return describe(self.config)


def like_of(cell: ELMCell) -> Tensor:
    """What the dtype of a cell's parameters is read from; somebody else's cell need not have :attr:`ELMCell.like`."""
    return cell.like if isinstance(cell, ELMCell) else cell.tau_s


def _called(layer: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
    """A linear layer by its call, in the dtype of the parameter `like`."""
    return lambda x: wide(layer(as_stored(x, like)))


class Affine(nn.Module):
    """Weight and bias of a linear map, with a leading neuron axis in a population; initialised as
    :class:`torch.nn.Linear`. It is called only where someone hangs on it: a pass reads its weights.
    """

    def __init__(self, in_size: int, out_size: int, num_neuron: int | None, generator: torch.Generator | None) -> None:
        super().__init__()
        neurons = () if num_neuron is None else (num_neuron,)
        bound = 1.0 / math.sqrt(in_size)
        self.weight = nn.Parameter(
            torch.empty(*neurons, out_size, in_size).uniform_(-bound, bound, generator=generator)
        )
        self.bias = nn.Parameter(torch.empty(*neurons, out_size).uniform_(-bound, bound, generator=generator))

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, from torch's global generator."""
        *neurons, out_size, in_size = self.weight.shape
        draw_anew(self, lambda: Affine(in_size, out_size, neurons[0] if neurons else None, None))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return ", ".join(map(str, (*self.weight.shape[:-2], self.weight.shape[-1], self.weight.shape[-2])))


def describe(config: ELMConfig) -> str:
    """The fields that differ from their default, after the sizes."""
    default = ELMConfig(input_size=1, output_size=1)
    changed = []
    for name, value in vars(config).items():
        if name in ("input_size", "output_size") or value == getattr(default, name):
            continue
        short = f"<{len(value)} times>" if name == "tau_s" and isinstance(value, tuple) else value
        changed.append(f"{name}={short}")
    return ", ".join([str(config.input_size), str(config.output_size), *changed])
