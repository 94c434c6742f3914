"""Which input each synapse reads, as a buffer that survives an average of buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from elm_neuro.backends.parts._plain import only_operators

NAME, TWIN = "input_to_synapse_indices", "_routing_twin"
OF_NOW = ("_routing_seen", "_routing_compared")  # of this object, and none of its copies
QUICK = ("cpu",)  # devices on which to look costs next to nothing


class Routed(nn.Module):
    """A module with a routing index among its buffers.

    An exponential average with ``use_buffers=True`` (``torch.optim.swa_utils.AveragedModel``, Lightning's
    ``WeightAveraging``) averages integers in floating point and cuts off the rest, which moves indices. It takes its
    average of the floating twin beside the index as well, and that stays: where both were written since the last look,
    the twin is right. Who writes the index alone, as ``load_state_dict`` does, means it.

    Not every write is seen: ``.data.copy_``, with which Lightning puts averages in their place, leaves no trace, and
    compiled code looks for none. There, an index that is the twin cut off is taken for what it looks like. The buffer
    stays the tensor that it is, by which backends know what they made of it: compiled code for a GPU, which would get
    another one in each call, reads an average as it is; call it once, or save it, before it is compiled.
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
        # averages are there to be evaluated: training need not look twice
        return self._settled(thorough=not (self.training and torch.is_grad_enabled()))

    def _settled(self, *, thorough: bool, wait: bool = False) -> Any:
        """The index; `thorough` compares it with its twin where no write was seen.

        That waits for a GPU, hence there once for each :meth:`train` or ``eval``, or with `wait`.
        """
        index: Any = self._buffers[NAME]
        twin: Any = self._buffers[TWIN]
        if index is None:
            return None
        if torch.compiler.is_compiling():
            return _uncut(index, twin) if index.device.type in QUICK else index
        seen_index, seen_twin, index_version, twin_version = self.__dict__["_routing_seen"]
        if index is seen_index and twin is seen_twin and twin.dtype == torch.float32:
            unwritten = index.is_inference() or twin.is_inference() or index._version == index_version
            if torch._C._get_tracing_state() is not None or (unwritten and thorough and only_operators((index,))):
                return _uncut(index, twin)
            if unwritten:
                return self._compared(index, twin) if thorough and (wait or self._may_wait(index)) else index
            if twin._version != twin_version:
                self._write(twin.round())
                return index
        if only_operators((index,)) is None:
            self._buffers[TWIN] = index.float()
            self._look()
        return index

    def _may_wait(self, index: Tensor) -> bool:
        """Whether to look at what is in the index now."""
        if index.device.type in QUICK:
            return True
        capturing = index.is_cuda and torch.cuda.is_current_stream_capturing()
        if index.is_meta or self.__dict__.get("_routing_compared") or capturing:
            return False
        self.__dict__["_routing_compared"] = True
        return True

    def _compared(self, index: Tensor, twin: Tensor) -> Tensor:
        """The index, right where it was cut off."""
        if index.is_meta or bool((twin == index).all()):
            return index
        right = _uncut(index, twin)
        if index.is_inference() and not torch.is_inference_mode_enabled():  # nobody may write to it
            return right
        if not torch.equal(right, index):
            self._write(right)
        return index

    def _settle(self) -> None:
        """Have the buffer hold what :meth:`settled_routing` gives, for who reads that."""
        self._settled(thorough=True, wait=True)

    def _write(self, right: Tensor) -> None:
        index: Any = self._buffers[NAME]
        twin: Any = self._buffers[TWIN]
        with torch.no_grad():
            index.copy_(right)
            twin.copy_(index)
        self._look()

    def train(self, mode: bool = True) -> Any:
        """As torch's own."""
        self.__dict__["_routing_compared"] = False
        return super().train(mode)

    def _look(self) -> None:
        index, twin = self._buffers[NAME], self._buffers[TWIN]
        versions = (0 if one is None or one.is_inference() else one._version for one in (index, twin))
        self.__dict__["_routing_seen"] = (index, twin, *versions)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._settle()
        before = self._buffers[NAME]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        index, twin = self._buffers[NAME], self._buffers[TWIN]
        if before is not None and index is not None:
            if index.dtype != before.dtype:  # of Module.type, which takes whole numbers too
                index = self._buffers[NAME] = before.to(index.device)
            if before.is_meta and not index.is_meta:  # nobody has said yet what is in it
                index.fill_(-1)
            if before.is_meta or twin is None or twin.dtype != torch.float32:
                self._buffers[TWIN] = index.float()
        self._look()
        return self

    def _load_from_state_dict(self, *args: Any, **options: Any) -> None:
        super()._load_from_state_dict(*args, **options)
        index, twin = self._buffers[NAME], self._buffers[TWIN]
        if index is not None and twin is not None and index.device == twin.device:
            self._buffers[TWIN] = index.float()
            self._look()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._settle()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __getstate__(self) -> dict[str, Any]:
        self._settle()
        return {name: value for name, value in self.__dict__.items() if name not in OF_NOW}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if TWIN not in self._buffers:  # pickled before 0.2
            self.hold_routing(self._buffers.pop(NAME))
        self._look()


def _uncut(index: Tensor, twin: Tensor) -> Tensor:
    """The rounded twin where `index` is that, here and there cut off towards 0; else `index`."""
    if twin.dtype != torch.float32:
        return index
    right = twin.round()
    missing = right - index
    cut = ((missing == 0) | (missing == right.sign())).all()
    return torch.where(cut, right.to(index.dtype), index)
