"""What the numbers of a state dict mean travels in it: settings without which they are another neuron's."""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch
from torch import Tensor, nn

KEY = "_extra_state"  # torch's name for it, behind the module's prefix
LONGEST = 1 << 16  # bytes that are read


class Meaning(nn.Module):
    """A module that keeps its settings in its state dict, and takes the numbers of no others.

    They are bytes of JSON in a tensor, so that safetensors and ``torch.load(weights_only=True)`` hold them too.
    """

    meaning_in_config = True  # a folder that has the module's configuration needs no second copy

    def meaning(self) -> dict[str, Any]:
        """The settings, as JSON holds them."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        return torch.tensor(list(json.dumps(self.meaning()).encode()), dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Nothing: the settings were compared before the numbers were taken."""

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As torch, after the settings were compared. State dicts of before 0.2 have none: a warning says so.

        Raises:
            RuntimeError: the settings contradict, also with ``strict=False``; no number of this module is taken.
        """
        key = prefix + KEY
        if contradictions := self._contradictions(state_dict.get(key), key):
            raise RuntimeError("\n".join([f"Error in loading state_dict for {type(self).__name__}:", *contradictions]))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key not in state_dict:
            if key in missing_keys:
                missing_keys.remove(key)
            own = (*self._parameters, *self._buffers)
            if any(prefix + name in state_dict for name in own):
                settings = ", ".join(self.meaning())
                warnings.warn(
                    f"the state dict does not say of which {settings} its numbers for {type(self).__name__} are (it is "
                    "from before elm_neuro 0.2): they are taken for those of this module",
                    stacklevel=2,
                )

    def _contradictions(self, state: Any, key: str) -> list[str]:
        if state is None:
            return []
        try:
            if state.is_floating_point() or state.ndim != 1 or state.numel() > LONGEST:
                raise ValueError
            theirs = json.loads(bytes(state.tolist()))
            if not isinstance(theirs, dict):
                raise ValueError
        except (AttributeError, ValueError, RecursionError):
            return [f"{key} must be the settings of an {type(self).__name__} as bytes of JSON, got {state!r:.60}"]
        ours = json.loads(json.dumps(self.meaning()))
        return [
            f"{name} must be that of the module, {value!r}, got numbers that were made with {theirs[name]!r:.100} "
            f'(to take them nevertheless, leave "{key}" out of the state dict)'
            for name, value in ours.items()
            if name in theirs and theirs[name] != value
        ]
