"""The ELM Network: one recurrent layer of many small ELM neurons, one time step, as pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elm_neuro.functional._elm import linear, memory_update, scaled_tanh
from elm_neuro.functional._spike import FastSigmoid, Surrogate, spikes_of

NETWORK_OUTPUTS = ("relu", "identity", "spike")


def relu_squared(x: Tensor) -> Tensor:
    """``relu(x) ** 2``, the nonlinearity of the published network's MLPs.

    >>> relu_squared(torch.tensor([-1.0, 3.0]))
    tensor([0., 9.])
    """
    positive = torch.relu(x)
    return positive * positive


NETWORK_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_squared": relu_squared,
    "relu": torch.relu,
    "silu": F.silu,
}


class NetworkState(NamedTuple):
    """What a layer of ELM neurons carries from step to step; zeros at the start, and where a part is unused."""

    a: Tensor  # (batch, num_neuron)  activity of the last step, which the layer reads
    b: Tensor  # (batch, num_neuron, num_branch)  branch trace
    m: Tensor  # (batch, num_neuron, num_memory)  memory
    r: Tensor  # (batch, num_neuron)  running mean that the high pass takes away


class NetworkParams(NamedTuple):
    """Effective parameters of one step. A synapse reads input ``index`` below input_size, else the activity of neuron
    ``index - input_size`` one step before; synapses are branch-major.
    """

    # (num_neuron, num_branch * num_synapse_per_branch), int64; in place of a method that tuples have
    index: Tensor  # type: ignore[assignment]
    w_s: Tensor  # (num_neuron, num_branch * num_synapse_per_branch), signed, without the rule's input_scale
    mlp_weight: tuple[Tensor, ...]  # layer i: (num_neuron, out, in); the first reads [branches, decayed memory]
    mlp_bias: tuple[Tensor, ...]  # layer i: (num_neuron, out)
    w_y: Tensor  # (num_neuron, num_memory)
    bias: Tensor  # (num_neuron,), added behind the high pass
    kappa_m: Tensor  # (num_neuron, num_memory)
    gain: Tensor  # (num_neuron, num_memory)
    kappa_b: Tensor | None = None  # (num_neuron, num_branch); None: branches have no trace
    kappa_r: Tensor | None = None  # (num_neuron,); None: no high pass

    @property
    def num_branch(self) -> int:
        """Branches of a neuron."""
        return self.mlp_weight[0].shape[-1] - self.kappa_m.shape[-1]


@dataclass(frozen=True)
class NetworkRule:
    """What all neurons of a layer compute alike.

    Args:
        activation: nonlinearity of the MLPs, "relu_squared", "relu" or "silu".
        output: nonlinearity of the neurons, "relu", "identity" or "spike" (1 above 0).
        surrogate: spikes from a distance to threshold, with the gradient to use.
        input_scale: factor on what arrives at a branch.

    Raises:
        ValueError: `activation` or `output` is none of these.

    >>> NetworkRule(output="spikes")
    Traceback (most recent call last):
    ValueError: output must be one of ['relu', 'identity', 'spike'], got 'spikes'
    """

    activation: str = "relu_squared"
    output: str = "relu"
    surrogate: Surrogate = FastSigmoid(100.0)  # noqa: RUF009  # it is frozen
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("activation", NETWORK_ACTIVATIONS), ("output", NETWORK_OUTPUTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {list(choices)}, got {getattr(self, name)!r}")

    def emit(self, preactivity: Tensor) -> Tensor:
        """Activity of neurons from what their readout, high pass and bias give.

        Raises:
            TypeError: the surrogate gives no tensor, or another dtype.
            ValueError: it gives another shape.
        """
        if self.output == "identity":
            return preactivity
        if self.output == "relu":
            return torch.relu(preactivity)
        return spikes_of(self.surrogate, preactivity, "activity")


def zero_network_state(params: NetworkParams, batch: int) -> NetworkState:
    """The state before a sequence: zeros, in the parameters' dtype and on their device."""
    num_neuron = params.bias.shape[0]
    sizes = (), (params.num_branch,), params.kappa_m.shape[1:], ()
    return NetworkState(*(params.kappa_m.new_zeros(batch, num_neuron, *size) for size in sizes))


def network_step(
    x: Tensor,
    state: NetworkState,
    params: NetworkParams,
    rule: NetworkRule,
    recurrent_mask: Tensor | None = None,
    layers: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> tuple[Tensor, Tensor, NetworkState]:
    r"""One time step of a layer of ELM neurons that read the input and one another.

    .. math::
        b_t &= \kappa_b b_{t-1} + g \textstyle\sum_{\text{branch}} w_s\, u_t, \qquad u_t \text{ of } [x_t, a_{t-1}] \\
        o_t &= \text{MLP}([b_t, \kappa_m m_{t-1}]), \qquad
        m_t = \kappa_m m_{t-1} + \text{gain} \cdot 1.7159 \tanh(\tfrac23 o_t) \\
        y_t &= w_y \cdot m_t, \qquad r_t = \kappa_r r_{t-1} + (1 - \kappa_r) y_t, \qquad a_t = f(y_t - r_t + bias)

    Without :math:`\kappa_b` there is no trace, without :math:`\kappa_r` no r. Source: arXiv:2605.12049 and its code,
    ``src/models/elm_neuron.py`` and ``elm_layer.py`` at 5cbf4e2.

    Args:
        x: input, (batch, input_size).
        state: before the step.
        params: the layer's parameters.
        rule: what its neurons compute alike.
        recurrent_mask: factor on the activity that the layer reads, (batch, num_neuron): dropout.
        layers: called in place of the linear maps of the MLPs in `params`.

    Returns:
        Activity (batch, num_neuron); mean over memory units of :math:`|o_t|`, (batch, num_neuron), before the tanh; the
        state after the step.
    """
    fed_back = state.a if recurrent_mask is None else state.a * recurrent_mask
    arriving = torch.cat([x, fed_back], dim=1)[:, params.index] * params.w_s  # (batch, num_neuron, synapses)
    b_t = rule.input_scale * arriving.unflatten(-1, (state.b.shape[-1], -1)).sum(-1)
    if params.kappa_b is not None:
        b_t = params.kappa_b * state.b + b_t
    if layers is None:
        pairs = zip(params.mlp_weight, params.mlp_bias, strict=True)
        layers = [partial(linear, weight=weight, bias=bias) for weight, bias in pairs]
    hidden = torch.cat([b_t, params.kappa_m * state.m], dim=-1)
    activation = NETWORK_ACTIVATIONS[rule.activation]
    for layer in layers[:-1]:
        hidden = activation(layer(hidden))
    o_t = layers[-1](hidden)
    m_t = memory_update(state.m, scaled_tanh(o_t), params.kappa_m, params.gain)
    y_t, r_t = (params.w_y * m_t).sum(-1), state.r
    if params.kappa_r is not None:
        r_t = params.kappa_r * state.r + (1.0 - params.kappa_r) * y_t
        y_t = y_t - r_t
    a_t = rule.emit(y_t + params.bias)
    return a_t, o_t.abs().mean(-1), NetworkState(a_t, state.b if params.kappa_b is None else b_t, m_t, r_t)
