"""Modules in the package's own folders: a kind, its configuration and its tensors, as safetensors and JSON.

Knows no neuron: a class makes itself known by :func:`register`. No file that is read can run code, and its sizes are
checked before anything of that size is made.
"""

from typing import TYPE_CHECKING

from elm_neuro._later import imported_later
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
    # what reads and writes files, an eighth of `import elm_neuro`, is imported for who does
    _FILES = {
        "_card": ["front_matter"],
        "_folders": ["from_pretrained", "save_pretrained"],
        "_hub": ["push_to_hub"],
        "_tensors": ["blank", "check_tensors", "weights_of", "with_tensors"],
    }
    __getattr__, __dir__ = imported_later(
        __name__, {name: f"{__name__}.{module}" for module, names in _FILES.items() for name in names}
    )
