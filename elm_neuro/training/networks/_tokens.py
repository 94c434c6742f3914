"""Networks that turn sequences of tokens into class logits: one layer, an LSTM, two towers over a pair of texts.

They are called with tokens (batch, time) of any integer dtype and lengths (batch,), and read the output at each
sequence's last token. A token reaches a neuron as a spike on its own input; no one-hot vector is stored.

Parameters with the input sizes and classes of Long Range Arena, beside the paper's (Spieler et al., arXiv:2306.16922:
about 100K of the Chrono-LSTM, Text 200K, Retrieval 150K), 150 memory units or hidden units:

=================== ======= ===========
task                    ELM Chrono-LSTM
=================== ======= ===========
ListOps              99,610     107,710
Text                141,602     192,902
Retrieval           134,027     166,127
Image                96,910     102,310
Pathfinder           95,702     101,102
Pathfinder-X         93,302      96,302
=================== ======= ===========
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elm_neuro.datasets.lra import token_events
from elm_neuro.nn import last_output, output_shape
from elm_neuro.training.networks._baselines import LSTMClassifier
from elm_neuro.training.networks._classifiers import check_sizes, checked_layer


def check_tokens(tokens: Tensor, lengths: Tensor) -> None:
    """Refuse what is no batch of token sequences.

    Raises:
        ValueError: the shapes do not fit.
    """
    if tokens.ndim != 2 or lengths.shape != tokens.shape[:1] or tokens.is_floating_point():
        raise ValueError(
            f"tokens must be integers (batch, time) and lengths (batch,), got {tokens.dtype} {tuple(tokens.shape)} and "
            f"{tuple(lengths.shape)}"
        )


class TokenClassifier(nn.Module):
    """The outputs of one layer at the last token of each sequence: class logits, or the latent of a tower.

    Args:
        neuron: the layer, :class:`elm_neuro.nn.Layer`, batch first, with an input for each token.

    Shapes: tokens (batch, time), lengths (batch,); returns (batch, output_size).

    Raises:
        TypeError: `neuron` is no layer.
        ValueError: `neuron` is a population, a cell or not batch first.

    >>> from elm_neuro import ELM
    >>> network = TokenClassifier(ELM(25, 10, num_memory=5))
    >>> network(torch.tensor([[3, 1, 0], [2, 2, 1]]), torch.tensor([2, 3])).shape
    torch.Size([2, 10])
    """

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        layer = checked_layer(neuron, "neuron")
        if output_shape(layer) != (layer.output_size,):
            raise ValueError(
                f"neuron must be a single one, got outputs of shape {output_shape(layer)} for each sequence"
            )
        self.neuron = layer

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        check_tokens(tokens, lengths)
        y, _ = self.neuron(token_events(tokens, self.neuron.input_size), lengths=lengths)  # (batch, time, output_size)
        return at_last_token(y, lengths)

    @property
    def output_size(self) -> int:
        """Number of classes, or size of the latent."""
        return self.neuron.output_size


class TokenLSTM(LSTMClassifier):
    """:class:`LSTMClassifier`, for example the paper's Chrono-LSTM, over token sequences: one-hot inputs, made on the
    device.

    Args:
        input_size: number of tokens.
        output_size: number of classes, or size of the latent.
        hidden_size: number of units; the paper's is 150.
        timescales: lowest and highest timescale in ms of the Chrono initialisation; None for torch's own.
        delta_t: time step in ms.

    Shapes: tokens (batch, time), lengths (batch,); returns (batch, output_size).

    Raises:
        ValueError: an argument is out of range.

    >>> from elm_neuro.training import num_parameters
    >>> num_parameters(TokenLSTM(25, 10, timescales=(1.0, 4000.0)))  # ListOps; about 100K in the paper
    107710
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        hidden_size: int = 150,
        *,
        timescales: tuple[float, float] | None = None,
        delta_t: float = 1.0,
    ) -> None:
        super().__init__(input_size, output_size, hidden_size, timescales=timescales, delta_t=delta_t)
        self.output_size = output_size

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]  # tokens in place of frames
        check_tokens(tokens, lengths)
        x = F.one_hot(tokens.to(torch.int64), self.lstm.input_size).to(self.readout.weight.dtype)
        outputs, _ = self.lstm(x)  # (batch, time, hidden_size); what follows a sequence's end does not change it
        logits: Tensor = self.readout(at_last_token(outputs, lengths))
        return logits


class TwoTowers(nn.Module):
    r"""Class logits of pairs of texts, each read by the same network: :math:`W [u, v, u \odot v, u - v] + c` of the two
    latents.

    The paper gives the latent size, 75; how the latents are put together is that of
    google-research/long-range-arena, without a hidden layer behind it, which meets the paper's size.

    Args:
        tower: a network of this module, whose `output_size` is that of the latent.
        num_classes: number of classes.

    Shapes: tokens (2 * batch, time), the two texts of a pair one after the other, lengths (2 * batch,); returns
    (batch, num_classes).

    Raises:
        TypeError: `tower` has no `output_size`.
        ValueError: `num_classes` is below 1.

    >>> from elm_neuro import ELM
    >>> towers = TwoTowers(TokenClassifier(ELM(105, 75, num_memory=5)))
    >>> towers(torch.zeros(6, 4, dtype=torch.uint8), torch.tensor([4, 3, 1, 1, 4, 2])).shape
    torch.Size([3, 2])
    """

    def __init__(self, tower: nn.Module, *, num_classes: int = 2) -> None:
        super().__init__()
        latent = getattr(tower, "output_size", None)
        if not isinstance(latent, int):
            raise TypeError(
                f"tower must have an output_size, the size of its latent, got {type(tower).__name__} without"
            )
        check_sizes(num_classes=num_classes)
        self.tower = tower
        self.readout = nn.Linear(4 * latent, num_classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        if tokens.shape[0] % 2:
            raise ValueError(f"tokens must be pairs of texts, an even number, got {tokens.shape[0]}")
        u, v = self.tower(tokens, lengths).unflatten(0, (-1, 2)).unbind(1)  # (batch, latent) each
        logits: Tensor = self.readout(torch.cat((u, v, u * v, u - v), dim=1))
        return logits


class NormalisedReadout(nn.Module):
    """Class logits from the latent of a network, normalised over the batch, through a hidden layer: for tasks whose
    rare tokens move a neuron's output by a thousandth of what the common ones do, which a linear readout does not see.

    On Pathfinder the outputs of a new ELM differ between images by about 0.001. Not in the paper.

    Args:
        tower: a network of this module, whose `output_size` is that of the latent.
        num_classes: number of classes.
        hidden_size: of the hidden layer; None is the latent's size.
        momentum: share of the newest batch in the statistics that evaluation uses, in (0, 1].

    Shapes: tokens (batch, time), lengths (batch,); returns (batch, num_classes).

    Raises:
        TypeError: `tower` has no `output_size`.
        ValueError: a size is below 1, or `momentum` is out of range.

    >>> from elm_neuro import ELM
    >>> network = NormalisedReadout(TokenClassifier(ELM(16, 8, num_memory=5)), num_classes=2).eval()
    >>> network(torch.zeros(3, 4, dtype=torch.uint8), torch.tensor([4, 3, 1])).shape
    torch.Size([3, 2])
    """

    def __init__(
        self, tower: nn.Module, *, num_classes: int = 2, hidden_size: int | None = None, momentum: float = 0.3
    ) -> None:
        super().__init__()
        latent = getattr(tower, "output_size", None)
        if not isinstance(latent, int):
            raise TypeError(
                f"tower must have an output_size, the size of its latent, got {type(tower).__name__} without"
            )
        if not 0.0 < momentum <= 1.0:
            raise ValueError(f"momentum must be in (0, 1], got {momentum}")
        hidden = latent if hidden_size is None else hidden_size
        check_sizes(num_classes=num_classes, hidden_size=hidden)
        self.tower = tower
        self.readout = nn.Sequential(
            nn.BatchNorm1d(latent, momentum=momentum),
            nn.Linear(latent, hidden),
            nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.readout(self.tower(tokens, lengths))
        return logits


def at_last_token(y: Tensor, lengths: Tensor) -> Tensor:
    """Output at each sequence's last token, (batch, ...), without a look at `lengths`, which a GPU would wait for."""
    if y.device.type == "cpu":
        return last_output(y, lengths)
    return y[torch.arange(y.shape[0], device=y.device), lengths.long() - 1]
