"""What the paper compares the ELM neuron with on NeuronIO, and what each costs: LSTM, one LIF neuron; parameters and
FLOPs.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from elm_neuro.backends import project
from elm_neuro.datasets.neuronio._simulations import NUM_INPUTS, SOMA_BIAS_MV, SOMA_CAP_MV, SOMA_SCALE_MV
from elm_neuro.events import SpikeEvents
from elm_neuro.nn import BranchELM, ELMConfig

THRESHOLD = (
    SOMA_CAP_MV - SOMA_BIAS_MV
) / SOMA_SCALE_MV  # where voltages are cut off, 1.27 above rest in units of 10 mV


class LSTMRegression(nn.Module):
    """An LSTM read out at every step: the baseline of table S7.

    Args:
        input_size: number of inputs.
        output_size: number of outputs.
        hidden_size: number of units.

    Shapes: x (batch, time, input_size) or :class:`SpikeEvents`; returns outputs (batch, time, output_size).

    >>> sum(p.numel() for p in LSTMRegression(1278, 2, 50).parameters())  # 265.9K in the paper: torch has two biases
    266102
    """

    def __init__(self, input_size: int = NUM_INPUTS, output_size: int = 2, hidden_size: int = 50) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.readout = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor | SpikeEvents) -> Tensor:
        y, _ = self.lstm(x.to_dense() if isinstance(x, SpikeEvents) else x)
        return self.readout(y)  # type: ignore[no-any-return]

    def flops_per_step(self) -> int:
        """As :func:`flops_per_step` counts them: 30 for a unit beside its products."""
        hidden, inputs = self.lstm.hidden_size, self.lstm.input_size
        return 8 * hidden * (inputs + hidden) + 30 * hidden + self.readout.out_features * (2 * hidden + 1)


class LIFRegression(nn.Module):
    r"""One leaky integrate-and-fire neuron in the place of the cell: 1,280 parameters, as in table S4.

    Its membrane is the voltage in units of 10 mV above -67.7 mV:
    :math:`v_t = \beta v_{t-1} (1 - s_{t-1}) + w \cdot x_t + c`; it fires, :math:`s_t = 1`, above -55 mV, where the data
    are cut off, and starts again from -67.7 mV. Outputs are the logit of a spike, `slope` times the distance to that
    threshold, and the voltage. The paper fits "the output spike directly to the target spikes" and does not say how;
    the logit is our choice. The reset passes no gradient.

    Args:
        input_size: number of inputs.
        tau_v: initial time constant of the membrane in ms, trained.
        slope: of the logit.

    Shapes: x (batch, time, input_size) or :class:`SpikeEvents`; returns outputs (batch, time, 2).

    Raises:
        ValueError: `tau_v` or `slope` is not above 0.

    >>> sum(p.numel() for p in LIFRegression().parameters())
    1280
    """

    def __init__(self, input_size: int = NUM_INPUTS, *, tau_v: float = 10.0, slope: float = 5.0) -> None:
        super().__init__()
        for name, value in (("tau_v", tau_v), ("slope", slope)):
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        self.weight = nn.Parameter(torch.empty(1, input_size))
        self.bias, self.beta_logit = nn.Parameter(torch.empty(())), nn.Parameter(torch.empty(()))
        self.tau_v_init, self.slope = tau_v, slope
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Everything as at the start, where nothing is drawn."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.constant_(self.beta_logit, float(torch.logit(torch.tensor(math.exp(-1.0 / self.tau_v_init)))))

    def forward(self, x: Tensor | SpikeEvents) -> Tensor:
        current = (project(x, self.weight) if isinstance(x, SpikeEvents) else x @ self.weight.mT).squeeze(
            -1
        ) + self.bias
        beta, v, voltages = torch.sigmoid(self.beta_logit), current.new_zeros(current.shape[0]), []
        for arrived in current.unbind(1):
            v = beta * v * (v <= THRESHOLD) + arrived
            voltages.append(v)
        voltage = torch.stack(voltages, dim=1)  # (batch, time)
        return torch.stack((self.slope * (voltage - THRESHOLD), voltage), dim=-1)

    def flops_per_step(self) -> int:
        """As :func:`flops_per_step` counts them."""
        return 2 * self.weight.numel() + 5


def linear_elm(input_size: int = NUM_INPUTS) -> BranchELM:
    """An ELM neuron with one memory unit that sums its synapses: 1,286 parameters, as in table S4.

    All synapses are on one branch, nothing is between branch and memory but a line.

    >>> sum(p.numel() for p in linear_elm().parameters())
    1286
    """
    return BranchELM(
        input_size,
        2,
        1,
        num_branch=1,
        num_synapse_per_branch=input_size,
        routing=None,
        num_mlp_layers=0,
        tau_m_init=(10.0, 10.0),
        tau_m_bounds=(0.0, 500.0),
    )


def flops_per_step(network: nn.Module) -> int:
    """Floating point operations of one time step of one sample, written out as in the equations, two for each product
    of a matrix.

    A network says them by a method `flops_per_step`; those of an ELM neuron follow from its configuration: a synapse
    costs 4 (decay, weight, rectification, sum) and 2 more where it is routed to a branch, a unit of the memory 8.
    Implementations may need fewer: `elm_neuro` itself sums synapses before it filters them.

    Raises:
        TypeError: `network` is of a kind that nobody counted.

    >>> flops_per_step(LIFRegression())
    2561
    """
    flops = counted_flops(network)
    if flops is None:
        raise TypeError(
            f"network must be an ELM neuron or have a method flops_per_step(), got {type(network).__name__}"
        )
    return flops


def counted_flops(network: nn.Module) -> int | None:
    """As :func:`flops_per_step`; None of a kind that nobody counted."""
    own, config = getattr(network, "flops_per_step", None), getattr(network, "config", None)
    if callable(own):
        return int(own())
    return _flops_of_elm(config) if isinstance(config, ELMConfig) else None


def _flops_of_elm(config: ELMConfig) -> int:
    synapses = config.branches * config.num_synapse_per_branch
    hidden = [config.hidden_size] * config.num_mlp_layers
    sizes = [config.branches + config.num_memory, *hidden, config.num_memory]
    products = sum(2 * into * out + out for into, out in itertools.pairwise(sizes))
    readout = 2 * config.num_memory * config.output_size + config.output_size
    per_synapse = 4 if config.num_branch is None else 6
    one_neuron = synapses * per_synapse + products + sum(hidden) + 8 * config.num_memory + readout
    return one_neuron * (config.num_neuron or 1)
