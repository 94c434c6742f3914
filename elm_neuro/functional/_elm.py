"""The ELM neuron's equations for one time step, as pure functions of tensors.

Shapes are those of one neuron; a population has an axis `num_neuron` before the last one of every state, input and
weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from elm_neuro.functional._routing import branch_input

# Scaled tanh of the authors' code (``custom_tanh`` in ``modeling_utils.py`` at 52e68a6); the paper's text prints a
# plain tanh.
TANH_SCALE = 1.7159
TANH_SLOPE = 2.0 / 3.0

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "silu": F.silu}
BRANCH_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {**ACTIVATIONS, "tanh": torch.tanh}


class ELMState(NamedTuple):
    """What an ELM neuron carries from one time step to the next; zeros at the start."""

    b: Tensor  # (batch, [num_neuron,] num_branch)  branch trace: the sum of the branch's synapse traces
    m: Tensor  # (batch, [num_neuron,] num_memory)  memory


class ELMParameters(NamedTuple):
    """Effective parameters of one time step: weights rectified, time constants turned into decay factors."""

    w_s: Tensor  # ([num_neuron,] num_branch, num_synapse_per_branch), not negative
    routing: (
        Tensor | None
    )  # ([num_neuron,] num_branch, num_synapse_per_branch), -1 for an empty slot; None: every input its own branch
    kappa_b: Tensor  # () or (num_branch,)
    kappa_m: Tensor  # ([num_neuron,] num_memory)
    gain: Tensor  # ([num_neuron,] num_memory)
    mlp_weight: tuple[Tensor, ...]  # layer i: ([num_neuron,] out, in); the first reads [branches, decayed memory]
    mlp_bias: tuple[Tensor, ...]  # layer i: ([num_neuron,] out)
    w_y: Tensor  # ([num_neuron,] output_size, num_memory)
    b_y: Tensor  # ([num_neuron,] output_size)
    activation: str = "relu"
    branch_activation: str | None = None


def zero_state(params: ELMParameters, batch: int) -> ELMState:
    """The state before a sequence: zeros.

    Args:
        params: the neuron's parameters; they give the sizes, the dtype and the device.
        batch: number of samples.

    Returns:
        b (batch, [num_neuron,] num_branch) and m (batch, [num_neuron,] num_memory).
    """
    return ELMState(
        params.w_s.new_zeros(batch, *params.w_s.shape[:-1]), params.kappa_m.new_zeros(batch, *params.kappa_m.shape)
    )


def scaled_tanh(x: Tensor) -> Tensor:
    """``1.7159 * tanh(2/3 * x)``.

    >>> scaled_tanh(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 1.0000])
    """
    return TANH_SCALE * torch.tanh(TANH_SLOPE * x)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x @ weight.mT + bias``; with a neuron axis in `weight`, x is (..., num_neuron, in) and each neuron has its own
    matrix.
    """
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    return torch.einsum("...ni,noi->...no", x, weight) + bias


def branch_update(b: Tensor, x: Tensor, params: ELMParameters) -> Tensor:
    r"""Advance the branch traces by one time step.

    .. math:: b_t = \kappa_b \odot b_{t-1} + \sum_{\text{branch}} w_s \odot \text{route}(x_t)

    With one time constant per branch this equals the sum over the branch of the paper's synapse traces (equation 2 of
    arXiv:2306.16922), because filter and sum commute.

    Args:
        b: traces before the step, (batch, num_branch).
        x: input, (batch, input_size).
        params: the neuron's parameters.
    """
    return params.kappa_b * b + branch_input(x, params.w_s, params.routing)


def memory_proposal(
    b: Tensor, m: Tensor, params: ELMParameters, layers: Sequence[Callable[[Tensor], Tensor]] | None = None
) -> Tensor:
    r"""Proposed memory of one time step, from the new branch traces and the old memory.

    .. math:: d_t = 1.7159 \tanh(\tfrac23 \text{MLP}([b_t, \kappa_m \odot m_{t-1}]))

    Source: equation 3 of arXiv:2306.16922 with the scaled tanh of the authors' code.

    Args:
        b: branch traces after the step, (batch, num_branch).
        m: memory before it, (batch, num_memory).
        params: the neuron's parameters.
        layers: called in place of the linear maps of the MLP in `params`.
    """
    if layers is None:
        pairs = zip(params.mlp_weight, params.mlp_bias, strict=True)
        layers = [partial(linear, weight=weight, bias=bias) for weight, bias in pairs]
    if params.branch_activation is not None:
        b = BRANCH_ACTIVATIONS[params.branch_activation](b)
    hidden = torch.cat([b, params.kappa_m * m], dim=-1)
    activation = ACTIVATIONS[params.activation]
    for layer in layers[:-1]:
        hidden = activation(layer(hidden))
    return scaled_tanh(layers[-1](hidden))


def memory_update(m: Tensor, delta_m: Tensor, kappa_m: Tensor, gain: Tensor) -> Tensor:
    r"""Advance the memory units by one time step.

    .. math:: m_t = \kappa_m \odot m_{t-1} + g \odot d_t

    The gain is :func:`memory_gain` of the variant. Source: equation 4 of arXiv:2306.16922; upstream ``ELM.dynamics`` at
    52e68a6.

    Args:
        m: memory before the step, (batch, num_memory), dimensionless.
        delta_m: proposed memory, (batch, num_memory), dimensionless.
        kappa_m: decay per step ``exp(-delta_t / tau_m)``, (num_memory,).
        gain: factor on the proposal, (num_memory,), dimensionless.

    Returns:
        Memory after the step, (batch, num_memory).

    Raises:
        ValueError: `kappa_m` does not have one entry per memory unit.

    >>> memory_update(torch.tensor([[1.0]]), torch.tensor([[2.0]]), torch.tensor([0.5]), torch.tensor([0.25]))
    tensor([[1.]])
    """
    if kappa_m.shape[-1] != m.shape[-1]:
        raise ValueError(f"kappa_m must end in {m.shape[-1]} memory units to match m, got {tuple(kappa_m.shape)}")
    return kappa_m * m + gain * delta_m


def elm_step(
    x: Tensor,
    state: ELMState,
    params: ELMParameters,
    layers: Sequence[Callable[[Tensor], Tensor]] | None = None,
) -> tuple[Tensor, ELMState]:
    r"""One time step of the ELM neuron: branch traces, memory, output :math:`y_t = W_y m_t + b_y`.

    Args:
        x: input, (batch, input_size); for a population (batch, num_neuron, input_size), or (batch, input_size) shared
            by all neurons.
        state: before the step.
        params: the neuron's parameters.
        layers: called in place of the linear maps in `params`: those of the MLP and, last, the readout.

    Returns:
        Output (batch, output_size), and the state after the step.
    """
    if params.kappa_m.ndim == 2 and x.ndim == 2:
        x = x.unsqueeze(1).expand(-1, params.kappa_m.shape[0], -1)
    b = branch_update(state.b, x, params)
    proposed = memory_proposal(b, state.m, params, None if layers is None else layers[:-1])
    m = memory_update(state.m, proposed, params.kappa_m, params.gain)
    return linear(m, params.w_y, params.b_y) if layers is None else layers[-1](m), ELMState(b, m)
