"""Public names of a package whose modules are imported when one of them is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module


def imported_later(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package (PEP 562). Type checkers read its imports under
    ``TYPE_CHECKING`` in their place.

    Args:
        package: its name, which has a list ``__all__``.
        modules: the module of each name; of one that is a module, itself.
    """

    def get(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(modules[name])
        value = module if module.__name__ == f"{package}.{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)  # not asked for again
        return value

    def names() -> list[str]:
        own = vars(sys.modules[package])
        return sorted({*own, *own["__all__"]})

    return get, names
