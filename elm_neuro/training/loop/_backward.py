"""Where the backward pass of a training step runs."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor


class BackwardHere(LightningModule):
    """A module whose backward passes run in the thread that asks for them.

    Autograd has a thread for each GPU. A narrow neuron's pass takes less time there than the way into that thread and
    back; with the network on one device nothing runs side by side that did before.
    """

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        with torch.autograd.set_multithreading_enabled(False):
            super().backward(loss, *args, **kwargs)
