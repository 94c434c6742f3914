"""Saving and loading as methods of a layer."""

from __future__ import annotations

import os
from typing import Any, Self

import torch


class Saved:
    """What a class that is registered has of this: ``save_pretrained`` and ``from_pretrained`` as methods.

    Reading and writing is imported by the first call, not with the layers.
    """

    def save_pretrained(self: Any, directory: str | os.PathLike[str]) -> None:
        """Write weights and configuration into a folder: :func:`elm_neuro.checkpoints.save_pretrained`."""
        from elm_neuro.pretrained._folders import save_pretrained

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
        from elm_neuro.pretrained._folders import from_pretrained

        module = from_pretrained(directory_or_hub_id, device=device, dtype=dtype, backend=backend, revision=revision)
        if not isinstance(module, cls):
            raise ValueError(f"{directory_or_hub_id} must hold {cls.__name__}, got {type(module).__name__}")
        return module
