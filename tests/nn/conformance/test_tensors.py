"""Tensors that are not numbers in memory: refused by name or computed by torch's operators, never read as memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from elm_neuro import ALIF, ELM, ELMNetwork, SpikeEvents, SpikingELM, backends
from tests.nn.conformance.kinds import BATCH, EVERY, INPUTS, LAYERS, OURS, STEPS, Called, frames, made, of_kinds, run
from tests.tolerances import assert_close


class Wrapped(Tensor):
    """Numbers that lie in another tensor, as quantised and distributed ones do; its own memory is nothing."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        own: Any = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)  # type: ignore[attr-defined]
        own.inner = inner
        return own

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def inside(value: Any) -> Any:
            return value.inner if isinstance(value, Wrapped) else value

        out = func(*tree_map(inside, args), **tree_map(inside, kwargs or {}))
        return tree_map(lambda value: Wrapped(value) if isinstance(value, Tensor) else value, out)


def unwrapped(value: Any) -> Tensor:
    return value.inner if isinstance(value, Wrapped) else value


@of_kinds(LAYERS)
@torch.no_grad()
def test_a_wrapper_as_input_state_or_parameter_is_its_numbers(name: str) -> None:
    module: Any = made(name)
    x = frames()
    wanted, after = module(x)
    assert_close(unwrapped(module(Wrapped(x))[0]), wanted)
    state = type(after)(*(part + 0.5 for part in after))
    further, _ = module(x, state)
    y, _ = module(x, type(after)(*map(Wrapped, state)))
    assert_close(unwrapped(y), further)
    for key, parameter in list(module.named_parameters()):
        own = parameter.detach()
        y, _ = torch.func.functional_call(module, {key: Wrapped(own)}, (x,))
        assert_close(unwrapped(y), wanted)


def test_named_kernels_refuse_wrappers_and_tracers() -> None:
    neuron, x = ELM(INPUTS, 2, num_memory=2, backend="torch"), frames()
    with pytest.raises(ValueError, match=r'backend "torch" cannot run this: .* plain tensors, got Wrapped'):
        neuron(Wrapped(x))
    with pytest.raises(ValueError, match=r"plain tensors, got Wrapped"), torch.no_grad():
        neuron(x, neuron.initial_state(BATCH)._replace(m=Wrapped(torch.zeros(BATCH, 2))))


@of_kinds(EVERY)
@torch.no_grad()
def test_fake_tensors_give_shapes(name: str) -> None:
    module = made(name)
    wanted = run(name, module)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = mode.from_tensor(frames())
        y = run(name, module, x)
    assert y.shape == wanted.shape and y.dtype == wanted.dtype
    assert_close(run(name, module), wanted)


@of_kinds(OURS)
def test_a_fake_module_of_real_sizes_allocates_nothing(name: str) -> None:
    with FakeTensorMode():
        module = made(name)
        y = run(name, module, torch.zeros(BATCH, STEPS, INPUTS))
    assert y.shape == run(name, made(name)).shape


def negatives(x: Tensor) -> Tensor:
    """A view whose memory holds the negative of its numbers."""
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg() and torch.equal(view, x)
    return view


@of_kinds(OURS)
def test_views_that_stand_for_a_negative_are_their_numbers(name: str) -> None:
    module: Any = made(name)
    x = frames()
    wanted = run(name, module)
    assert_close(run(name, module, negatives(x)), wanted)
    for key, parameter in list(module.named_parameters()):
        tensors = {key: negatives(parameter.detach())}
        assert_close(run(name, Called(module, tensors), x), wanted)


@of_kinds(LAYERS)
def test_states_that_stand_for_a_negative_are_their_numbers(name: str) -> None:
    module: Any = made(name)
    _, state = module(frames())
    state = type(state)(*(part.detach() + 0.25 for part in state))
    wanted, after = module(frames(), state)
    y, found = module(frames(), type(state)(*map(negatives, state)))
    assert_close(y, wanted)
    for ours, theirs in zip(found, after, strict=True):
        assert_close(ours, theirs)


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def _can_be_unbound(sharded: Any) -> bool:
    try:
        sharded.unbind(1)
    except NotImplementedError:
        return False
    return True


@of_kinds({name: LAYERS[name] for name in ("ELM", "BranchELM", "LIF", "SpikingELM")})
def test_distributed_tensors_are_their_numbers(name: str, mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, distribute_module, distribute_tensor

    module: Any = made(name)
    wanted, _ = module(frames())
    state = module.initial_state(BATCH)
    for given in (
        (distribute_tensor(frames(), mesh), None),
        (frames(), type(state)(*(distribute_tensor(p, mesh) for p in state))),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=r"DTensor|sharding strategy"):
            module(*given)
    parallel: Any = distribute_module(module, mesh)
    sharded = distribute_tensor(frames(), mesh)
    with torch.no_grad():
        if not _can_be_unbound(sharded):  # by torch 2.9, which says so
            with pytest.raises(NotImplementedError, match="sharding strategy"):
                parallel(sharded)
            return
        y, _ = parallel(sharded)
    assert isinstance(y, DTensor)
    assert_close(y.full_tensor(), wanted)


def test_events_of_other_tensors_are_refused_or_their_numbers() -> None:
    neuron, x = ELM(INPUTS, 2, num_memory=2), frames()
    events = SpikeEvents.from_frames(x)
    wrapped = SpikeEvents(events.indptr, events.channel, None, events.shape)
    vars(wrapped).update(channel=Wrapped(events.channel), indptr=Wrapped(events.indptr))
    with torch.no_grad():
        try:
            y, _ = neuron(wrapped)
        except (RuntimeError, ValueError, TypeError):
            return
        assert_close(unwrapped(y), neuron(SpikeEvents(events.indptr, events.channel, None, events.shape))[0])


@of_kinds(LAYERS)
def test_transforms_of_functions_are_those_of_the_layer(name: str) -> None:
    layer: Any = made(name)
    x = frames().requires_grad_()
    wanted, _ = layer(x)
    with torch.no_grad():
        each = torch.func.vmap(lambda one: layer(one.unsqueeze(0))[0].squeeze(0))
        assert_close(each(frames()), wanted)
    (grad,) = torch.autograd.grad(wanted.square().sum(), x)
    assert_close(torch.func.grad(lambda x: layer(x)[0].square().sum())(frames()), grad, scale=5.0)


def of_one_output() -> list[Any]:
    return [ELM(INPUTS, 1, 4), SpikingELM(ELM(INPUTS, 1, 4)), ALIF(INPUTS, 1, latency=2), ELMNetwork(INPUTS, 1)]


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_gradients_that_stand_for_a_negative_are_their_numbers(index: int, backend: str) -> None:
    """Of outputs and of states; with one output their rows are contiguous whatever their strides are."""
    torch.manual_seed(0)
    layer = of_one_output()[index]
    with backends.use(backend):
        y, after = layer(frames().clamp(max=1.0))
        outputs = [out for out in (y, *after) if out.requires_grad]
        grads = [torch.randn(out.shape) for out in outputs]
        leaves = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        again: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
        wanted = torch.autograd.grad(outputs, leaves, grads, **again)
        for given in (list(map(negatives, grads)), [torch._neg_view(-grad) for grad in grads]):
            found = torch.autograd.grad(outputs, leaves, given, **again)
            for result, expected in zip(found, wanted, strict=True):
                assert (result is None) == (expected is None)
                if result is not None:
                    assert_close(result, expected)
