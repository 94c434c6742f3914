"""What people do to the weights of a module inside, and hang on it, acts on every kind as on torch's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from elm_neuro import ALIF, ELM
from elm_neuro.nn import SpikeOutput
from tests.nn.conformance.kinds import EVERY, OURS, frames, is_ours, made, of_kinds, run, tensors_of
from tests.tolerances import assert_close


def by_hand(module: nn.Module, path: str, name: str, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy whose tensor was changed by hand: what the others are compared with."""
    twin = copy.deepcopy(module)
    with torch.no_grad():
        parameter = twin.get_submodule(path).get_parameter(name)
        parameter.copy_(change(parameter.detach()))
    return twin


@of_kinds(EVERY)
def test_pruned_tensors_are_zero_in_the_next_call(name: str) -> None:
    module = made(name)
    for path, tensor in tensors_of(module):
        if name == "nn.LSTM":  # it is told to read its weights again by setattr, not by prune
            continue
        twin, pruned = copy.deepcopy(module), copy.deepcopy(module)
        part = pruned.get_submodule(path)
        prune.l1_unstructured(part, tensor, amount=0.5)
        mask = getattr(part, f"{tensor}_mask")
        twin = by_hand(module, path, tensor, lambda value, mask=mask: value * mask)
        assert_close(run(name, pruned), run(name, twin))
        with torch.no_grad():  # as an optimizer does: the product with the mask is not stale
            getattr(part, f"{tensor}_orig").mul_(0.5)
            twin.get_submodule(path).get_parameter(tensor).mul_(0.5)
        assert_close(run(name, pruned), run(name, twin))
        prune.remove(part, tensor)
        assert_close(run(name, pruned), run(name, twin))


@of_kinds(OURS)
def test_structured_and_identity_pruning(name: str) -> None:
    module = made(name)
    for path, tensor in tensors_of(module, matrices=True):
        pruned = copy.deepcopy(module)
        part = pruned.get_submodule(path)
        prune.identity(part, tensor)
        assert_close(run(name, pruned), run(name, module))
        prune.ln_structured(part, tensor, amount=1, n=2, dim=0)  # in a container of both
        mask = getattr(part, f"{tensor}_mask")
        assert_close(run(name, pruned), run(name, by_hand(module, path, tensor, lambda value, mask=mask: value * mask)))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@of_kinds(OURS)
def test_norms_of_weights_old_and_new(name: str) -> None:
    module = made(name)
    for path, tensor in tensors_of(module, matrices=True):
        old, new = copy.deepcopy(module), copy.deepcopy(module)
        nn.utils.weight_norm(old.get_submodule(path), tensor)
        parametrizations.weight_norm(new.get_submodule(path), tensor)
        with torch.no_grad():
            old.get_submodule(path).get_parameter(f"{tensor}_g").mul_(2.0)
            new.get_submodule(
                f"{path}.parametrizations.{tensor}" if path else f"parametrizations.{tensor}"
            ).get_parameter("original0").mul_(2.0)
        wanted = run(name, by_hand(module, path, tensor, lambda value: 2.0 * value))
        assert_close(run(name, old), wanted)
        assert_close(run(name, new), wanted)


@of_kinds(OURS)
def test_spectral_norms_take_one_power_iteration_a_call(name: str) -> None:
    module = made(name)
    for path, tensor in tensors_of(module, matrices=True):
        if tensor != "weight":
            continue
        old = copy.deepcopy(module)
        part = nn.utils.spectral_norm(old.get_submodule(path), tensor)
        before = part.get_buffer(f"{tensor}_u").clone()
        run(name, old.train())
        assert not torch.equal(before, part.get_buffer(f"{tensor}_u"))
        old.eval()
        y, weight = run(name, old), getattr(part, tensor).detach()
        assert_close(y, run(name, by_hand(module, path, tensor, lambda value, weight=weight: weight)))
        new = copy.deepcopy(module).eval()
        part = parametrizations.spectral_norm(new.get_submodule(path), tensor)
        weight = getattr(part, tensor).detach()
        assert_close(run(name, new), run(name, by_hand(module, path, tensor, lambda value, weight=weight: weight)))


class Doubled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2.0 * value


@of_kinds(OURS)
def test_parametrized_tensors_and_their_gradients(name: str) -> None:
    module = made(name)
    for path, tensor in tensors_of(module):
        other = copy.deepcopy(module)
        parametrize.register_parametrization(other.get_submodule(path), tensor, Doubled())
        twin = by_hand(module, path, tensor, lambda value: 2.0 * value)
        y, wanted = run(name, other), run(name, twin)
        assert_close(y, wanted)
        if not wanted.requires_grad:
            continue
        y.square().sum().backward(), wanted.square().sum().backward()
        grad = twin.get_submodule(path).get_parameter(tensor).grad
        inside = other.get_submodule(path).get_submodule("parametrizations").get_submodule(tensor)
        if grad is not None:
            assert_close(inside.get_parameter("original").grad, 2.0 * grad)


class Lora(nn.Module):
    """A wrapper as libraries make them: the weight of what it wraps, and a call that adds to it."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        out, size = base.weight.shape[-2:]
        self.a, self.b = nn.Parameter(torch.randn(size, 2)), nn.Parameter(0.1 * torch.randn(2, out))

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a @ self.b


def linears(module: nn.Module) -> list[str]:
    return [path for path, part in module.named_modules() if type(part).__name__ == "Affine"]


WITH_LINEARS = {name: make for name, make in OURS.items() if linears(make())}


@of_kinds(WITH_LINEARS)
def test_a_wrapper_that_has_a_weight_is_called(name: str) -> None:
    module = made(name)
    for path in linears(module):
        other = copy.deepcopy(module)
        base = other.get_submodule(path)
        lora = Lora(base)
        other.set_submodule(path, lora)
        change = (lora.a @ lora.b).mT.detach()
        twin = by_hand(module, path, "weight", lambda value, change=change: value + change)
        y = run(name, other)
        assert_close(y, run(name, twin))
        if y.requires_grad:
            y.square().sum().backward()
            assert lora.a.grad is not None


def _double_output(part: nn.Module) -> Any:
    return part.register_forward_hook(lambda module, args, output: 2.0 * output)


def _double_output_of_keywords(part: nn.Module) -> Any:
    return part.register_forward_hook(lambda module, args, kwargs, output: 2.0 * output, with_kwargs=True)


def _double_input(part: Any) -> Any:  # and the bias, so that all hooks double
    with torch.no_grad():
        part.bias.mul_(2.0)
    return part.register_forward_pre_hook(lambda module, args: (2.0 * args[0],))


@pytest.mark.parametrize("hang", [_double_output, _double_output_of_keywords, _double_input])
@of_kinds(WITH_LINEARS)
def test_hooks_of_linear_layers_inside_are_called(name: str, hang: Callable[[nn.Module], Any]) -> None:
    module = made(name)
    for path in linears(module):
        hooked, twin = copy.deepcopy(module), copy.deepcopy(module)
        handle = hang(hooked.get_submodule(path))
        with torch.no_grad():
            for parameter in twin.get_submodule(path).parameters():
                parameter.mul_(2.0)
        y, wanted = run(name, hooked), run(name, twin)
        assert_close(y, wanted)
        if wanted.requires_grad and hang is _double_output:
            y.square().sum().backward(), wanted.square().sum().backward()
            grad = twin.get_submodule(path).get_parameter("weight").grad
            assert_close(hooked.get_submodule(path).get_parameter("weight").grad, 2.0 * grad, scale=5.0)
        handle.remove()
        run(name, hooked)


@of_kinds(WITH_LINEARS)
def test_backward_hooks_and_own_forwards_of_linear_layers_inside_are_called(name: str) -> None:
    module = made(name)
    called: list[str] = []
    for path in linears(module):
        hooked = copy.deepcopy(module)
        part: Any = hooked.get_submodule(path)
        part.register_full_backward_hook(lambda *args, path=path: called.append(path))
        y = run(name, hooked)
        assert_close(y, run(name, module))
        if y.requires_grad:
            y.square().sum().backward()
            assert path in called
        other = copy.deepcopy(module)
        part = other.get_submodule(path)
        part.forward = lambda x, own=part.forward, path=path: (called.append(f"own {path}"), own(x))[1]
        assert_close(run(name, other), run(name, module))
        assert f"own {path}" in called


@of_kinds(OURS)
def test_hooks_of_cells_inside_are_called_each_step(name: str) -> None:
    module = made(name)
    wanted, called = run(name, module), []
    if not any(is_ours(part, "ELMCell", "ALIFCell") for part in module.modules()):
        assert name.startswith("ELMNetwork")  # the only layer that is no shell around a cell
        return
    for path, part in module.named_modules():
        if is_ours(part, "ELMCell", "ALIFCell"):
            part.register_forward_hook(lambda *args, path=path: called.append(path))
    assert_close(run(name, module), wanted)
    assert len(called) == frames().shape[1]


@of_kinds(OURS)
def test_hooks_of_layers_and_thresholds_inside_are_called(name: str) -> None:
    for path, part in made(name).named_modules():
        if not path or path.endswith("surrogate") or not isinstance(part, ELM | ALIF | SpikeOutput):
            continue
        if name.endswith("readout") and isinstance(part, SpikeOutput):
            continue  # nothing spikes
        module, called = made(name), []
        wanted = run(name, module)
        module.get_submodule(path).register_forward_hook(lambda *args, called=called: called.append(args))
        assert_close(run(name, module), wanted)
        assert called, path


def test_a_named_backend_refuses_what_it_would_pass_over() -> None:
    neuron = ELM(3, 2, num_memory=2, backend="torch")
    neuron.cell.mlp[0].register_forward_hook(lambda *args: None)
    with pytest.raises(ValueError, match=r'backend "torch" cannot run this: mlp\.0: it has a hook on its call'):
        neuron(torch.ones(1, 2, 3))
    with pytest.raises(RuntimeError, match=r"the neuron is not its parameters alone: mlp\.0: it has a hook"):
        neuron.cell.effective_parameters()
    layer = ALIF(3, 2)
    layer.cell.register_forward_pre_hook(lambda *args: None)
    with pytest.raises(RuntimeError, match="the neurons are not their parameters alone: cell: it has a hook before"):
        layer.cell.effective_parameters()


@pytest.mark.parametrize("make", [lambda: ELM(3, 2, num_memory=2), lambda: ALIF(3, 2)])
def test_hooks_lengths_states_and_events_go_together(make: Callable[[], Any]) -> None:
    from elm_neuro import SpikeEvents

    torch.manual_seed(0)
    layer, x, lengths = make(), torch.poisson(torch.ones(3, 6, 3)), torch.tensor([6, 2, 0])
    state = layer.state_type(*(torch.rand_like(part) for part in layer.initial_state(3)))
    wanted, after = layer(x, state, lengths)
    layer.cell.register_forward_hook(lambda *args: None)
    for given in (x, SpikeEvents.from_frames(x)):
        y, found = layer(given, state, lengths)
        assert_close(y, wanted)
        for ours, theirs in zip(found, after, strict=True):
            assert_close(ours, theirs)
    assert layer(x[:, :0])[0].shape == wanted[:, :0].shape
