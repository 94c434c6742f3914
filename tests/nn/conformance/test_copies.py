"""Copies, averages, moves and loads of modules."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from elm_neuro import BranchELM
from elm_neuro.nn import _routing
from tests.nn.conformance.kinds import EVERY, LAYERS, OURS, Called, frames, made, of_kinds, run
from tests.tolerances import assert_close

WIDE = 4000  # inputs: an average that cuts off the rest moves large indices first


def wide_routing(seed: int = 0) -> BranchELM:
    generator = torch.Generator().manual_seed(seed)
    return BranchELM(
        WIDE, 2, num_memory=3, num_branch=3, num_synapse_per_branch=1400, routing="random", generator=generator
    )


@of_kinds(EVERY)
def test_deepcopy_pickle_and_whole_saves_are_the_module(name: str) -> None:
    module = made(name)
    wanted = run(name, module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    whole = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), whole):
        assert torch.equal(run(name, other), wanted)


@of_kinds(EVERY)
def test_functional_call_runs_on_the_tensors_given(name: str) -> None:
    module = made(name)
    wanted = run(name, module)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())

    called = Called(other, tensors)
    assert torch.equal(run(name, called), wanted)
    assert not any(parameter.any() for parameter in other.parameters())


def test_functional_call_with_the_routing_of_another_neuron_and_back() -> None:
    one, two, x = wide_routing(1), wide_routing(2), torch.rand(2, 3, WIDE)
    wanted = one(x)[0], two(x)[0]
    for _ in range(2):
        found = torch.func.functional_call(one, {**two.state_dict()}, (x,))[0]
        assert torch.equal(found, wanted[1]) and torch.equal(one(x)[0], wanted[0])


@of_kinds(EVERY)
def test_averages_of_equal_modules_are_those_modules(name: str) -> None:
    module = made(name)
    wanted = run(name, module)
    for how in ({}, {"multi_avg_fn": get_ema_multi_avg_fn(0.999)}, {"avg_fn": get_ema_avg_fn(0.9)}):
        averaged = AveragedModel(module, use_buffers=True, **how)  # type: ignore[arg-type]
        for _ in range(3):
            averaged.update_parameters(module)
        assert_close(run(name, averaged), wanted)


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.9993])
def test_averages_leave_every_synapse_at_its_input(decay: float) -> None:
    neuron = wide_routing()
    averaged = AveragedModel(neuron, use_buffers=True, avg_fn=get_ema_avg_fn(decay))
    index: Any = neuron.cell.input_to_synapse_indices
    drifted = index.clone()
    for _ in range(20):
        averaged.update_parameters(neuron)
        drifted.copy_(decay * drifted + (1 - decay) * index)
    assert not torch.equal(drifted, index) or decay > 0.9  # what torch makes of an integer buffer
    x = torch.rand(2, 3, WIDE)
    saved = averaged.module.state_dict()["cell.input_to_synapse_indices"]  # before the first call too
    assert torch.equal(saved, index)
    assert_close(averaged(x)[0], neuron(x)[0])
    for _ in range(3):
        averaged.update_parameters(neuron)
    assert_close(copy.deepcopy(averaged).double()(x.double())[0].float(), neuron(x)[0])


def averaged(module: Any) -> Any:
    """An average of equal modules, of which nobody has looked at the routing yet."""
    average = AveragedModel(module, use_buffers=True, avg_fn=get_ema_avg_fn(0.9))
    for _ in range(5):
        average.update_parameters(module)
    moved = average.module.cell.input_to_synapse_indices != module.cell.input_to_synapse_indices
    assert moved.any()
    return average


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("how", ["compiled", "traced", "exported", "vmap", "functional"])
def test_averages_are_the_same_where_torch_traces_them(how: str) -> None:
    neuron, x = wide_routing(), torch.rand(2, 3, WIDE)
    average, wanted = averaged(neuron), neuron(x)[0]
    if how == "compiled":
        torch._dynamo.reset()
        found = torch.compile(average, backend="eager", fullgraph=True)(x)[0]
    elif how == "traced":
        average.requires_grad_(False)
        found = torch.jit.trace(lambda x: average(x)[0], (x,), check_trace=False)(x)
    elif how == "exported":
        found = torch.export.export(average.module, (x,)).module()(x)[0]
    elif how == "vmap":
        found = torch.vmap(lambda one: average(one[None])[0][0])(x)
    else:
        found = torch.func.functional_call(average.module, dict(average.module.named_buffers()), (x,))[0]
    assert_close(found, wanted)


def test_averages_that_are_copied_without_a_trace_leave_the_routing() -> None:
    neuron, x = wide_routing(), torch.rand(2, 3, WIDE)
    average, wanted = averaged(neuron), neuron(x)[0]
    index: Any = neuron.cell.input_to_synapse_indices.clone()
    neuron.eval()
    for own, other in zip(neuron.buffers(), average.module.buffers(), strict=True):
        own.data.copy_(other.data)
    assert not torch.equal(neuron.cell.input_to_synapse_indices, index)
    assert_close(neuron(x)[0], wanted)
    assert torch.equal(neuron.state_dict()["cell.input_to_synapse_indices"], index)
    another = wide_routing(2)
    for own, other in zip(neuron.buffers(), another.buffers(), strict=True):
        own.data.copy_(other.data)
    for own, other in zip(neuron.parameters(), another.parameters(), strict=True):
        own.data.copy_(other.data)
    assert torch.equal(neuron(x)[0], another(x)[0])


@pytest.mark.parametrize("quick", [("cpu",), ()], ids=["where looking is quick", "where it waits for the device"])
def test_a_routing_stays_the_tensor_by_which_backends_know_it(
    quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_routing, "QUICK", quick)
    neuron, x = wide_routing(), torch.rand(2, 3, WIDE)
    cell, wanted = neuron.cell, neuron(x)[0]
    index: Any = cell.input_to_synapse_indices
    version = index._version
    for mode in (True, False):
        neuron.train(mode)
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                for _ in range(2):
                    assert_close(neuron(x)[0], wanted)
                assert cell.settled_routing() is index and index._version == version
    for own, other in zip(neuron.buffers(), averaged(wide_routing()).module.buffers(), strict=True):
        own.data.copy_(other.data)
    neuron.train()
    neuron.eval()  # as validation begins
    assert_close(neuron(x)[0], wanted)
    assert cell.settled_routing() is index and index._version > version  # what was made of it is made anew
    neuron.train()
    assert_close(neuron(x)[0], wanted)


def test_looking_waits_for_a_device_once_for_each_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_routing, "QUICK", ())
    neuron, looked = wide_routing(), []
    compared = type(neuron.cell)._compared
    monkeypatch.setattr(type(neuron.cell), "_compared", lambda *args: looked.append(1) or compared(*args))
    for count in (1, 2):
        neuron.train()
        neuron.cell.settled_routing()
        neuron.eval()
        for _ in range(3):
            neuron.cell.settled_routing()
        assert len(looked) == count


@pytest.mark.filterwarnings("ignore")  # of Lightning, about itself
def test_lightnings_average_leaves_the_routing() -> None:
    lightning = pytest.importorskip("lightning")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("this Lightning has no EMAWeightAveraging")

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.neuron, self.seen = wide_routing(), torch.zeros(0)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss: torch.Tensor = self.neuron(batch[0])[0].square().mean()
            return loss

        def validation_step(self, batch: Any, _: int) -> None:
            self.neuron(batch[0])
            self.seen = self.neuron.cell.settled_routing().clone()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e-3)

    module = Module()
    index: Any = module.neuron.cell.input_to_synapse_indices.clone()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(8, 3, WIDE)), batch_size=2)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[callbacks.EMAWeightAveraging(decay=0.9)], **quiet
    )
    trainer.fit(module, loader, loader)
    assert torch.equal(module.seen, index)
    assert torch.equal(module.state_dict()["neuron.cell.input_to_synapse_indices"], index)
    module.eval()
    assert torch.equal(module.neuron.cell.settled_routing(), index)


def test_a_twin_of_few_digits_is_not_followed() -> None:
    neuron = wide_routing()
    index: Any = neuron.cell.input_to_synapse_indices.clone()
    for tensor in (*neuron.parameters(), *neuron.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.bfloat16()
    for tensor in neuron.buffers():  # as a broadcast between processes
        tensor.copy_(tensor.clone())
    assert torch.equal(neuron.cell.settled_routing(), index)
    average = AveragedModel(neuron, use_buffers=True, avg_fn=get_ema_avg_fn(0.9))
    average.update_parameters(neuron)
    assert torch.equal(average.module.cell.settled_routing(), index)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_routing_stays_whole_numbers_where_all_buffers_are_cast(dtype: torch.dtype) -> None:
    neuron = wide_routing()
    index: Any = neuron.cell.input_to_synapse_indices.clone()
    neuron.type(dtype)
    found: Any = neuron.cell.input_to_synapse_indices
    assert found.dtype == torch.int64 and torch.equal(found, index)
    neuron(torch.rand(2, 3, WIDE, dtype=dtype))


def test_who_writes_the_index_means_it() -> None:
    one, two, x = wide_routing(1), wide_routing(2), torch.rand(2, 3, WIDE)
    one(x)
    index: Any = two.cell.input_to_synapse_indices
    wanted = two(x)[0]
    for write in (
        lambda cell: cell.input_to_synapse_indices.copy_(index),
        lambda cell: setattr(cell, "input_to_synapse_indices", index.clone()),
        lambda cell: cell.load_state_dict(two.cell.state_dict()),
        lambda cell: cell.load_state_dict(two.cell.state_dict(), assign=True),
    ):
        neuron = copy.deepcopy(one)
        neuron(x)
        neuron.load_state_dict({k: v for k, v in two.state_dict().items() if "indices" not in k}, strict=False)
        write(neuron.cell)
        assert torch.equal(neuron(x)[0], wanted)
        averaged = AveragedModel(neuron, use_buffers=True, avg_fn=get_ema_avg_fn(0.9))
        for _ in range(5):
            averaged.update_parameters(neuron)
        assert_close(averaged(x)[0], wanted)


def test_an_index_outside_of_the_inputs_is_not_loaded() -> None:
    neuron = wide_routing()
    state = neuron.state_dict()
    state["cell.input_to_synapse_indices"] = state["cell.input_to_synapse_indices"] + 5
    with pytest.raises(
        RuntimeError, match=r"cell\.input_to_synapse_indices: routing must hold input indices in \[0, 4000\)"
    ):
        neuron.load_state_dict(state)


@of_kinds(EVERY)
def test_modules_built_on_meta_are_filled_from_a_file(name: str) -> None:
    module = made(name)
    with torch.device("meta"):
        torch.manual_seed(0)
        blank = EVERY[name]()
    assert {tensor.device.type for tensor in (*blank.parameters(), *blank.buffers())} == {"meta"}
    filled = blank.to_empty(device="cpu")
    filled.load_state_dict(module.state_dict(), strict=True)
    loose = {key: value for key, value in dict(module.named_buffers()).items() if key not in module.state_dict()}
    for key, value in loose.items():  # not saved: the twin of the routing
        assert filled.get_buffer(key).shape == value.shape
    assert torch.equal(run(name, filled), run(name, module))
    with torch.device("meta"):
        blank = EVERY[name]()
    blank.load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(run(name, blank), run(name, module))


@of_kinds(EVERY)
def test_meta_tensors_go_through_and_say_shapes(name: str) -> None:
    module = made(name)
    wanted = run(name, module).shape
    y = run(name, module.to("meta"), frames().to("meta"))
    assert y.is_meta and y.shape == wanted


def test_a_neuron_that_nobody_has_filled_reads_nothing() -> None:
    with torch.device("meta"):
        neuron = BranchELM(6, 2, num_branch=2, num_synapse_per_branch=3, routing="random")
    neuron.to_empty(device="cpu")
    assert bool((neuron.cell.input_to_synapse_indices == -1).all())


@of_kinds(EVERY)
def test_shared_memory_dtypes_and_devices(name: str) -> None:
    module = made(name)
    wanted = run(name, module)
    shared = copy.deepcopy(module).share_memory()
    assert all(tensor.is_shared() for tensor in (*shared.parameters(), *shared.buffers()))
    assert torch.equal(run(name, shared), wanted)
    there = copy.deepcopy(module).double()
    assert run(name, there).dtype == torch.float64
    assert_close(run(name, there).float(), wanted, scale=10.0)
    back = there.to("cpu", torch.float32)
    assert_close(run(name, back), wanted)


@of_kinds(OURS)
def test_parts_without_gradient_get_none_and_the_others_keep_theirs(name: str) -> None:
    module = made(name)
    y = run(name, module)
    if not y.requires_grad:
        return
    y.square().sum().backward()
    grads = {key: parameter.grad for key, parameter in module.named_parameters()}
    for key in grads:
        other = made(name)
        other.get_parameter(key).requires_grad_(False)
        y = run(name, other)
        if y.requires_grad:
            y.square().sum().backward()
        for found, parameter in other.named_parameters():
            if found == key:
                assert parameter.grad is None
            elif (grad := grads[found]) is not None and parameter.grad is not None:
                assert_close(parameter.grad, grad)


@of_kinds(LAYERS)
def test_parameters_as_one_vector_and_clipped_gradients(name: str) -> None:
    module, other = made(name), made(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(vector, other.parameters())
    assert torch.equal(run(name, other), run(name, module))
    y = run(name, module)
    y.square().sum().backward()
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    assert_close(nn.utils.clip_grad_norm_(module.parameters(), 1e-3), norm)
    assert_close(torch.stack([grad.norm() for grad in grads]).norm(), torch.tensor(1e-3).clamp(max=float(norm)))
