"""Which input each synapse reads, as a buffer that survives an average of buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from elm_neuro.backends.parts._plain import only_operators

NAME, TWIN = "input_to_synapse_indices", "_routing_twin"


class Routed(nn.Module):
    """A module with a routing index among its buffers.

    An exponential average with ``use_buffers=True`` (``torch.optim.swa_utils.AveragedModel``, Lightning's
    ``WeightAveraging``) averages integers in floating point and cuts off the rest, which moves indices. It takes its
    average of the floating twin beside the index as well, and that stays: where both were written since the last look,
    the twin is right. Who writes the index alone, as ``load_state_dict`` does, means it.
    """

    input_to_synapse_indices: Tensor | None
    _routing_twin: Tensor | None

    def hold_routing(self, index: Tensor | None) -> None:
        """Make `index` the buffer, None where every input is its own branch."""
        self.register_buffer(NAME, index)
        self.register_buffer(TWIN, None if index is None else index.float(), persistent=False)
        self._look()

    def settled_routing(self) -> Any:  # Tensor or None
        """The index, after an average of buffers as before it."""
        index: Any = self._buffers[NAME]
        twin: Any = self._buffers[TWIN]
        if index is None or torch.compiler.is_compiling():
            return index
        seen_index, seen_twin, index_version, twin_version = self.__dict__["_routing_seen"]
        if index is seen_index and twin is seen_twin:
            if index.is_inference() or twin.is_inference() or index._version == index_version:
                return index
            if twin._version != twin_version:
                with torch.no_grad():
                    index.copy_(twin.round())
                    twin.copy_(index)
                self._look()
                return index
        if only_operators((index,)) is None:
            self._buffers[TWIN] = index.float()
            self._look()
        return index

    def _look(self) -> None:
        index, twin = self._buffers[NAME], self._buffers[TWIN]
        versions = (0 if one is None or one.is_inference() else one._version for one in (index, twin))
        self.__dict__["_routing_seen"] = (index, twin, *versions)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self.settled_routing()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        index, twin = self._buffers[NAME], self._buffers[TWIN]
        if before is not None and index is not None:
            if before.is_meta and not index.is_meta:  # nobody has said yet what is in it
                index.fill_(-1)
            if before.is_meta or twin is None or twin.dtype != torch.float32:
                self._buffers[TWIN] = index.float()
        self._look()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.settled_routing()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __getstate__(self) -> dict[str, Any]:
        self.settled_routing()
        return {name: value for name, value in self.__dict__.items() if name != "_routing_seen"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if TWIN not in self._buffers:  # pickled before 0.2
            self.hold_routing(self._buffers.pop(NAME))
        self._look()
