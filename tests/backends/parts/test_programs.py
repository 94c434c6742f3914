"""The operator that compiled code calls, and programs of ``torch.export``: what is refused, what other sizes give."""

from __future__ import annotations

import warnings

import pytest
import torch

from elm_neuro import ELMNetwork, SpikeEvents, backends
from elm_neuro.backends.parts import _traced
from tests.backends.compiled import LAYERS, Output, as_one_graph, call_of, looked_into, spikes
from tests.backends.native_cases import native
from tests.tolerances import assert_close


@native
def test_tensors_that_do_not_fit_are_refused_by_the_operators_call_too() -> None:
    neuron = LAYERS["ELM"]().requires_grad_(False)
    params, x = neuron.cell.effective_parameters(), spikes()

    def run(w_y: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        given = params._replace(w_y=w_y)
        return backends.scan(x, given, None, lengths=lengths, backend="native")[0]

    compiled, lengths = as_one_graph(run), torch.tensor([20, 7, 0])
    assert_close(compiled(params.w_y, lengths), run(params.w_y, lengths))
    with pytest.raises(ValueError, match="between 0 and the 20 steps of x, got 1 to 21"):
        compiled(params.w_y, lengths + 1)
    with pytest.raises(Exception, match=r"b_y must have shape \(30,\), got \(3,\)"):
        compiled(torch.zeros(30, 4), lengths)


@looked_into
@native
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", ["ELM", "ALIF", "ELMNetwork"])
def test_the_operator_passes_opcheck(name: str) -> None:
    # a network of sizes that leave nothing free of what is kept: there is no number there, and opcheck looks
    layer = ELMNetwork(12, 16) if name == "ELMNetwork" else LAYERS[name]()
    events = SpikeEvents.from_frames(spikes(16, 4))
    torch.library.opcheck(torch.ops.elm_neuro.run_pass.default, call_of(layer, events))


@native
@pytest.mark.parametrize("given", ["frames", "events"])
@pytest.mark.parametrize("name", ["ELM", "ALIF", "ELMNetwork"])
def test_a_strangers_program_is_refused_where_its_tensors_do_not_fit(name: str, given: str) -> None:
    x = spikes()
    tensors, sizes, how, integers, reals, _ = call_of(
        LAYERS[name](), SpikeEvents.from_frames(x) if given == "events" else x
    )
    run = torch.ops.elm_neuro.run_pass
    run(tensors, sizes, how, integers, reals, False)
    # how many inputs there are, a network's own tensors do not say
    for place in range(2 if name == "ELMNetwork" and given == "events" else 3):
        wrong = list(sizes)
        wrong[place] += 10**6
        with pytest.raises(ValueError, match=r"must have shape|must rise within|with channels in|rows"):
            run(tensors, wrong, how, integers, reals, False)
    with pytest.raises(ValueError, match="layout of a saved pass must be"):
        run(tensors, sizes, how[:-2] + "9)", integers, reals, False)


@native
@pytest.mark.parametrize("name", ["ELM", "ALIF"])
def test_an_exported_layer_takes_no_samples(name: str) -> None:
    module, x = Output(name), spikes(0, 4)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
        program = torch.export.export(module, (spikes(),), dynamic_shapes=(sizes,)).module()
        assert program(x).shape == module(x).shape


@native
@pytest.mark.parametrize("number", [-2, 10**5])
def test_a_strangers_network_is_refused_where_its_numbers_do_not_fit(number: int) -> None:
    tensors, sizes, how, integers, reals, _ = call_of(LAYERS["ELMNetwork"](), spikes())
    for place in (0, 1, 2):  # branches, widths
        wrong = [number if at == place else own for at, own in enumerate(integers)]
        with pytest.raises(ValueError, match="must"):
            torch.ops.elm_neuro.run_pass(tensors, sizes, how, wrong, reals, False)


def test_only_passes_are_imported() -> None:
    for name, error in (("os.path.join", ValueError), ("elm.nothing", ModuleNotFoundError)):
        how = repr((name, ("()", ()), (True,), _traced.LAYOUT))
        with pytest.raises(error, match=r"a pass must be named as|_nothing_op"):
            torch.ops.elm_neuro.run_pass([torch.zeros(1)], [1], how, [0], [0.0], False)


@native
@pytest.mark.parametrize("name", ["ELM", "ALIF", "ELMNetwork"])
def test_what_was_traced_without_gradients_says_so_and_autocast_changes_nothing(name: str) -> None:
    module, x = Output(name).eval(), torch.rand(3, 20, 12)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x,)).module()
    wanted = module(x).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert_close(program(x), wanted)
    with pytest.raises(RuntimeError, match="traced without gradients"):
        program(x).sum().backward()


@native
@pytest.mark.parametrize("name", ["BranchELM", "ALIF", "ELMNetwork"])
def test_an_exported_layer_takes_other_batches_and_lengths_where_they_are_dynamic(name: str) -> None:
    """In training too."""
    module = Output(name)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (spikes(),), dynamic_shapes=(sizes,)).module()
        for other in (spikes(2, 9), spikes(5, 2), spikes(3, 60), spikes(1, 4), spikes(3, 1)):
            outputs = program(other), module(other)
            assert_close(*outputs)
            grads = [
                torch.autograd.grad(y.square().sum(), list(one.parameters()), allow_unused=True)
                for y, one in zip(outputs, (program, module), strict=True)
            ]
            for one, another in zip(*grads, strict=True):
                assert (one is None) == (another is None)
                if one is not None:
                    assert_close(one, another)
