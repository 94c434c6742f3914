"""Tracers, exporters, checkpointing, threads: what they record is the layer, or they say that it is not."""

from __future__ import annotations

import contextvars
import io
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from elm_neuro import ELM, SpikingELM, backends
from tests.backends.native_cases import native
from tests.nn.conformance.kinds import BATCH, EVERY, INPUTS, LAYERS, STEPS, frames, made, of_kinds, run
from tests.tolerances import assert_close


class OutputOnly(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.module(x)[0]
        return y


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@of_kinds({"nn.LSTM": EVERY["nn.LSTM"]} | LAYERS)
def test_what_jit_traces_is_the_layer_for_other_numbers_and_refuses_other_lengths(name: str) -> None:
    module = OutputOnly(made(name)).eval()
    x = torch.ones(BATCH, STEPS, INPUTS)
    with torch.no_grad():
        traced = torch.jit.trace(module, (x,), check_trace=False)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        for other in (frames(), torch.zeros_like(x), 3.0 * frames()):
            assert_close(loaded(other), module(other))
        for other in (
            torch.ones(BATCH, STEPS + 3, INPUTS),
            torch.ones(BATCH + 2, STEPS, INPUTS),
            torch.ones(1, 2, INPUTS),
        ):
            try:
                y = loaded(other)
            except RuntimeError:
                continue
            assert_close(y, module(other))


@of_kinds(LAYERS)
def test_what_export_saves_is_the_layer_for_other_numbers(name: str) -> None:
    module = OutputOnly(made(name)).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (torch.ones(BATCH, STEPS, INPUTS),))
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        for other in (frames(), torch.zeros(BATCH, STEPS, INPUTS), 3.0 * frames(), torch.rand(BATCH, STEPS, INPUTS)):
            assert_close(loaded(other), module(other))
        with pytest.raises((AssertionError, RuntimeError, ValueError)):
            loaded(torch.ones(BATCH, STEPS + 1, INPUTS))


@native  # the loop of `torch` is unrolled: its exports have the length they were made with
def test_an_exported_neuron_takes_other_lengths_where_they_are_dynamic() -> None:
    module = OutputOnly(made("BranchELM")).eval()
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (frames(),), dynamic_shapes=(sizes,))
        for other in (torch.rand(2, 9, INPUTS), torch.zeros(5, 2, INPUTS)):
            assert_close(program.module()(other), module(other))


@pytest.mark.parametrize("reentrant", [False, True])
@of_kinds(EVERY)
def test_checkpointed_calls_have_the_same_gradients(name: str, reentrant: bool) -> None:
    def grads(module: Any, *, recomputed: bool) -> list[Any]:
        x = frames().requires_grad_()
        y = (
            checkpoint(lambda x: run(name, module, x), x, use_reentrant=reentrant)
            if recomputed
            else run(name, module, x)
        )
        y.square().sum().backward()
        return [x.grad, *(parameter.grad for parameter in module.parameters())]

    wanted, found = grads(made(name), recomputed=False), grads(made(name), recomputed=True)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert_close(ours, theirs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_keeps_chance_or_refuses_a_generator_of_its_own(reentrant: bool) -> None:
    torch.manual_seed(0)
    neuron = SpikingELM(ELM(INPUTS, 3, num_memory=2), threshold=0.1, stochastic=True)
    x = frames().requires_grad_()
    drawn: list[torch.Tensor] = []
    neuron.output.register_forward_hook(lambda module, args, output: drawn.append(output[0].detach()))
    with set_checkpoint_early_stop(False):
        checkpoint(lambda x: neuron(x)[0], x, use_reentrant=reentrant).sum().backward()
    assert len(drawn) == 2 and torch.equal(*drawn)
    neuron.output.generator = torch.Generator().manual_seed(1)
    y = checkpoint(lambda x: neuron(x)[0], x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="generator of its own cannot draw the same spikes again"):
        y.sum().backward()
    neuron(x)[0].sum().backward()


def test_a_choice_of_backend_holds_in_its_own_thread_as_no_grad_does() -> None:
    neuron, x = ELM(INPUTS, 2, num_memory=2), torch.zeros(1, 2, INPUTS)
    seen: dict[str, Any] = {}

    def look(key: str) -> None:
        seen[key] = backends.resolve("auto"), torch.is_grad_enabled(), neuron(x)[0].grad_fn

    with backends.use("reference"), torch.no_grad():
        for key, target in (("plain", look), ("copied", contextvars.copy_context().run)):
            args: tuple[Any, ...] = (key,) if target is look else (look, key)
            thread = threading.Thread(target=target, args=args)
            thread.start()
            thread.join()
        look("here")
    assert seen["here"][:2] == ("reference", False)
    assert seen["plain"][0] == backends.resolve("auto") and seen["plain"][1]
    assert seen["copied"][0] == "reference"
