"""The networks that the paper compares the ELM neuron with on SHD and SHD-Adding, at its sizes: LSTM, Chrono-LSTM,
recurrent LIF.

Parameters with 19 classes (SHD-Adding) at 700 channels, beside those of figure 5 of Spieler et al., arXiv:2306.16922:

================================ ======= ===== =======================================================================
network                             here paper difference
================================ ======= ===== =======================================================================
ELM, 100 memory units            182,319  186K all weights, biases and tau_m of the equations; what else is counted is
                                               not stated
Branch-ELM, 100 x 35 synapses     65,819   67K neither branches nor routing on SHD are stated, 100 x 35 is our choice
LSTM, 250 units                  956,769  956K none: torch's LSTM with its two biases and the readout
recurrent LIF, 65 neurons         51,128   51K the structure is not stated, 65 neurons meet the size
================================ ======= ===== =======================================================================

The 20 classes of SHD add 101, 101, 251 and 67.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from elm_neuro.backends import project
from elm_neuro.events import SpikeEvents
from elm_neuro.nn import ALIF
from elm_neuro.training.networks._classifiers import LeakyReadout, check_sizes, check_time_constant


class LSTMClassifier(nn.Module):
    r"""Class logits from the last output of an LSTM, with recurrent dropout, and optionally with the Chrono
    initialisation.

    Recurrent dropout is that of Gal & Ghahramani 2016, arXiv:1512.05287 (also Keras' ``recurrent_dropout``): in
    training :math:`h_{t-1} \odot z / (1 - p)` replaces :math:`h_{t-1}` in all four gates, with one mask z per sample
    and unit that stays the same over all steps; the output keeps the undropped h. The paper names a "recurrent dropout
    of 0.3" and does not say which.

    The Chrono initialisation is that of Tallec & Ollivier 2018, arXiv:1804.11188, section 3: the forget gates' biases
    are :math:`\log(T - 1)` with T drawn uniformly over the timescales, in steps, and the input gates' are their
    negatives; all other biases keep zero. So :math:`1 / (1 - \sigma(b_f)) = T` is a unit's forgetting time. As there, T
    is at least 2 steps.

    Args:
        input_size: number of inputs.
        output_size: number of classes.
        hidden_size: number of units; the paper's is 250 on SHD, 150 of the Chrono-LSTM on Long Range Arena.
        recurrent_dropout: probability p in [0, 1); the paper's is 0.3.
        timescales: lowest and highest timescale in ms of the Chrono initialisation; None for torch's own
            initialisation.
        delta_t: time step in ms; matters for `timescales` only.

    Shapes: x (batch, time, input_size) or :class:`SpikeEvents`; returns logits (batch, output_size).

    Raises:
        ValueError: an argument is out of range.

    >>> from elm_neuro.training import num_parameters
    >>> num_parameters(LSTMClassifier(700, 19, 250, recurrent_dropout=0.3))  # the paper's 956K
    956769
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_size: int = 250,
        *,
        recurrent_dropout: float = 0.0,
        timescales: tuple[float, float] | None = None,
        delta_t: float = 1.0,
    ) -> None:
        super().__init__()
        check_sizes(input_size=input_size, output_size=output_size, hidden_size=hidden_size)
        if not 0.0 <= recurrent_dropout < 1.0:
            raise ValueError(f"recurrent_dropout must be in [0, 1), got {recurrent_dropout}")
        if not (delta_t > 0 and math.isfinite(delta_t)):
            raise ValueError(f"delta_t must be a time above 0 ms, got {delta_t}")
        self.recurrent_dropout, self.timescales, self.delta_t = recurrent_dropout, timescales, float(delta_t)
        self.lstm = nn.LSTM(input_size, hidden_size, batch_first=True)
        self.readout = nn.Linear(hidden_size, output_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The gates' bias as at the start where there are timescales; the parts draw themselves."""
        if self.timescales is not None:
            self._chrono(*self.timescales)

    @property
    def required_delta_t(self) -> float | None:
        """Time step in ms that the data must have: None without timescales, where nothing depends on it."""
        return None if self.timescales is None else self.delta_t

    def _chrono(self, low: float, high: float) -> None:
        first, last = max(2.0, low / self.delta_t), high / self.delta_t
        if not (0 < low <= high and first <= last and math.isfinite(last)):
            raise ValueError(
                f"timescales must rise and end at 2 steps of {self.delta_t} ms or later, got {(low, high)} ms"
            )
        hidden = self.lstm.hidden_size
        with torch.no_grad():
            _, _, b_ih, b_hh = self.lstm.all_weights[0]
            b_ih.zero_()
            b_hh.zero_()
            forget = torch.empty(hidden).uniform_(first, last).sub_(1.0).log_()
            b_ih[hidden : 2 * hidden] = forget  # torch's order of gates: input, forget, cell, output
            b_ih[:hidden] = -forget

    def forward(self, x: Tensor | SpikeEvents) -> Tensor:
        if len(x.shape) != 3 or x.shape[2] != self.lstm.input_size or x.shape[1] < 1:
            raise ValueError(
                f"x must have shape (batch, time, {self.lstm.input_size}) with at least one step, got {tuple(x.shape)}"
            )
        if self.training and self.recurrent_dropout:
            last = self._dropped(x)
        else:
            outputs, _ = self.lstm(x.to_dense() if isinstance(x, SpikeEvents) else x)
            last = outputs[:, -1]
        logits: Tensor = self.readout(last)
        return logits

    def _dropped(self, x: Tensor | SpikeEvents) -> Tensor:
        """Last output (batch, hidden_size) with one dropout mask over all steps."""
        w_ih, w_hh, b_ih, b_hh = self.lstm.all_weights[0]
        currents = project(x, w_ih) + (b_ih + b_hh)  # (batch, time, 4 * hidden_size)
        h = c = currents.new_zeros(currents.shape[0], self.lstm.hidden_size)
        keep = 1.0 - self.recurrent_dropout
        mask = torch.empty_like(h).bernoulli_(keep) / keep
        for current in currents.unbind(1):
            i, f, g, o = (current + (h * mask) @ w_hh.mT).chunk(4, dim=-1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return h

    def extra_repr(self) -> str:
        return f"recurrent_dropout={self.recurrent_dropout}, timescales={self.timescales}, delta_t={self.delta_t}"


class RecurrentLIFClassifier(nn.Module):
    r"""Class logits from one recurrent layer of LIF neurons, read by leaky integrators whose last membrane is the
    logit.

    Membrane time constants and biases are trained, as in the paper's LIF of table S4; its network on SHD is not
    described further. Here recurrent weights start uniformly in :math:`\pm 1/\sqrt n`, not at the identity of
    :class:`elm_neuro.nn.LIF`. The penalty on spikes is `SpikeClassification`'s ``spike_l1``.

    Args:
        hidden: the spiking layer, built with ``recurrent=True``; ``detach_recurrent=False`` passes the gradient through
            fed-back spikes.
        output_size: number of classes.
        tau_readout: initial time constant of the readout in ms, trained.

    Shapes: x (batch, time, hidden.input_size) or :class:`SpikeEvents`; returns logits (batch, output_size).

    Raises:
        ValueError: `hidden` has no recurrent weights, or `tau_readout` is out of range.

    >>> from elm_neuro import LIF
    >>> from elm_neuro.training import num_parameters
    >>> hidden = LIF(700, 65, delta_t=10.0, recurrent=True)
    >>> num_parameters(RecurrentLIFClassifier(hidden, output_size=19))  # the paper's 51K
    51128
    """

    def __init__(self, hidden: ALIF, *, output_size: int, tau_readout: float = 100.0) -> None:
        super().__init__()
        if hidden.cell.w_rec is None:
            raise ValueError("hidden must be a layer with recurrent=True, got one without recurrent weights")
        check_time_constant("tau_readout", tau_readout, hidden.delta_t)
        self.hidden = hidden
        self.reset_parameters()
        self.readout = LeakyReadout(
            hidden.output_size, output_size, delta_t=hidden.delta_t, tau_v=tau_readout, readout="last"
        )

    def reset_parameters(self) -> None:
        """The recurrent weights drawn as at the start; the other ones draw themselves."""
        bound = 1.0 / math.sqrt(self.hidden.output_size)
        nn.init.uniform_(self.hidden.cell.w_rec, -bound, bound)  # type: ignore[arg-type]  # it has them

    def forward(self, x: Tensor | SpikeEvents) -> Tensor:
        spikes, _ = self.hidden(x)
        logits: Tensor = self.readout(spikes)
        return logits
