"""The classes of modules that can be saved: each makes itself known, none is named here."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

from torch import nn

Class = TypeVar("Class", bound=type[nn.Module])


class Kind(NamedTuple):
    """How the modules of one class are written and read."""

    name: str  # in the files
    module_class: type[nn.Module]
    describe: Callable[[Any], dict[str, Any]]  # a module's configuration, as JSON holds it
    read: Callable[[dict[str, Any]], Any]  # the configuration that JSON holds, checked
    build: Callable[[Any], nn.Module]  # a module of such a configuration, with any weights


_KINDS: dict[str, Kind] = {}
_LATER: dict[str, str] = {}  # modules of classes that are registered when they are first asked for, by name


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
    add(
        Kind(
            module_class.__name__,
            module_class,
            describe=lambda module: dict(module.config.to_dict()),
            read=config_type.from_dict,  # type: ignore[union-attr]  # checked above
            build=module_class.from_config,  # type: ignore[attr-defined]
        )
    )
    return module_class


def register_later(name: str, module: str) -> None:
    """Make a class known by its name alone: `module`, which has it, is imported when a file or a caller names it."""
    _LATER[name] = module


def add(kind: Kind) -> None:
    module_class, known = kind.module_class, _KINDS.get(kind.name)
    if known is not None and known.module_class.__qualname__ != module_class.__qualname__:
        raise ValueError(f"{kind.name} must be the name of one class, got {known.module_class} and {module_class}")
    if _LATER.get(kind.name, module_class.__module__) != module_class.__module__:
        raise ValueError(
            f"{kind.name} must be the name of one class, got {module_class} and that of {_LATER[kind.name]}"
        )
    _KINDS[kind.name] = kind


def kinds() -> list[str]:
    """Names of the classes that can be saved.

    >>> {"ELM", "SpikingELM", "Sequential", "Linear"} <= set(kinds())
    True
    """
    return sorted({*_KINDS, *_LATER})


def kind_of(name: object) -> Kind:
    """The kind of that name.

    Raises:
        ValueError: it is none of those known.
    """
    if isinstance(name, str) and name in _LATER:
        register(getattr(import_module(_LATER[name]), name))
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
    if isinstance(core := getattr(module, "core", None), nn.Module):  # what a layer wraps must be known too
        describe(core, f"{name}.core")
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
