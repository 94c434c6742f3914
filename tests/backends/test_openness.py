"""A backend of one's own, from this file alone: offered, listed, chosen by name, by context and automatically,
refused in its own words."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from elm_neuro import ELM, LIF, ELMNetwork, SpikeEvents, backends
from elm_neuro.functional import ALIFParameters, ALIFState, ELMParameters, ELMState, alif_step, elm_step, zero_state


class Toy(backends.ELMBackend):
    """A loop that counts its calls and dislikes events and long sequences."""

    name = "toy"
    about = "a loop of a test"
    calls = 0

    def refusal(self, x: Tensor | SpikeEvents, params: ELMParameters) -> str | None:
        if isinstance(x, SpikeEvents):
            return "it takes frames, got events"
        return "it takes at most 9 steps" if x.shape[1] > 9 else None

    def scan(
        self,
        x: Tensor | SpikeEvents,
        params: ELMParameters,
        state: ELMState | None,
        *,
        lengths: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, ELMState]:
        assert isinstance(x, Tensor) and lengths is None
        self.calls += 1
        state, outputs = state or zero_state(params, x.shape[0]), []
        for x_t in x.unbind(1):
            y_t, state = elm_step(x_t, state, params)
            outputs.append(y_t)
        return torch.stack(outputs, dim=1), state


class Missing(Toy):
    name = "fpga"

    def missing(self) -> str | None:
        return "there is no board"


@pytest.fixture
def toy() -> Iterator[Toy]:
    backend = Toy()
    with backends.offer("elm", backend) as offered:
        assert offered is backend
        yield backend
    assert "toy" not in backends.available()


def test_an_offered_backend_is_listed_and_runs_by_name_by_context_and_automatically(toy: Toy) -> None:
    assert backends.available()["toy"] == "a loop of a test"
    assert next(iter(backends.available("elm"))) == "toy" and "toy" not in backends.available("alif")
    neuron, x = ELM(3, 1, num_memory=2), torch.rand(2, 5, 3)
    y = neuron(x)[0]  # automatically: what is offered is asked first
    assert toy.calls == 1 and "backend='toy'" in repr(neuron)
    named = ELM(3, 1, num_memory=2, backend="toy")
    named(x)
    assert toy.calls == 2
    with backends.use("reference"):
        assert torch.allclose(neuron(x)[0], y) and toy.calls == 2
        with backends.use("toy"):
            neuron(x)
    assert toy.calls == 3


def test_what_an_offered_backend_refuses_is_said_in_its_own_words(toy: Toy) -> None:
    neuron, x = ELM(3, 1, num_memory=2), torch.rand(1, 10, 3)
    y = neuron(x)[0]  # automatically the next one runs
    assert toy.calls == 0
    with backends.use("torch"):
        assert torch.allclose(neuron(x)[0], y, atol=1e-6)
    with (
        backends.use("toy"),
        pytest.raises(ValueError, match='backend "toy" cannot run this: it takes at most 9 steps'),
    ):
        neuron(x)
    neuron.backend = "toy"
    with pytest.raises(ValueError, match='backend "toy" cannot run this: it takes frames, got events'):
        neuron(SpikeEvents.from_frames(x))


def test_a_backend_that_does_not_recompute_is_run_in_parts(toy: Toy) -> None:
    neuron, x = ELM(3, 1, num_memory=2, backend="toy"), torch.rand(2, 8, 3)
    expected = torch.autograd.grad(neuron(x)[0].square().sum(), list(neuron.parameters()))
    toy.calls, neuron.recompute_every = 0, 3
    for grad, wanted in zip(
        torch.autograd.grad(neuron(x)[0].square().sum(), list(neuron.parameters())), expected, strict=True
    ):
        torch.testing.assert_close(grad, wanted)
    assert toy.calls == 6  # three parts, forward and once more


def test_a_backend_that_is_missing_is_passed_over_and_raises_where_it_is_named() -> None:
    with backends.offer("elm", Missing()):
        assert backends.available()["fpga"] == "cannot run: there is no board"
        assert backends.resolve("auto") != "fpga"
        for attempt in (lambda: ELM(3, 1, backend="fpga"), lambda: backends.use("fpga").__enter__()):
            with pytest.raises(RuntimeError, match='backend "fpga" cannot run: there is no board'):
                attempt()


def test_an_offer_without_a_block_holds_until_it_is_withdrawn() -> None:
    offered = backends.offer("elm", Toy())
    assert backends.resolve("auto") == "toy"
    offered.withdraw()
    offered.withdraw()  # once more changes nothing
    with pytest.raises(ValueError, match=r"backend must be .auto. or one of .*, got 'toy'"):
        backends.resolve("toy")


@pytest.mark.parametrize(("kind", "sizes"), [(ELM, (3, 2)), (LIF, (3, 2)), (ELMNetwork, (3, 4))])
def test_a_layer_whose_backend_is_gone_is_shown_and_unpickled_but_does_not_run(
    kind: Any, sizes: tuple[int, int]
) -> None:
    operator = {ELM: backends.elm, LIF: backends.alif, ELMNetwork: backends.network}[kind].OPERATOR
    loop = type("Loop", (type(operator.named("reference")),), {"name": "gone"})()
    with backends.offer(operator.name, loop):
        layer = pickle.loads(pickle.dumps(kind(*sizes, backend="gone")))
    for one in (layer, pickle.loads(pickle.dumps(layer))):
        assert one.backend == "gone" and ("backend='gone'" in repr(one) or kind is LIF)  # a LIF shows none
        with pytest.raises(ValueError, match=r"backend must be .*, got 'gone'"):
            one(torch.zeros(1, 2, 3))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(operator.named("native")), "missing", lambda self: "it was not built")
        layer.__dict__["_backend"] = "native"  # as unpickled where it was built
        assert "backend='native'" in repr(layer) or kind is LIF


def test_what_cannot_be_offered_is_refused() -> None:
    with pytest.raises(ValueError, match=r"operator must be one of \['alif', 'elm', 'network'\], got 'lstm'"):
        backends.offer("lstm", Toy())
    with pytest.raises(TypeError, match='a backend of "alif" must derive from ALIFBackend, got Toy'):
        backends.offer("alif", Toy())
    for name in ("torch", "auto"):
        toy = type("Named", (Toy,), {"name": name})()
        with pytest.raises(ValueError, match=f'name of a backend must be new to "elm" and not "auto", got \'{name}\''):
            backends.offer("elm", toy)


def test_a_context_chooses_only_for_the_operators_that_have_such_a_backend(toy: Toy) -> None:
    with backends.use("toy"):
        assert backends.resolve("auto", operator="elm") == "toy"
        assert backends.resolve("auto", operator="alif") != "toy"
    with pytest.raises(ValueError, match="backend must be"):
        backends.resolve("toy", operator="alif")


def test_where_all_refuse_each_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.elm.OPERATOR, "_ordered", {"toy": Toy, "fpga": Missing})
    monkeypatch.setattr(backends.elm.OPERATOR, "_made", {})
    with pytest.raises(
        ValueError, match=r'no backend of "elm" can run this: toy: it takes at most 9 .*; fpga: there is no'
    ):
        ELM(3, 1, num_memory=2, backend="auto")(torch.rand(1, 10, 3))


def test_an_offered_backend_has_second_derivatives(toy: Toy) -> None:
    """Whatever its backward pass: under create_graph the equations' own is taken."""
    found = []
    for name in ("toy", "reference"):
        torch.manual_seed(0)
        neuron, x = ELM(3, 1, num_memory=2, backend=name), torch.rand(1, 4, 3, requires_grad=True)
        (gradient,) = torch.autograd.grad(neuron(x)[0].sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), list(neuron.parameters()), allow_unused=True))
    assert any(wanted is not None and bool(wanted.any()) for wanted in found[1])
    for result, wanted in zip(*found, strict=True):
        torch.testing.assert_close(result, wanted)


class Loop(backends.ALIFBackend):
    name = "loop"
    about = "another loop of a test"

    def scan(
        self, x: Any, weight: Tensor, bias: Tensor, params: ALIFParameters, state: ALIFState, *, lengths: Any = None
    ) -> tuple[Tensor, ALIFState]:
        spikes = []
        for x_t in x.unbind(1):
            s, state = alif_step(torch.nn.functional.linear(x_t, weight, bias), state, params)
            spikes.append(s)
        return torch.stack(spikes, dim=1) + 2.0, state  # told from the reference by its spikes


def test_the_other_operator_takes_offers_too() -> None:
    params = ALIFParameters(torch.full((2,), 0.9), torch.full((2,), 0.9), None, None)
    state = ALIFState(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 1, 2))
    arguments: Any = (torch.ones(1, 4, 3), torch.ones(2, 3), torch.zeros(2), params, state)
    expected = backends.alif.scan(*arguments)[0]
    with backends.offer("alif", Loop()):
        assert torch.equal(backends.alif.scan(*arguments)[0], expected + 2.0)
        assert torch.equal(backends.alif.scan(*arguments, backend="reference")[0], expected)
        assert "loop" in backends.available()
