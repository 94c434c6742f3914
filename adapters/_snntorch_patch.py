"""Networks of snnTorch with neurons of ours in them: forgetting hidden states, and its helpers taught about ours."""

from __future__ import annotations

import importlib
import os
import warnings
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch
from torch import nn

from elm_neuro.adapters._snntorch import Neuron, SpikingNeuron, utils


def reset(net: nn.Module) -> None:
    """Forget the hidden states of every neuron in `net`, ours and snnTorch's, however deep; other networks keep theirs.

    Args:
        net: a network, or a neuron.

    >>> import snntorch
    >>> from elm_neuro.adapters.snntorch import ELM
    >>> net = nn.Sequential(nn.Sequential(ELM(3, 2, init_hidden=True)), snntorch.Leaky(0.9, init_hidden=True))
    >>> spk = net(torch.ones(8, 3))
    >>> reset(net)
    >>> net(torch.ones(5, 3)).shape  # another batch
    torch.Size([5, 2])
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a module, got {type(net).__name__}")
    for module in net.modules():
        if isinstance(module, SpikingNeuron) and hasattr(module, "reset_mem"):
            module.reset_mem()


def patch() -> ExitStack:
    """Teach ``snntorch.utils.reset`` and ``snntorch.backprop`` (BPTT, TBPTT, RTRL) our neurons, until undone.

    Importing the face does so, unless the environment has ``ELM_NEURO_PATCH_SNNTORCH=0``; :func:`unpatch` undoes it.
    ``utils.reset(net)``, also where it was imported before, then forgets the states of our neurons in `net` too, at any
    depth, and of no others; the functions of ``backprop`` take a network that ends in one of ours with ``output=True``,
    and detach our neurons in it after each optimizer step. Patching twice changes nothing.

    Returns:
        What undoes it: call ``.close()``, or use it in a ``with`` statement.

    >>> import snntorch.utils
    >>> from elm_neuro.adapters.snntorch import ELM
    >>> with patch():
    ...     snntorch.utils.reset(nn.Sequential(ELM(3, 2, init_hidden=True)))
    """
    undo = ExitStack()
    if hasattr(utils._layer_check, "__wrapped__"):
        return undo
    with warnings.catch_warnings():  # it is announced as deprecated whenever it is imported
        warnings.simplefilter("ignore", DeprecationWarning)
        backprop = importlib.import_module("snntorch.backprop")
    check_theirs, count_theirs, train_theirs = utils._layer_check, utils._final_layer_check, backprop.TBPTT

    @wraps(check_theirs)
    def check_both(
        net: nn.Module,
    ) -> None:  # what reset asks for its own neurons in net, before it forgets their states
        check_theirs(net)
        for neuron in _ours(net):
            neuron.reset_mem()

    @wraps(count_theirs)
    def count_both(net: nn.Module) -> int:
        last = next(reversed(net._modules.values()), None)
        if not isinstance(last, Neuron):
            return int(count_theirs(net))
        if last.init_hidden and not last.output:
            raise ValueError(f"net must end in a neuron with output=True, got {last}")
        return 1 + len(last.state_names)

    @wraps(train_theirs)
    def train_both(net: nn.Module, dataloader: Any, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        def detach(*_: Any) -> None:
            for neuron in _ours(net):
                neuron.detach_mem()

        hook = optimizer.register_step_post_hook(detach)
        try:
            return train_theirs(net, dataloader, optimizer, *args, **kwargs)
        finally:
            hook.remove()

    for module, name, both in (
        (utils, "_layer_check", check_both),
        (utils, "_final_layer_check", count_both),
        (backprop, "TBPTT", train_both),
    ):
        undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, both)
    return undo


_of_import = ExitStack()
if os.environ.get("ELM_NEURO_PATCH_SNNTORCH", "1") != "0":
    _of_import = patch()


def unpatch() -> None:
    """Undo what importing the face did: snnTorch's helpers know its own neurons only, and :func:`reset` both."""
    _of_import.close()


def _ours(net: nn.Module) -> list[Neuron]:
    return [module for module in net.modules() if isinstance(module, Neuron)]
