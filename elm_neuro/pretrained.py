"""Modules in the package's own folders: a kind, its configuration and its tensors, as safetensors and JSON.

Knows no neuron: a class makes itself known by :func:`register`. No file that is read can run code, and its sizes are
checked before anything of that size is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from elm_neuro.files import json_object, read_file, write_whole

__all__ = ["Kind", "Saved", "from_pretrained", "kinds", "register", "save_pretrained"]

FORMAT = "elm_neuro"
FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Class = TypeVar("Class", bound=type[nn.Module])


@dataclass(frozen=True)
class Kind:
    """How the modules of one class are written and read."""

    name: str  # in the files
    module_class: type[nn.Module]
    describe: Callable[[Any], dict[str, Any]]  # a module's configuration, as JSON holds it
    read: Callable[[dict[str, Any]], Any]  # the configuration that JSON holds, checked
    build: Callable[[Any], nn.Module]  # a module of such a configuration, with any weights


_KINDS: dict[str, Kind] = {}


def register(module_class: Class) -> Class:
    """Make a class of modules known to :func:`save_pretrained` and :func:`from_pretrained`, under its name.

    Use it as a decorator, or call it once for a class of someone else. The class needs

    - ``config_type``: a class of configurations with ``to_dict()`` and a classmethod ``from_dict(values)``, which
      checks what it is given: the values come from a stranger's file;
    - ``from_config(config)``, a classmethod that makes a module with new weights. To load one it is called with the
      default device "meta", so that nothing is allocated: it must not look at the values of tensors that it makes;
    - `config`, an attribute of the module.

    It may have ``adopt_tensors(tensors)``, called on the module before it takes tensors from a file, with those under
    its name: to refuse values that do not fit. A configuration may have ``check_size(num_tensors)``: to refuse one that
    asks for more layers than the file has tensors.

    Raises:
        TypeError: a part is missing; the message names it.
        ValueError: another class is known by that name.

    >>> register(nn.Tanh)  # known already
    <class 'torch.nn.modules.activation.Tanh'>
    """
    known = _KINDS.get(module_class.__name__)
    if known is not None and known.module_class is module_class:
        return module_class
    config_type = getattr(module_class, "config_type", None)
    parts = {
        "config_type": config_type is not None,
        "config_type.to_dict": hasattr(config_type, "to_dict"),
        "config_type.from_dict": hasattr(config_type, "from_dict"),
        "from_config": hasattr(module_class, "from_config"),
    }
    if missing := [part for part, there in parts.items() if not there]:
        raise TypeError(f"{module_class.__name__} must have {', '.join(missing)} to be saved, got a class without")
    _add(
        Kind(
            module_class.__name__,
            module_class,
            describe=lambda module: dict(module.config.to_dict()),
            read=config_type.from_dict,  # type: ignore[union-attr]  # checked above
            build=module_class.from_config,  # type: ignore[attr-defined]
        )
    )
    return module_class


def _add(kind: Kind) -> None:
    if kind.name in _KINDS and _KINDS[kind.name].module_class.__qualname__ != kind.module_class.__qualname__:
        known = _KINDS[kind.name].module_class
        raise ValueError(f"{kind.name} must be the name of one class, got {known} and {kind.module_class}")
    _KINDS[kind.name] = kind


def kinds() -> list[str]:
    """Names of the classes that can be saved.

    >>> {"ELM", "SpikingELM", "Sequential", "Linear"} <= set(kinds())
    True
    """
    return sorted(_KINDS)


def kind_of(name: object) -> Kind:
    """The kind of that name.

    Raises:
        ValueError: it is none of those known.
    """
    if isinstance(name, str) and name in _KINDS:
        return _KINDS[name]
    raise ValueError(f"class must be one of {', '.join(kinds())}, got {name!r:.100}")


def describe(module: nn.Module, name: str = "module") -> dict[str, Any]:
    """Class and configuration of a module, as JSON holds them.

    Raises:
        TypeError: its class is not known, or something in it cannot be saved.
    """
    kind = _KINDS.get(type(module).__name__)
    if kind is None or kind.module_class is not type(module):
        core = getattr(module, "core", None)
        lent = core is not None and type(core).__name__ in _KINDS
        hint = " (a neuron lent to another library has it as .core)" if lent else ""
        raise TypeError(f"{name} must be one of {', '.join(kinds())}, got {type(module).__name__}{hint}")
    return {"class": kind.name, "config": kind.describe(module)}


def described(values: object, name: str) -> tuple[Kind, Any]:
    """Kind and configuration of what :func:`describe` gave: the inverse.

    Raises:
        ValueError: `values` is not of that form, or the class is not known.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} must be an object with class and config, got {values!r:.100}")
    kind, config = kind_of(values.get("class")), values.get("config")
    if not isinstance(config, dict):
        raise ValueError(f"config must be an object, got {type(config).__name__}")
    return kind, kind.read(config)


def save_pretrained(module: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Write a module as ``model.safetensors`` and ``config.json``; :func:`from_pretrained` reads it back bit by bit.

    The config holds the checksum of the weights and is put in place last, so that a folder whose writing was cut off is
    not taken for a whole one. A save that fails leaves what was there before.

    Args:
        module: an :class:`elm_neuro.ELM` or another layer of :mod:`elm_neuro`, an ``nn.Sequential`` of them and of
            plain layers of torch, or what else :func:`register` made known; of any dtype, on any device.
        directory: folder to write into; made where it is missing, its two files replaced where they exist.

    Raises:
        TypeError: `module` is something else, or something in it cannot be saved.
        ValueError: its tensors are not those of its configuration.
        OSError: `directory` is a file, or cannot be written.

    >>> import tempfile
    >>> from elm_neuro import ELM
    >>> neuron = ELM(3, 1, num_memory=2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_pretrained(neuron, folder)
    ...     same = from_pretrained(folder)
    >>> same.config == neuron.config and torch.equal(same.w_s, neuron.w_s)
    True
    """
    description = describe(module)
    directory = Path(directory)
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }
    kind = kind_of(description["class"])
    _checked_blank(kind, kind.read(description["config"]), tensors, "module")
    weights = safetensors.torch.save(tensors)
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "class": description["class"],
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "config": description["config"],
    }
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"directory must be a folder, got the file {directory}")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(
            {directory / WEIGHTS_FILE: weights, directory / CONFIG_FILE: json.dumps(config, indent=2).encode() + b"\n"}
        )
    except OSError as error:
        raise OSError(
            error.errno, f"directory must be a folder that can be written, got {directory}: {error.strerror or error}"
        ) from error


def from_pretrained(
    directory_or_hub_id: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    revision: str | None = None,
) -> Any:
    """Read a module that :func:`save_pretrained` wrote, from a folder or from the Hugging Face hub.

    Args:
        directory_or_hub_id: a folder, or "owner/name" on the hub where there is no such folder (needs the extra "hub").
        device: where to put it; the CPU by default.
        dtype: floating type to convert it to; as saved by default.
        backend: as in :class:`elm_neuro.ELM`, for every layer in it that has a backend of that name.
        revision: branch, tag or commit on the hub.

    Returns:
        A module of the class that was saved; weights, routing and time constants as saved.

    Raises:
        FileNotFoundError: no such folder, or a file is missing in it.
        ValueError: a file is damaged, does not fit the other, is of a newer format, or of a class that is not known:
            the message names those that are.
        ImportError: an id of the hub was given and huggingface_hub is not installed.
    """
    if dtype is not None and dtype not in FLOATS:
        raise ValueError(f"dtype must be one of {[str(one) for one in FLOATS]}, got {dtype}")
    directory = _folder(directory_or_hub_id, revision)
    config_file, weights_file = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    values, weights = json_object(config_file), read_file(weights_file)
    kind, config = _checked_config(values, config_file)
    if hashlib.sha256(weights).hexdigest() != values.get("weights_sha256"):
        raise ValueError(
            f"{weights_file} must be the file that {CONFIG_FILE} was written with (sha256): it is cut short, "
            "changed, or of another save"
        )
    try:
        tensors = safetensors.torch.load(weights)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{weights_file} must be a whole safetensors file, got {len(weights)} bytes: {error}"
        ) from error
    module = with_tensors(kind, config, tensors, str(directory))
    if backend != "auto":
        _choose_backend(module, backend)
    return module.to(device=device, dtype=dtype)


def with_tensors(kind: Kind, config: Any, tensors: dict[str, Tensor], source: str) -> Any:
    """A module of that configuration that holds these tensors themselves; torch's random numbers stay as they were.

    Raises:
        ValueError: the tensors are not those of the configuration; the message begins with `source`.
    """
    module = _checked_blank(kind, config, tensors, source)
    places = module.state_dict()
    whole = {name: one if one.is_floating_point() else one.to(places[name].dtype) for name, one in tensors.items()}
    module.load_state_dict(whole, assign=True)
    return module


def blank(kind: Kind, config: Any, num_tensors: int) -> nn.Module:
    """A module of that configuration on the device "meta": names, shapes and types of its tensors, but no memory.

    Args:
        kind: of the module.
        config: its configuration, perhaps made up.
        num_tensors: what the file has: it bounds the layers that the configuration can ask for.

    Raises:
        ValueError: there is no such module.
    """
    try:
        if (check_size := getattr(config, "check_size", None)) is not None:
            check_size(num_tensors)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            module = kind.build(config)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error
    except RuntimeError as error:
        raise ValueError(
            f"it must hold the tensors of its config, but such a module cannot be made: {error}"
        ) from error
    if type(module) is not kind.module_class:
        raise ValueError(f"class must be {type(module).__name__} for this config, got {kind.name}")
    return module


def _checked_blank(kind: Kind, config: Any, tensors: dict[str, Tensor], source: str) -> nn.Module:
    """A module without memory that has a place for each of these tensors and no other."""
    try:
        module = blank(kind, config, len(tensors))
        for name, part in module.named_modules():
            if (adopt_tensors := getattr(part, "adopt_tensors", None)) is not None:
                prefix = f"{name}." if name else ""
                adopt_tensors({key.removeprefix(prefix): one for key, one in tensors.items() if key.startswith(prefix)})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: {error}") from error
    check_tensors(tensors, module.state_dict(), source)
    return module


def check_tensors(tensors: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    """Refuse missing and extra names, other shapes than `expected`, several floating types, and integers in the place
    of
    floating point numbers or the other way round.
    """
    missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or extra:
        raise ValueError(
            f"{source} must hold the tensors of its config, missing {missing or 'none'}, got also {extra or 'none'}"
        )
    if len(types := {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}) > 1:
        raise ValueError(f"{source} must hold one floating type, got {sorted(map(str, types))}")
    for name, like in expected.items():
        tensor, shape = tensors[name], tuple(like.shape)
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{source}: {name} must have shape {shape} to fit its config, got {tuple(tensor.shape)}")
        whole = not tensor.is_floating_point() and not tensor.is_complex()
        if not (tensor.dtype in FLOATS if like.is_floating_point() else whole):
            rule = "floating point numbers" if like.is_floating_point() else "integers"
            raise ValueError(f"{source}: {name} must hold {rule}, got {tensor.dtype}")


class Saved:
    """What a class that is registered has of this: ``save_pretrained`` and ``from_pretrained`` as methods."""

    def save_pretrained(self: Any, directory: str | os.PathLike[str]) -> None:
        """Write weights and configuration into a folder: :func:`elm_neuro.checkpoints.save_pretrained`."""
        save_pretrained(self, directory)

    @classmethod
    def from_pretrained(
        cls,
        directory_or_hub_id: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        revision: str | None = None,
    ) -> Self:
        """The module that was saved there: :func:`elm_neuro.checkpoints.from_pretrained`.

        Raises:
            ValueError: one of another class was saved there.
        """
        module = from_pretrained(directory_or_hub_id, device=device, dtype=dtype, backend=backend, revision=revision)
        if not isinstance(module, cls):
            raise ValueError(f"{directory_or_hub_id} must hold {cls.__name__}, got {type(module).__name__}")
        return module


def _choose_backend(module: nn.Module, backend: str) -> None:
    """Set it on every layer that takes it; the first refusal is raised where none does."""
    refusals, taken = [], 0
    part: Any
    for part in module.modules():
        if hasattr(part, "backend"):
            try:
                part.backend = backend
                taken += 1
            except ValueError as error:
                refusals.append(error)
    if refusals and not taken:
        raise refusals[0]


def _folder(directory_or_hub_id: str | os.PathLike[str], revision: str | None) -> Path:
    path = Path(directory_or_hub_id)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"revision must be None for a folder, got {revision!r}")
        return path
    if path.exists():
        raise NotADirectoryError(f"directory_or_hub_id must be a folder or a hub id, got the file {path}")
    if not (isinstance(directory_or_hub_id, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", directory_or_hub_id)):
        raise FileNotFoundError(
            f'directory_or_hub_id must be a folder or a hub id "owner/name", got {str(path)!r}, which does not exist'
        )
    if find_spec("huggingface_hub") is None:
        raise ImportError(
            f"elm_neuro.checkpoints needs huggingface_hub for {directory_or_hub_id!r} (there is no such folder): "
            'pip install "elm-neuro[hub]"'
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                directory_or_hub_id, revision=revision, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]
            )
        )
    except OSError as error:  # all of the hub's errors but those of a malformed id
        raise FileNotFoundError(
            f"{directory_or_hub_id!r} must be a folder or on the Hugging Face hub, got neither: {error}"
        ) from error


def _checked_config(values: dict[str, Any], path: Path) -> tuple[Kind, Any]:
    """Kind and configuration of a config file of ours."""
    if values.get("format") != FORMAT:
        raise ValueError(f"{path}: format must be {FORMAT!r}, got {values.get('format')!r}")
    version = values.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version must be at most {FORMAT_VERSION}, got {version!r}; a newer elm_neuro may read it"
        )
    try:
        return described(values, "config")
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error


# torch's plain layers, by the values of their constructors, and nn.Sequential of anything known

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


@dataclass(frozen=True)
class _Sequence:
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
    return {"modules": [[name, describe(part, f"module {name}")] for name, part in network.named_children()]}


for _module_class, _types in _PLAIN.items():
    _add(_plain(_module_class, _types))
_add(Kind("Sequential", nn.Sequential, _describe_sequence, _Sequence.from_dict, _Sequence.build))
