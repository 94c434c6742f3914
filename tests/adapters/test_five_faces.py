"""One spiking network with the same weights, plain, in the faces of snnTorch, norse and spikingjelly, and through NIR:
the same spikes and gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from elm_neuro import ELM, SpikingELM
from elm_neuro.functional import ATan
from tests.tolerances import assert_close

pytest.importorskip("snntorch")
pytest.importorskip("norse")
pytest.importorskip("spikingjelly")
pytest.importorskip("nirtorch")
from elm_neuro.adapters import nir as nir_face
from elm_neuro.adapters import norse as norse_face
from elm_neuro.adapters import snntorch as snntorch_face
from elm_neuro.adapters import spikingjelly as jelly_face

SIZE, HIDDEN, MEMORY, CLASSES = 12, 6, 5, 3
OPTIONS = {"num_neuron": HIDDEN, "w_s_init": 1.5}
THRESHOLD = 0.0625


class Plain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.elm = SpikingELM(
            ELM(SIZE, 1, MEMORY, flatten_output=True, **OPTIONS),
            threshold=THRESHOLD,
            surrogate=ATan(),
            reset="subtract",
        )
        self.core, self.readout = self.elm.core, torch.nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        spikes = self.elm(x.transpose(0, 1))[0].transpose(0, 1)
        return spikes, self.readout(spikes)


class SnnTorch(torch.nn.Module):
    def __init__(self, face: Callable[..., torch.nn.Module], *, stepped: bool) -> None:
        super().__init__()
        spiking = {"threshold": THRESHOLD, "reset_mechanism": "subtract", "init_hidden": True}
        self.elm, self.stepped = face(SIZE, 1, MEMORY, **spiking, **OPTIONS), stepped
        self.core, self.readout = self.elm.core, torch.nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        snntorch_face.reset(self)
        spikes = torch.stack([self.elm(x_t) for x_t in x]) if self.stepped else self.elm(x)
        return spikes, self.readout(spikes)


class Norse(torch.nn.Module):
    def __init__(self, face: Callable[..., torch.nn.Module], *, stepped: bool) -> None:
        super().__init__()
        self.elm, self.stepped = (
            face(SIZE, 1, MEMORY, threshold=THRESHOLD, surrogate=ATan(), reset="subtract", **OPTIONS),
            stepped,
        )
        self.core, self.readout = self.elm.core.core, torch.nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.stepped:
            spikes, _ = self.elm(x)
            return spikes, self.readout(spikes)
        state, steps = None, []
        for x_t in x:
            s_t, state = self.elm(x_t, state)
            steps.append(s_t)
        return torch.stack(steps), self.readout(torch.stack(steps))


class SpikingJelly(torch.nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        spiking = {"v_threshold": THRESHOLD, "reset": "subtract", "step_mode": mode}
        self.elm = jelly_face.ELM(SIZE, 1, MEMORY, **spiking, **OPTIONS)
        self.core, self.readout = self.elm.core.core, torch.nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.elm.reset()
        spikes = self.elm(x) if self.elm.step_mode == "m" else torch.stack([self.elm(x_t) for x_t in x])
        return spikes, self.readout(spikes)


class Nir(torch.nn.Module):
    """What a graph of NIR, of a network with other weights, is made into."""

    def __init__(self) -> None:
        super().__init__()
        plain = Plain().double()
        self.net = nir_face.from_nir(nir_face.to_nir(torch.nn.Sequential(plain.elm, plain.readout)))
        elm, self.readout = self.net.get_submodule("_0"), self.net.get_submodule("_1")
        self.core: torch.nn.Module = elm.get_submodule("core")
        elm.register_forward_hook(lambda module, inputs, output: setattr(self, "spikes", output[0].transpose(0, 1)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, _ = self.net(x.transpose(0, 1))
        return self.spikes, y.transpose(0, 1)


FACES: dict[str, Callable[[], torch.nn.Module]] = {
    "snnTorch step": lambda: SnnTorch(snntorch_face.ELM, stepped=True),
    "snnTorch sequence": lambda: SnnTorch(snntorch_face.ELMSequence, stepped=False),
    "norse cell": lambda: Norse(norse_face.ELMCell, stepped=True),
    "norse layer": lambda: Norse(norse_face.ELM, stepped=False),
    "spikingjelly step": lambda: SpikingJelly("s"),
    "spikingjelly sequence": lambda: SpikingJelly("m"),
    "NIR": Nir,
}


@pytest.mark.parametrize("name", FACES)
def test_faces_spike_and_learn_alike(name: str) -> None:
    torch.manual_seed(0)
    plain, other = Plain().double(), FACES[name]().double()
    other.core.load_state_dict(plain.core.state_dict())
    other.readout.load_state_dict(plain.readout.state_dict())
    x = torch.poisson(torch.full((40, 4, SIZE), 0.3, dtype=torch.float64))
    target = torch.randn(40, 4, CLASSES, dtype=torch.float64)
    results = []
    for network in (plain, other):
        spikes, y = network(x)
        (y * target).sum().backward()
        gradients = [p.grad for part in (network.core, network.readout) for p in part.parameters()]
        results.append((spikes, y, gradients))
    (spikes, y, gradients), (spikes_, y_, gradients_) = results
    assert 0.02 < float(spikes.detach().mean()) < 0.98
    assert torch.equal(spikes, spikes_)
    assert_close(y_, y)
    for ours, theirs in zip(gradients_, gradients, strict=True):
        assert_close(ours, theirs)
