"""The neuron of the page: a published Branch-ELM whose time constants and branches can be changed while it runs.

What can be changed stands beside the neuron's own state, so that the ONNX model of one step has it as inputs. Zeros are
the neuron as it was published.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from elm_neuro import BranchELM, SpikeEvents
from elm_neuro.export import Graph, Lowering, Value, register
from elm_neuro.functional import branch_matrix, branch_update, decay, memory_gain, memory_proposal, memory_update
from elm_neuro.functional._elm import TANH_SCALE, TANH_SLOPE


class LiveState(NamedTuple):
    """State of the neuron, and what is changed of it; zeros at the start."""

    b: Tensor  # (batch, num_branch)  branch trace
    m: Tensor  # (batch, num_memory)  memory
    stretch_b: Tensor  # (batch, 1)  logarithm of a factor on the synapses' time constant
    stretch_m: Tensor  # (batch, num_memory)  logarithm of a factor on each memory unit's time constant
    cut: Tensor  # (batch, num_branch)  1 where the memory does not read the branch, 0 where it reads all of it


class LiveNeuron(nn.Module):
    r"""A Branch-ELM that keeps the protocol of a layer and takes changes in its state.

    .. math::
        \tau_b' = \tau_b e^{\text{stretch}_b} \qquad \tau_m' = \tau_m e^{\text{stretch}_m} \qquad
        \text{MLP}([(1 - \text{cut}) \odot b_t, \kappa_m' \odot m_{t-1}])

    Args:
        core: a single v1 neuron with routed inputs and one time constant for all branches, as all published ones are.

    Raises:
        ValueError: `core` is another kind of neuron.
    """

    state_type = LiveState

    def __init__(self, core: BranchELM) -> None:
        super().__init__()
        config = core.config
        plain = config.variant == "v1" and config.branch_activation is None and config.routing is not None
        if not plain or config.num_neuron is not None or core.cell.tau_s.ndim or not config.batch_first:
            raise ValueError(f"core must be a single v1 neuron with routing and one tau_s, batch first, got {config}")
        self.core, self.config = core, config
        self.input_size, self.output_size, self.delta_t = core.input_size, core.output_size, core.delta_t

    def initial_state(self, batch: int) -> LiveState:
        b, m = self.core.initial_state(batch)
        return LiveState(b, m, b.new_zeros(batch, 1), torch.zeros_like(m), torch.zeros_like(b))

    def check_state(self, state: LiveState, batch: int) -> LiveState:
        expected = self.initial_state(batch)
        for name, value, zeros in zip(LiveState._fields, state, expected, strict=True):
            if value.shape != zeros.shape:
                raise ValueError(f"state.{name} must have shape {tuple(zeros.shape)}, got {tuple(value.shape)}")
        return LiveState(*state)

    def step(self, x_t: Tensor, state: LiveState) -> tuple[Tensor, LiveState]:
        cell = self.core.cell
        tau_m = cell.tau_m * state.stretch_m.exp()
        kappa_m = decay(tau_m, self.delta_t)
        p = cell.effective_parameters()._replace(
            kappa_b=decay(cell.tau_s * state.stretch_b.exp(), self.delta_t),
            kappa_m=kappa_m,
            gain=memory_gain(tau_m, self.delta_t, lambda_=self.config.lambda_, variant="v1", kappa_m=kappa_m),
        )
        b = branch_update(state.b, x_t, p)
        proposed = memory_proposal((1.0 - state.cut) * b, state.m, p)
        m = memory_update(state.m, proposed, kappa_m, p.gain)
        return m @ p.w_y.mT + p.b_y, state._replace(b=b, m=m)

    def forward(
        self, x: Tensor | SpikeEvents, state: LiveState | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, LiveState]:
        if lengths is not None:
            raise ValueError("lengths must be None for a neuron that lives step by step")
        frames = x if isinstance(x, Tensor) else x.to_dense(self.core.cell.tau_m.dtype)
        state = self.initial_state(len(frames)) if state is None else self.check_state(state, len(frames))
        outputs = []
        for x_t in frames.unbind(1):
            y_t, state = self.step(x_t, state)
            outputs.append(y_t)
        return torch.stack(outputs, dim=1), state


class _Live(Lowering):
    """Any number of steps, with decays computed in the model from what stretches them."""

    def lower(self, graph: Graph, module: LiveNeuron, x: Value) -> Value:
        cell, config = module.core.cell, module.config
        p = cell.effective_parameters()
        routing = cast(Tensor, p.routing)  # the module has one
        state = {name: graph.state(name, *value.shape[1:]) for name, value in module.initial_state(1)._asdict().items()}
        lost_b = _lost(graph, "tau_s", cell.tau_s, state["stretch_b"], config.delta_t)
        lost_m = _lost(graph, "tau_m", cell.tau_m, state["stretch_m"], config.delta_t)
        whole = graph.add("Sub", graph.one(), state["cut"])
        gain = graph.add("Mul", lost_m, graph.constant("largest", torch.tensor(config.lambda_ * TANH_SCALE)))

        def step(u_t: str, before: dict[str, str]) -> tuple[str, dict[str, str]]:
            b = graph.add("Add", graph.add("Sub", before["b"], graph.add("Mul", lost_b, before["b"])), u_t)
            decayed = graph.add("Sub", before["m"], graph.add("Mul", lost_m, before["m"]))
            hidden = graph.add("Concat", graph.add("Mul", whole, b), decayed, axis=1)
            for i, (weight, bias) in enumerate(zip(p.mlp_weight, p.mlp_bias, strict=True)):
                hidden = graph.activated(hidden, config.activation if i else None)
                slope = TANH_SLOPE if i == len(p.mlp_weight) - 1 else 1.0
                hidden = graph.linear(f"mlp_{i}", hidden, slope * weight, slope * bias, matrix=True)
            m = graph.add("Add", decayed, graph.add("Mul", gain, graph.add("Tanh", hidden)))
            return m, {"b": b, "m": m}

        summed = graph.linear("w_s", x.name, branch_matrix(p.w_s, routing, config.input_size))
        u = graph.time_first(Value(summed, (config.branches,), x.time))
        start = {name: state[name] for name in ("b", "m")}
        records, after = graph.loop(u.name, start, step, reads=(None, config.branches), gives=(None, config.num_memory))
        for name, value in (state | after).items():
            graph.keep(name, value)
        y = graph.linear("w_y", records, p.w_y, p.b_y, matrix=graph.form == "step")
        return Value(y, (config.output_size,), None if graph.form == "step" else "first")


def _lost(graph: Graph, name: str, tau: Tensor, stretch: str, delta_t: float) -> str:
    r"""The share that decays in a step, :math:`1 - \kappa = 1 - e^{-\Delta t / \tau'}`.

    By the half angle, :math:`1 - e^{-2z} = 2 \tanh z / (1 + \tanh z)`: in float32 the difference to 1 would be off by
    1e-4 where tau is a second.
    """
    shortened = graph.add("Exp", graph.add("Neg", stretch))
    half = graph.add("Mul", graph.constant(f"{name}.half_rate", 0.5 * delta_t / tau), shortened)
    t = graph.add("Tanh", half)
    return graph.add("Div", graph.add("Add", t, t), graph.add("Add", graph.one(), t))


register(LiveNeuron, _Live())
__all__ = ["LiveNeuron", "LiveState"]
