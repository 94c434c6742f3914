"""A residual stack of layers over tokens or frames: what the paper leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elm_neuro.nn import output_shape
from elm_neuro.training.networks._classifiers import check_sizes, checked_layer
from elm_neuro.training.networks._tokens import at_last_token, check_tokens

Gate = Literal["glu", "input"]


class ResidualStack(nn.Module):
    r"""Class logits from tokens through layers that each add to what they read.

    .. math:: x_0 = E[\text{tokens}], \quad x_{k+1} = x_k + \text{dropout}(g_k(\text{layer}_k(\text{norm}(x_k)))), \quad
        \text{logits} = W \, \text{norm}(x_K) + c

    at the last token. The gate g is a gated linear unit, :math:`a \odot \sigma(b)` of outputs [a, b] (Dauphin et al.
    2017, arXiv:1612.08083), or :math:`y \odot \sigma(V \, \text{norm}(x_k) + d)`, or nothing. The norm is that of each
    step over its width, so that neither padding nor the rest of the batch is seen.

    Args:
        layers: one or more, :class:`elm_neuro.nn.Layer`, batch first; each reads the width of the first one's inputs
            and gives as many outputs, twice as many where `gate` is "glu".
        num_tokens: size of the vocabulary.
        num_classes: number of classes.
        gate: "glu", "input" or None.
        dropout: probability with which an output of a layer is dropped in training, in [0, 1).

    Shapes: tokens (batch, time), lengths (batch,); returns (batch, num_classes).

    Raises:
        TypeError: an entry of `layers` is no layer.
        ValueError: no layers, sizes that do not fit, or an argument is out of range.

    >>> from elm_neuro import ELM
    >>> stack = ResidualStack([ELM(8, 16, num_memory=4) for _ in range(2)], num_tokens=25, num_classes=10)
    >>> stack(torch.tensor([[3, 1, 0], [2, 2, 1]]), torch.tensor([2, 3])).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        *,
        num_tokens: int,
        num_classes: int,
        gate: Gate | None = "glu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not layers:
            raise ValueError("layers must hold at least one layer, got none")
        if gate not in ("glu", "input", None):
            raise ValueError(f'gate must be "glu", "input" or None, got {gate!r}')
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        check_sizes(num_tokens=num_tokens, num_classes=num_classes)
        checked = [checked_layer(layer, f"layers.{k}") for k, layer in enumerate(layers)]
        width = checked[0].input_size
        outputs = 2 * width if gate == "glu" else width
        for k, layer in enumerate(checked):
            if (layer.input_size, output_shape(layer)) != (width, (outputs,)):
                raise ValueError(
                    f"layers.{k} must have input_size {width} and output_size {outputs} with gate={gate!r}, got "
                    f"{layer.input_size} and {output_shape(layer)}"
                )
        self.gate, self.dropout, self.output_size = gate, dropout, num_classes
        self.embedding = nn.Embedding(num_tokens, width)
        self.layers = nn.ModuleList(cast("list[nn.Module]", checked))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(len(checked) + 1))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in checked) if gate == "input" else None
        self.readout = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        check_tokens(tokens, lengths)
        x = self.embedding(tokens.to(torch.int32))  # (batch, time, width)
        for k, layer in enumerate(self.layers):
            read = self.norms[k](x)
            y, _ = layer(read, lengths=lengths)
            if self.gate == "glu":
                y = F.glu(y, dim=-1)
            elif self.gates is not None:
                y = y * self.gates[k](read).sigmoid()
            x = x + F.dropout(y, self.dropout, self.training)
        logits: Tensor = self.readout(self.norms[-1](at_last_token(x, lengths)))
        return logits

    def extra_repr(self) -> str:
        return f"gate={self.gate!r}, dropout={self.dropout}"
