"""A module that does more than its class, by a forward of its own or by hooks, is never exported as its class."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from elm_neuro import ALIF, ELM, LIF, ALIFCell, BranchELM, ELMCell, SpikingELM
from tests.tolerances import assert_close

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
export = pytest.importorskip("elm_neuro.export", exc_type=ImportError)

Maker = Callable[[], nn.Module]


def snntorch_face(name: str, *sizes: int, **options: Any) -> nn.Module:
    face: nn.Module = getattr(pytest.importorskip("elm_neuro.adapters.snntorch", exc_type=ImportError), name)(
        *sizes, **options
    )
    return face


def norse_face(name: str, *sizes: int, **options: Any) -> nn.Module:
    face: nn.Module = getattr(pytest.importorskip("elm_neuro.adapters.norse", exc_type=ImportError), name)(
        *sizes, **options
    )
    return face


def classifier(name: str) -> nn.Module:
    training = pytest.importorskip("elm_neuro.training", exc_type=ImportError)
    kinds: dict[str, Callable[[], nn.Module]] = {
        "SequenceClassifier": lambda: training.SequenceClassifier(ELM(5, 3, num_memory=4)),
        "SpikingNetwork": lambda: training.SpikingNetwork(LIF(5, 4), ELM(4, 3, num_memory=4)),
        "LIFNetwork": lambda: training.LIFNetwork(LIF(5, 4), LIF(4, 3, recurrent=True), output_size=2),
    }
    return kinds[name]()


def leaky() -> nn.Module:
    snntorch = pytest.importorskip("snntorch")
    return nn.Sequential(nn.Linear(5, 4), snntorch.Leaky(0.9, threshold=0.3))


MODULES: dict[str, Maker] = {
    "ELM": lambda: ELM(5, 2, num_memory=4),
    "ELMCell": lambda: ELMCell(5, 2, num_memory=4),
    "BranchELM": lambda: BranchELM(5, 2, num_memory=4, num_branch=2, num_synapse_per_branch=2, routing="random"),
    "SpikingELM": lambda: SpikingELM(ELM(5, 2, num_memory=4), threshold=0.02),
    "SpikingELM with reset": lambda: SpikingELM(ELM(5, 2, num_memory=4), threshold=0.02, reset="subtract"),
    "ALIF": lambda: ALIF(5, 3),
    "LIF": lambda: LIF(5, 3),
    "ALIFCell": lambda: ALIFCell(5, 3),
    "Linear in Sequential": lambda: nn.Sequential(nn.Linear(5, 3), LIF(3, 2)),
    "SiLU in Sequential": lambda: nn.Sequential(nn.Linear(5, 3), nn.SiLU(), nn.Linear(3, 2)),
    "SequenceClassifier": lambda: classifier("SequenceClassifier"),
    "SpikingNetwork": lambda: classifier("SpikingNetwork"),
    "LIFNetwork": lambda: classifier("LIFNetwork"),
    "snnTorch's Leaky": leaky,
    "snnTorch face of ELM": lambda: snntorch_face("ELM", 5, 2, num_memory=4, threshold=0.02),
    "snnTorch face of ELM, hidden": lambda: snntorch_face("ELM", 5, 2, num_memory=4, threshold=0.02, init_hidden=True),
    "snnTorch face of sequences": lambda: snntorch_face("ELMSequence", 5, 2, num_memory=4, threshold=0.02),
    "snnTorch face of ALIF": lambda: snntorch_face("ALIF", 5, 3),
    "norse face of ELM": lambda: norse_face("ELM", 5, 2, num_memory=4, threshold=0.02),
    "norse face of ELM, readout": lambda: norse_face("ELM", 5, 2, num_memory=4, spiking=False),
    "norse face of a cell": lambda: norse_face("ELMCell", 5, 2, num_memory=4, threshold=0.02),
    "norse face of ALIF": lambda: norse_face("ALIF", 5, 3),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, ALIFCell):
                part.weight *= 5.0
    return module


def written(module: nn.Module, folder: Path, **options: Any) -> Any:
    return export.to_onnx(module, folder / "model.onnx", **({"form": "sequence"} | options))


def doubled(found: Any) -> Any:
    """Twice the outputs, the states as they are."""
    return (2.0 * found[0], *found[1:]) if isinstance(found, tuple) else 2.0 * found


@pytest.mark.parametrize("name", MODULES)
def test_the_module_itself_is_exported(tmp_path: Path, name: str) -> None:
    assert written(made(name), tmp_path).compared["y"] > 0


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_a_subclass_with_a_forward_of_its_own_is_refused(tmp_path: Path, name: str, verify: bool) -> None:
    module = made(name)
    part = module[-1] if isinstance(module, nn.Sequential) else module
    kind = type(part)

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        return doubled(kind.forward(self, *arguments, **options))

    part.__class__ = type(f"Own{kind.__name__}", (kind,), {"forward": forward})
    with pytest.raises(
        export.ExportError, match=rf"must compute what \w+ computes .*got a Own{kind.__name__} with a forward"
    ):
        written(module, tmp_path, verify=verify)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", MODULES)
def test_the_check_calls_the_module_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Its class computes something else than the export has been told of: only a call can show it."""
    module = made(name)
    part = module[0] if name.startswith("Linear") else module[-1] if isinstance(module, nn.Sequential) else module
    owner: Any = next(kind for kind in type(part).__mro__ if "forward" in vars(kind))
    before = owner.forward

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        return doubled(before(self, *arguments, **options))

    monkeypatch.setattr(owner, "forward", forward)
    with pytest.raises(export.ExportError, match=r"must compute what \w+ computes, got outputs that are off by"):
        written(module, tmp_path)


@pytest.mark.parametrize("kind", ["forward", "pre", "global"])
@pytest.mark.parametrize("name", MODULES)
def test_hooks_of_the_module_and_of_all_that_is_inside_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    def hook(*_: Any) -> None:
        return None

    module = made(name)
    for place, part in module.named_modules():
        if kind == "global":
            handle = nn.modules.module.register_module_forward_hook(hook)
        else:
            handle = part.register_forward_hook(hook) if kind == "forward" else part.register_forward_pre_hook(hook)
        try:
            with pytest.raises(
                export.ExportError, match=r"must have no hooks around its forward .* got .*hook: remove"
            ):
                written(module, tmp_path, verify=False)
        finally:
            handle.remove()
        if kind == "global":
            break
        assert place is not None
    written(module, tmp_path, verify=False)


def test_a_forward_that_was_assigned_is_refused(tmp_path: Path) -> None:
    neuron: Any = made("ELM")
    before = neuron.forward
    neuron.forward = lambda *arguments: doubled(before(*arguments))
    with pytest.raises(export.ExportError, match="got a ELM with a forward of its own"):
        written(neuron, tmp_path)


class LoRA(nn.Module):
    """A linear layer and a correction of low rank, as adapters of large models are."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.ones(1, base.weight.shape[1]))
        self.b = nn.Parameter(torch.ones(base.weight.shape[0], 1))

    @property
    def weight(self) -> Tensor:
        return self.base.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor:
        return self.base.bias  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + self.b @ self.a, self.bias)


def test_an_inner_layer_of_another_class_is_refused(tmp_path: Path) -> None:
    neuron: Any = made("ELM")
    neuron.cell.w_y = LoRA(neuron.cell.w_y)
    with pytest.raises(
        export.ExportError, match="w_y of the neuron must be of the class Affine to be exported, got LoRA"
    ):
        written(neuron, tmp_path)
    spiking: Any = made("SpikingELM")
    spiking.output.__class__ = type("Own", (type(spiking.output),), {"forward": lambda self, *args: args})
    with pytest.raises(export.ExportError, match="output of the neuron must compute what SpikeOutput computes"):
        written(spiking, tmp_path)


def test_a_correction_by_parametrize_is_in_the_model(tmp_path: Path) -> None:
    class Low(nn.Module):
        def __init__(self, shape: torch.Size) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(1, shape[1])), nn.Parameter(torch.ones(shape[0], 1))

        def forward(self, weight: Tensor) -> Tensor:
            return weight + self.b @ self.a

    neuron: Any = made("ELM")
    plain = copy.deepcopy(neuron)
    parametrize.register_parametrization(neuron.cell.w_y, "weight", Low(neuron.cell.w_y.weight.shape))
    written(neuron, tmp_path)
    with pytest.raises(export.ExportError, match="off by y"):
        export.verify(tmp_path / "model.onnx", plain)


NORMS: dict[str, Callable[[nn.Module], Any]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),
    "pruned by identity": lambda layer: prune.identity(layer, "weight"),
    "pruned twice": lambda layer: [prune.l1_unstructured(layer, "weight", amount=0.3) for _ in range(2)],
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": old_spectral_norm,
    "old weight_norm": old_weight_norm,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_a_normed_linear_layer_is_exported_as_it_is_called(tmp_path: Path, norm: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    NORMS[norm](net[0])
    net.eval()  # what the norm has brought too
    written(net, tmp_path)
    with torch.no_grad():  # weights from elsewhere: what the last call wrote is stale
        for name, parameter in net.named_parameters():
            if "weight" in name:
                parameter.mul_(3.0)
    stale = net[0].weight.detach().clone()
    written(net, tmp_path)
    session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "model.onnx"))
    if not hasattr(net[0], "parametrizations"):
        assert torch.equal(net[0].weight, stale)  # the module is left as it was
    x = torch.randn(2, 6, 5)
    with torch.no_grad():
        assert_close(torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0]), net(x))


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, old_spectral_norm])
def test_a_spectral_norm_in_training_is_refused_and_left_as_it_was(tmp_path: Path, norm: Any) -> None:
    neuron: Any = made("ELM").train()
    norm(neuron.cell.mlp[0])
    before = copy.deepcopy(neuron.state_dict())
    with pytest.raises(export.ExportError, match=r"in training, got one in cell\.mlp\.0.*: call module\.eval\(\)"):
        written(neuron, tmp_path)
    written(neuron.eval(), tmp_path)
    export.verify(tmp_path / "model.onnx", neuron)
    for name, tensor in before.items():
        assert not isinstance(tensor, Tensor) or torch.equal(neuron.state_dict()[name], tensor)


def test_a_pruned_neuron_that_was_loaded_is_exported_as_it_computes(tmp_path: Path) -> None:
    neuron: Any = made("ELM")
    prune.l1_unstructured(neuron.cell.w_y, "weight", amount=0.5)
    other = copy.deepcopy(neuron.state_dict())
    other["cell.w_y.weight_orig"] *= -3.0
    neuron.load_state_dict(other)
    written(neuron, tmp_path)
    session = pytest.importorskip("onnxruntime").InferenceSession(str(tmp_path / "model.onnx"))
    x = torch.randn(2, 6, 5)
    zeros = {name: part.numpy() for name, part in neuron.initial_state(2)._asdict().items()}
    found = torch.from_numpy(session.run(["y"], {"x": x.numpy(), **zeros})[0])
    prune.remove(neuron.cell.w_y, "weight")
    with torch.no_grad():
        weight = other["cell.w_y.weight_orig"] * other["cell.w_y.weight_mask"]
        neuron.cell.w_y.weight.copy_(weight)
        assert_close(found, neuron(x)[0])


def test_the_networks_of_norse_are_chains_and_others_with_a_forward_are_not(tmp_path: Path) -> None:
    norse, faces = (
        pytest.importorskip("norse.torch"),
        pytest.importorskip("elm_neuro.adapters.norse", exc_type=ImportError),
    )
    written(norse.SequentialState(faces.ELM(5, 2, num_memory=4, threshold=0.02), faces.ALIF(2, 2)), tmp_path)

    class Residual(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return x + super().forward(x)

    with pytest.raises(export.ExportError, match="must compute what Sequential computes"):
        written(Residual(nn.Linear(3, 3)), tmp_path)
    with pytest.raises(export.ExportError, match="0 of the module must compute what Sequential computes"):
        written(nn.Sequential(Residual(nn.Linear(3, 3)), nn.Linear(3, 2)), tmp_path)


def test_verification_leaves_hidden_states_and_generators_alone(tmp_path: Path) -> None:
    face: Any = made("snnTorch face of ELM, hidden")
    with torch.no_grad():
        face(torch.randn(3, 5))
    before = {name: getattr(face, name).clone() for name in face.state_names}
    written(face, tmp_path)
    assert all(torch.equal(getattr(face, name), value) for name, value in before.items())
    assert face.init_hidden and not face.output
