"""The library of the native kernels: found, loaded, and called with tensors."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from elm_neuro.backends.parts._untraced import constant

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "libelm_native.so"
MAX_LAYERS = 8
MAX_SETTINGS = 4  # of a surrogate
LARGE_BYTES = 1 << 22  # buffers from this size on ask for large pages, of 2 MiB on most systems
FREED_BYTES = (1 << 25) - (1 << 16)  # just below 32 MiB, the largest block from which glibc learns

Layers = ctypes.c_void_p * MAX_LAYERS
Call: TypeAlias = Callable[
    [bool, int, Any], int
]  # dtype is float64, threads, pointer to a struct; 0 where it went well


def _fields(
    integers: str,
    pointers: str,
    *,
    doubles: str = "",
    settings: str = "",
    widths: str = "",
    layers: tuple[str, ...] = (),
) -> list[tuple[str, type]]:
    """Fields in the order of the struct: integers, doubles, MAX_SETTINGS doubles each, integers of layers,
    pointers; those of `layers` hold a pointer a layer.
    """
    kinds: dict[str, type] = dict.fromkeys(integers.split(), ctypes.c_int64)
    kinds |= dict.fromkeys(doubles.split(), ctypes.c_double)
    kinds |= dict.fromkeys(settings.split(), ctypes.c_double * MAX_SETTINGS)
    kinds |= dict.fromkeys(widths.split(), ctypes.c_int64 * MAX_LAYERS)
    kinds |= {name: Layers if name in layers else ctypes.c_void_p for name in pointers.split()}
    return list(kinds.items())


class ScanArgs(ctypes.Structure):
    """``struct ElmScan`` of native/api.h."""

    _fields_ = _fields(
        "batch num_steps num_neuron num_memory num_layers hidden silu num_output num_input "
        "first_step all_steps wide tile num_task accumulate dense_batch dense_time dense_neuron "
        "y_batch y_time y_neuron grad_y_batch grad_y_time grad_y_neuron "
        "grad_spikes_batch grad_spikes_time grad_spikes_neuron w_m_neuron w_m_row one_threshold surrogate",
        "begin end lengths channel value table dense kappa_b f_0 bias m_0 kappa gain w_m w_y b_y threshold "
        "weight layer_bias y spikes m_last f_last y_last saved grad_y grad_spikes grad_m_last grad_f_last "
        "grad_table grad_dense grad_f_0 grad_m_0 grad_bias grad_kappa grad_gain grad_w_m grad_w_y grad_b_y "
        "grad_threshold grad_weight grad_layer_bias",
        doubles="slope",
        layers=("weight", "layer_bias", "grad_weight", "grad_layer_bias"),
    )


class FilterArgs(ctypes.Structure):
    """``struct ElmFilter`` of native/api.h."""

    _fields_ = _fields(
        "batch num_steps width table_row num_input dense_batch dense_time wide",
        "begin end channel value table dense kappa initial out grad_out grad_table grad_dense grad_initial",
    )


class FramesArgs(ctypes.Structure):
    """``struct ElmFrames`` of native/api.h."""

    _fields_ = _fields(
        "batch num_steps num_input frames_batch frames_time room num_part", "frames begin end channel value"
    )


class TableArgs(ctypes.Structure):
    """``struct ElmTable`` of native/api.h."""

    _fields_ = _fields(
        "num_neuron hidden num_input num_branch num_synapse num_memory table_row "
        "rectify routing_neuron batch total_neuron",
        "routing weight w_s total table w_m arrived grad_table grad_w_m grad_arrived grad_weight grad_w_s grad_total",
    )


class PassArgs(ctypes.Structure):
    """``struct ElmPass`` of native/api.h."""

    _fields_ = [  # as ctypes wants it
        ("search", ctypes.c_int64),
        ("reach", ctypes.c_int64),
        ("kappa_b", ctypes.c_double),
        ("weighted", ctypes.c_void_p),
        ("frames", FramesArgs),
        ("table", TableArgs),
        ("scan", ScanArgs),
    ]


class EffectiveArgs(ctypes.Structure):
    """``struct ElmEffective`` of native/api.h."""

    _fields_ = _fields(
        "num_w_s num_memory v2",
        "proto_w_s proto_tau_m of_w_s of_kappa_m of_gain grad_w_s grad_tau_m",
        doubles="low width delta_t lambda_",
    )


class AlifArgs(ctypes.Structure):
    """``struct ElmAlif`` of native/api.h."""

    _fields_ = _fields(
        "batch num_steps num_neuron num_input latency chunk "
        "wide dense_batch dense_time spikes_batch spikes_time grad_batch grad_time "
        "surrogate detach_reset detach_recurrent blocks",
        "begin end lengths channel value table dense bias beta p b w_rec v_0 a_0 s_0 spikes v_last a_last s_last saved "
        "grad_spikes grad_v_last grad_a_last grad_s_last grad_table grad_dense grad_v_0 grad_a_0 grad_s_0 "
        "grad_bias grad_beta grad_p grad_b",
        settings="setting",
    )


class NetworkArgs(ctypes.Structure):
    """``struct ElmNetwork`` of native/api.h."""

    _fields_ = _fields(
        "batch num_steps num_neuron num_input num_branch num_synapse num_memory num_layers activation output surrogate "
        "lanes wide x_batch x_time a_batch a_time grad_batch grad_time",
        "index begin end lengths channel value x input_mask recurrent_mask w_s w_y bias kappa_m gain kappa_b kappa_r "
        "a_0 b_0 m_0 r_0 a change a_last b_last m_last r_last saved "
        "grad_a grad_change grad_a_last grad_b_last grad_m_last grad_r_last "
        "grad_x grad_a_0 grad_b_0 grad_m_0 grad_r_0 "
        "grad_w_s grad_w_y grad_bias grad_kappa_m grad_gain grad_kappa_b grad_kappa_r "
        "weight layer_bias grad_weight grad_layer_bias",
        doubles="input_scale",
        settings="setting",
        widths="width",
        layers=("weight", "layer_bias", "grad_weight", "grad_layer_bias"),
    )


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "ElmScan": ScanArgs,
    "ElmFilter": FilterArgs,
    "ElmFrames": FramesArgs,
    "ElmTable": TableArgs,
    "ElmPass": PassArgs,
    "ElmEffective": EffectiveArgs,
    "ElmAlif": AlifArgs,
    "ElmNetwork": NetworkArgs,
}


def _open() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    if not LIBRARY.is_file():
        return None, "this installation was built without a C++ compiler; with one, install elm-neuro again from source"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        library.elm_sources.restype = ctypes.c_char_p
        built_from: bytes = library.elm_sources()
    except (OSError, AttributeError) as error:
        return None, f"its library does not load: {error}"
    if sources_digest() not in (None, built_from.decode()):
        return None, "its library was built from other sources than those beside it; install elm-neuro again"
    _declare(library)
    for name, struct in STRUCTS.items():
        size, passed = library.elm_size_of(name.encode()), ctypes.sizeof(struct)
        if size != passed:
            return None, f"its library takes {size} bytes of {name}, {passed} would be passed; install elm-neuro again"
    pool = _pool_of_torch()
    if pool is not None:
        library.elm_lend(pool)
    _have_freed_memory_kept()
    return library, None


def _have_freed_memory_kept() -> None:
    """Free a block of 32 MiB, untouched: glibc then keeps up to 64 MiB of what a pass frees for the next one. Else, as
    the heap happens to lie, it gives the end of it back to the system each time, and a pass of 1.5 ms waits for another
    one for its pages. Thresholds that the user has set (``MALLOC_TRIM_THRESHOLD_``, ...) stay as they are.
    """
    torch.empty(FREED_BYTES, dtype=torch.uint8, device="cpu")


def _pool_of_torch() -> int | None:
    """Address of ``GOMP_parallel`` in the OpenMP library that torch runs on; None where it has another one.

    ``ELM_NEURO_THREADS=own`` leaves it alone, for sanitizers, which do not see into it.
    """
    if os.environ.get("ELM_NEURO_THREADS") == "own":
        return None
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def sources_digest() -> str | None:
    """Fingerprint of the sources beside the library, None where they are not there (a wheel); setup.py writes it into
    the library.
    """
    sources = sorted(path for path in FOLDER.glob("*") if path.suffix in (".cpp", ".h"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16] if sources else None


def _declare(library: ctypes.CDLL) -> None:
    word, pointer = ctypes.c_int64, ctypes.c_void_p
    library.elm_isa.restype = ctypes.c_char_p
    library.elm_lend.argtypes, library.elm_lend.restype = (pointer,), None
    library.elm_advise.argtypes, library.elm_advise.restype = (pointer, word), None
    library.elm_room.argtypes, library.elm_room.restype = (word,), pointer
    library.elm_free.argtypes, library.elm_free.restype = (pointer,), None
    library.elm_size_of.argtypes, library.elm_size_of.restype = (ctypes.c_char_p,), word
    library.elm_padded.argtypes, library.elm_padded.restype = (word, word), word
    for name in ("tile", "chunk"):
        getattr(library, f"elm_{name}").argtypes, getattr(library, f"elm_{name}").restype = (word,), word
    for name in (
        "scan_forward",
        "scan_backward",
        "filter_forward",
        "filter_backward",
        "table_forward",
        "table_backward",
        "pass_forward",
        "pass_backward",
        "compact",
        "alif_forward",
        "alif_backward",
        "network_forward",
        "network_backward",
    ):
        getattr(library, f"elm_{name}").argtypes, getattr(library, f"elm_{name}").restype = (word, word, pointer), word
    library.elm_sum.argtypes, library.elm_sum.restype = (word,) * 4 + (pointer,), ctypes.c_double
    library.elm_alif_chunk.argtypes, library.elm_alif_chunk.restype = (), word
    library.elm_alif_saved.argtypes, library.elm_alif_saved.restype = (word, pointer), word
    library.elm_network_lanes.argtypes, library.elm_network_lanes.restype = (word,) * 5, word
    library.elm_network_saved.argtypes, library.elm_network_saved.restype = (word, pointer), word
    library.elm_check_events.argtypes, library.elm_check_events.restype = (word,) * 3 + (pointer,) * 3, word
    library.elm_effective_backward.argtypes, library.elm_effective_backward.restype = (word, pointer), None
    library.elm_discount.argtypes = (word,) * 5 + (ctypes.c_double, word) + (pointer,) * 6
    library.elm_discount.restype = None


_library, _missing = _open()  # on import: compiled code must not trace this


def missing() -> str | None:
    """Why there is no library; None where there is one."""
    return _missing


def library() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: there is none.
    """
    if _library is None:
        raise RuntimeError(f'backend "native" cannot run: {_missing}')
    return _library


@constant
def instruction_set() -> str:
    """Name of the instruction set that the library uses on this processor; what a pass keeps is in its vectors."""
    name: bytes = library().elm_isa()
    return name.decode()


@cache
def padded(dtype: torch.dtype, size: int) -> int:
    """`size` rounded up to whole vectors."""
    return int(library().elm_padded(dtype == torch.float64, size))


@cache
def tile(dtype: torch.dtype) -> int:
    """Samples that one task of the memory recurrence takes at most."""
    return int(library().elm_tile(dtype == torch.float64))


@cache
def chunk(dtype: torch.dtype) -> int:
    """Steps after which a whole tile's memory is kept for the backward pass."""
    return int(library().elm_chunk(dtype == torch.float64))


@cache
def alif_chunk() -> int:
    """Steps through which a neuron of a LIF layer runs at most before the next one does."""
    return int(library().elm_alif_chunk())


def large(like: Tensor, size: int, dtype: torch.dtype | None = None) -> Tensor:
    """`size` entries, uninitialised, in large pages where the system gives them on request: a fault a small page
    costs more than its use.

    What is so large that glibc would give it back to the system, and take it cleared again in every pass, starts on a
    large page, and the last one that was freed is kept for the next pass that asks for as much.
    """
    dtype = like.dtype if dtype is None else dtype
    nbytes = size * dtype.itemsize
    if nbytes > FREED_BYTES and (start := _kept_room(nbytes) or library().elm_room(nbytes)):
        room = (ctypes.c_char * nbytes).from_address(start)
        freed = weakref.finalize(room, _keep_room, nbytes, start)  # once no tensor holds the room
        freed.atexit = False  # some may still hold it then
        return torch.frombuffer(room, dtype=dtype)
    buffer = like.new_empty(size, dtype=dtype)
    if buffer.nbytes >= LARGE_BYTES:
        library().elm_advise(buffer.data_ptr(), buffer.nbytes)
    return buffer


_kept: list[tuple[int, int]] = []  # bytes and start of a freed buffer, one at most


def _kept_room(nbytes: int) -> int | None:
    """Where the freed buffer starts that is kept, if it has this size; one of another size goes back to the system."""
    with contextlib.suppress(IndexError):  # another thread has it
        kept_bytes, start = _kept.pop()
        if kept_bytes == nbytes:
            return start
        library().elm_free(start)
    return None


def _keep_room(nbytes: int, start: int) -> None:
    _kept.append((nbytes, start))
    with contextlib.suppress(IndexError):
        while len(_kept) > 1:
            library().elm_free(_kept.pop(0)[1])


def threads_for(work: float, most: int | None = None) -> int:
    """Threads for about `work` multiply-adds: `most`, by default torch's number; fewer where starting them would take
    longer than the work.
    """
    return max(1, min(torch.get_num_threads() if most is None else most, int(work / 2e6)))


def address(tensor: Tensor | None) -> int | None:
    """Where the entries of `tensor` lie; None for None."""
    return None if tensor is None else tensor.data_ptr()


def put_addresses(tensors: Sequence[Tensor], fields: Any) -> None:
    """Write where the entries of up to MAX_LAYERS tensors lie to the fields that a struct has for layers."""
    for index, tensor in enumerate(tensors):
        fields[index] = tensor.data_ptr()
