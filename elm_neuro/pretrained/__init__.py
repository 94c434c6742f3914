"""Modules in the package's own folders: a kind, its configuration and its tensors, as safetensors and JSON.

Knows no neuron: a class makes itself known by :func:`register`. No file that is read can run code, and its sizes are
checked before anything of that size is made.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from elm_neuro.pretrained import _torch as _torch  # torch's plain layers make themselves known
from elm_neuro.pretrained._kinds import Kind, describe, described, kind_of, kinds, register
from elm_neuro.pretrained._saved import Saved

if TYPE_CHECKING:
    from elm_neuro.pretrained._card import front_matter
    from elm_neuro.pretrained._folders import from_pretrained, save_pretrained
    from elm_neuro.pretrained._hub import push_to_hub
    from elm_neuro.pretrained._tensors import blank, check_tensors, weights_of, with_tensors

__all__ = [
    "Kind",
    "Saved",
    "blank",
    "check_tensors",
    "describe",
    "described",
    "from_pretrained",
    "front_matter",
    "kind_of",
    "kinds",
    "push_to_hub",
    "register",
    "save_pretrained",
    "weights_of",
    "with_tensors",
]

if not TYPE_CHECKING:
    # what reads and writes files is imported for who does: an eighth of `import elm_neuro` otherwise
    _FILES = {
        "blank": "_tensors",
        "check_tensors": "_tensors",
        "from_pretrained": "_folders",
        "front_matter": "_card",
        "push_to_hub": "_hub",
        "save_pretrained": "_folders",
        "weights_of": "_tensors",
        "with_tensors": "_tensors",
    }

    def __getattr__(name: str) -> object:
        if name not in _FILES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
