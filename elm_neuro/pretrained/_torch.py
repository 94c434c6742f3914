"""torch's plain layers, saved by the values of their constructors, and ``nn.Sequential`` of anything known."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from elm_neuro.pretrained._kinds import Kind, add, describe, described

_PLAIN: dict[type[nn.Module], dict[str, type | tuple[type, ...]]] = {
    nn.Linear: {"in_features": int, "out_features": int, "bias": bool},
    nn.LayerNorm: {"normalized_shape": list, "eps": float, "elementwise_affine": bool, "bias": bool},
    nn.Dropout: {"p": (float, int), "inplace": bool},
    nn.ReLU: {"inplace": bool},
    nn.SiLU: {"inplace": bool},
    nn.GELU: {"approximate": str},
    nn.Tanh: {},
    nn.Sigmoid: {},
    nn.Identity: {},
    nn.Flatten: {"start_dim": int, "end_dim": int},
}


def _plain(module_class: type[nn.Module], types: dict[str, type | tuple[type, ...]]) -> Kind:
    def describe(module: Any) -> dict[str, Any]:
        values = {name: getattr(module, name) for name in types}
        if "bias" in types:
            values["bias"] = module.bias is not None
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def read(values: dict[str, Any]) -> dict[str, Any]:
        if set(values) != set(types):
            raise ValueError(f"config of {module_class.__name__} must hold {sorted(types)}, got {sorted(values)}")
        for name, kind in types.items():
            value = values[name]
            numbers = value if isinstance(value, list) else [value]
            wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
            if wrong or (kind is list and not all(type(number) is int for number in numbers)):
                raise TypeError(f"{name} of {module_class.__name__} must not be {value!r:.100}")
        return values

    return Kind(module_class.__name__, module_class, describe, read, lambda values: module_class(**values))


class _Sequence(NamedTuple):
    """The configuration of an ``nn.Sequential``: names, kinds and configurations of its modules."""

    parts: tuple[tuple[str, Kind, Any], ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> _Sequence:
        pairs = values.get("modules")
        if not isinstance(pairs, list) or set(values) != {"modules"}:
            raise ValueError(f"config of Sequential must hold modules only, got {sorted(values)}")
        if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
            raise ValueError("modules of Sequential must be pairs of a name and an object")
        return cls(tuple((name, *described(inner, f"module {name}")) for name, inner in pairs))

    def check_size(self, num_tensors: int) -> None:
        for _, _, config in self.parts:
            if (check_size := getattr(config, "check_size", None)) is not None:
                check_size(num_tensors)

    def build(self) -> nn.Module:
        network = nn.Sequential()
        for name, kind, config in self.parts:
            try:
                network.add_module(name, kind.build(config))
            except KeyError as error:  # a name with a dot, of an attribute, or twice
                raise ValueError(f"modules of Sequential must have names of their own, got {name!r:.100}") from error
        return network


def _describe_sequence(network: nn.Sequential) -> dict[str, Any]:
    modules, first = [], dict[int, str]()
    for name, part in network._modules.items():  # one without numbers may stand at several places
        place = first.setdefault(id(part), name)
        if place != name and part.state_dict():
            raise ValueError(f"module {name} must be one of its own, got module {place} again, whose numbers it shares")
        modules.append([name, describe(part, f"module {name}")])
    return {"modules": modules}


for _module_class, _types in _PLAIN.items():
    add(_plain(_module_class, _types))
add(Kind("Sequential", nn.Sequential, _describe_sequence, _Sequence.from_dict, _Sequence.build))
