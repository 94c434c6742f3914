"""Weights in bfloat16 and float16: what is stored is narrow, what is computed is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from elm_neuro import ALIF, ELM, LIF, ELMCell, SpikeEvents, SpikingELM
from tests.nn.conformance.kinds import EVERY, OURS, frames, made, of_kinds, run
from tests.tolerances import assert_close

NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
EPS = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@NARROW
@of_kinds(EVERY)
@torch.no_grad()
def test_outputs_are_those_of_the_same_numbers_in_float64(name: str, dtype: torch.dtype) -> None:
    module = made(name).to(dtype)
    exact = copy.deepcopy(module).double()
    x = frames()
    y, wanted = run(name, module, x.to(dtype)), run(name, exact, x.double())
    assert y.dtype == dtype
    if ((wanted == 0) | (wanted == 1)).all():  # spikes: but for a readout at the threshold they are the same
        assert float((y.double() != wanted).double().mean()) < 0.05
    elif name == "nn.LSTM":
        assert_close(y.double(), wanted, dtype=torch.bfloat16)
    else:  # rounded once, at the end
        assert float((y.double() - wanted).abs().max()) <= 1.1 * EPS[dtype] * float(wanted.abs().max())


@NARROW
@of_kinds(OURS)
def test_narrow_modules_learn_and_hand_on_their_states(name: str, dtype: torch.dtype) -> None:
    module: Any = made(name).to(dtype)
    exact = copy.deepcopy(module).double()
    x = frames()
    y, wanted = run(name, module, x.to(dtype)), run(name, exact, x.double())
    if not y.requires_grad or not torch.equal(y.double() > 0.5, wanted > 0.5):
        return
    y.float().sum().backward(), wanted.sum().backward()
    for key, parameter in module.named_parameters():
        grad = exact.get_parameter(key).grad
        if grad is None or parameter.grad is None:
            continue
        assert parameter.grad.dtype == dtype
        assert float((parameter.grad.double() - grad).abs().max()) <= 8 * EPS[dtype] * float(
            grad.abs().max().clamp(min=1e-3)
        )


@NARROW
@pytest.mark.parametrize("stepwise", [False, True])
def test_a_memory_of_a_second_stays_alive(dtype: torch.dtype, stepwise: bool) -> None:
    torch.manual_seed(0)
    neuron = ELM(3, 2, num_memory=2, tau_m_init=(1000.0, 1000.0), tau_m_bounds=(1.0, 2000.0)).to(dtype)
    exact = copy.deepcopy(neuron).double()
    x = torch.ones(1, 300, 3, dtype=dtype)
    neuron.requires_grad_(False), exact.requires_grad_(False)
    wanted, after = exact(x.double())
    if stepwise:
        cell: ELMCell = neuron.cell
        state, outputs = cell.initial_state(1), []
        for x_t in x.unbind(1):
            y_t, state = cell(x_t, state)
            outputs.append(y_t)
        y = torch.stack(outputs, 1)
    else:
        y, state = neuron(x)
    assert state.m.dtype == torch.float32 and float(after.m.abs().max()) > 0.5
    assert_close(state.m.double(), after.m, dtype=torch.float32, scale=5.0)
    assert float((y.double() - wanted).abs().max()) <= 1.1 * EPS[dtype] * float(wanted.abs().max())


@NARROW
def test_decays_of_adaptive_neurons_stay_below_1(dtype: torch.dtype) -> None:
    layer = ALIF(3, 2, tau_v=900.0, tau_a=900.0).to(dtype)
    params = layer.cell.effective_parameters()
    assert params.p.dtype == params.beta.dtype == torch.float32
    assert float(params.p.detach().max()) <= 0.9991 and float(params.beta.detach().max()) <= 0.9991
    x = 0.01 * torch.ones(1, 200, 3, dtype=dtype)
    for one in (layer, LIF(3, 2, tau_v=900.0).to(dtype)):
        _, state = one(x)
        _, wanted = copy.deepcopy(one).double()(x.double())
        assert_close(state.v.double(), wanted.v, dtype=torch.float32, scale=5.0)


def test_states_of_narrow_layers_are_float32_and_no_others_pass() -> None:
    neuron = ELM(3, 2, num_memory=2).bfloat16()
    x = torch.ones(1, 2, 3, dtype=torch.bfloat16)
    state = neuron.initial_state(1)
    assert state.b.dtype == state.m.dtype == torch.float32
    with pytest.raises(TypeError, match=r"state\.b must have dtype torch\.float32, got torch\.bfloat16"):
        neuron(x, type(state)(*(part.bfloat16() for part in state)))
    with pytest.raises(TypeError, match=r"x must have dtype torch\.bfloat16 like the parameters, got torch\.float32"):
        neuron(x.float())
    assert neuron(SpikeEvents.from_frames(x.float()))[0].dtype == torch.bfloat16


def test_lightning_trains_in_bf16_true_on_events() -> None:
    lightning = pytest.importorskip("lightning")
    torch.manual_seed(0)
    events = [SpikeEvents.from_frames((torch.rand(8, 10, 6) < 0.3).float() * 2) for _ in range(4)]
    seen: list[Any] = []

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = SpikingELM(ELM(6, 8, num_memory=3, w_s_init=2.0), threshold=0.1)
            self.readout = nn.Linear(8, 3)

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            x, target = batch
            seen.append(x)
            spikes, _ = self.net(x)
            loss = nn.functional.cross_entropy(self.readout(spikes).mean(1), target)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    task = Task()
    loader = [(batch, torch.arange(8) % 3) for batch in events]
    trainer = lightning.Trainer(
        precision="bf16-true", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    before = {name: value.clone() for name, value in task.named_parameters()}
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(task, torch.utils.data.DataLoader(loader, batch_size=None, collate_fn=lambda one: one))
    assert all(isinstance(x, SpikeEvents) for x in seen) and len(seen) == 4
    moved = [
        name
        for name, value in task.named_parameters()
        if not torch.equal(value.float(), before[name].bfloat16().float())
    ]
    assert "net.core.cell.w_y.weight" in moved and "readout.weight" in moved
    assert all(bool(torch.isfinite(value).all()) for value in task.parameters())
