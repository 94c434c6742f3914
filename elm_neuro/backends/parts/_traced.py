"""Passes over a sequence inside compiled code: one operator of torch's for all of them, into which torch.compile and
torch.export do not look.

A pass is named by its room and itself: of "elm.native" the module ``elm_neuro.backends.elm._native_op`` has the
``PASS``. It is imported when the pass runs, so that programs that were saved run where only the package was imported.
"""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad

from elm_neuro.backends.parts._operators import LIBRARY
from elm_neuro.backends.parts._twice import without_autocast
from elm_neuro.backends.parts._untraced import constant

# Of what passes take and give, to be raised with every change: torch keeps compiled code beyond a version of this
# package.
LAYOUT = 3

Operands: TypeAlias = list[Tensor | None]  # None for what is not there
Sizes: TypeAlias = Sequence[int]  # batch, number of steps, number of inputs


class Backward(NamedTuple):
    """What the gradients of a pass come from."""

    operands: Operands
    sizes: Sizes
    options: Any
    results: Operands  # those that the pass keeps
    grads: Operands  # of the results
    needed: list[bool]  # which of the operands need one


class Pass(NamedTuple):
    """What compiled code runs in place of an autograd function of a pass.

    Attributes:
        run: of operands, sizes, options and whether there will be a backward pass, the results: outputs, then what the
            backward pass reads; whole tensors of their own.
        empty: as `run`, tensors of the same shapes without numbers.
        differentiate: the gradients of the operands.
        kept: which of the results `differentiate` reads.
        unread: operands whose shape is all that it reads.
    """

    run: Callable[[Operands, Sizes, Any, bool], Operands]
    empty: Callable[[Operands, Sizes, Any, bool], Operands]
    differentiate: Callable[[Backward], Operands]
    kept: tuple[int, ...]
    unread: tuple[int, ...] = ()


def run_traced(name: str, operands: Operands, sizes: Sizes, options: tuple[Any, ...]) -> list[Tensor]:
    """The results of a pass; `options` are numbers, strings, None and tuples of them."""
    there = [one for one in operands if one is not None]
    integers: list[int] = []
    reals: list[float] = []
    form = _apart(options, integers, reals)
    how = _spelled(name, form, tuple([one is not None for one in operands]), LAYOUT)
    # never empty: torch takes an empty list for one of tensors
    numbers = [*integers, 0], [*reals, 0.0]
    results: list[Tensor] = torch.ops.elm_neuro.run_pass(there, sizes, how, *numbers, torch.is_grad_enabled())
    return results


def _apart(option: Any, integers: list[int], reals: list[float]) -> Any:
    """What options look like without their numbers, which compiled code may leave open: these go to the lists."""
    if isinstance(option, tuple):
        return "()", tuple([_apart(part, integers, reals) for part in option])
    if isinstance(option, bool) or not isinstance(option, int | float):
        return "=", option
    if isinstance(option, int):
        integers.append(option)
        return "int", None
    reals.append(option)
    return "float", None


def _together(form: Any, integers: Iterator[int], reals: Iterator[float]) -> Any:
    """The options again."""
    kind, value = form
    if kind == "()":
        return tuple([_together(part, integers, reals) for part in value])
    if kind == "int":
        return int(next(integers))
    return float(next(reals)) if kind == "float" else value


@constant
def _spelled(*how: Any) -> str:
    return repr(how)


@lru_cache(maxsize=1024)
def _read(how: str) -> Any:
    """Name of a pass, form of its options and which of its operands there are.

    Raises:
        ValueError: a program was saved by a version whose passes take or give something else.
    """
    name, form, given, layout = literal_eval(how)
    if layout != LAYOUT:
        raise ValueError(f"layout of a saved pass must be {LAYOUT}, got {layout}: export the program again")
    return name, form, given


@cache
def _pass(name: str) -> Pass:
    if not re.fullmatch(r"[a-z]+\.[a-z]+", name):
        raise ValueError(f"a pass must be named as room.pass, got {name!r}")
    room, itself = name.split(".")
    found: Pass = import_module(f"elm_neuro.backends.{room}._{itself}_op").PASS
    return found


def _placed(tensors: Sequence[Tensor], given: Sequence[bool]) -> Operands:
    """The tensors, each in its place, None in the others."""
    rest = iter(tensors)
    return [next(rest) if there else None for there in given]


def _whole(like: Tensor, tensors: Operands) -> list[Tensor]:
    return [like.new_empty(0) if tensor is None else tensor.contiguous() for tensor in tensors]


def _call(
    of: str, tensors: list[Tensor], sizes: Sizes, how: str, integers: Any, reals: Any, save: bool
) -> list[Tensor]:
    name, form, given = _read(how)
    function, options = getattr(_pass(name), of), _together(form, iter(integers), iter(reals))
    with without_autocast(tensors[0]):  # that was settled when it was traced
        return _whole(tensors[0], function(_placed(tensors, given), sizes, options, save))


def _run(tensors: list[Tensor], *how: Any) -> list[Tensor]:
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(one).tangent is not None for one in tensors):
        raise RuntimeError("elm_neuro: a compiled pass has no forward mode; differentiate outside of torch.compile")
    return _call("run", tensors, *how)


def _empty(tensors: list[Tensor], *how: Any) -> list[Tensor]:
    return _call("empty", tensors, *how)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    tensors, ctx.sizes, ctx.how, ctx.integers, ctx.reals, ctx.saves = inputs
    ctx.set_materialize_grads(False)
    name, _, given = _read(ctx.how)
    read, operands = _pass(name), _placed(tensors, given)
    for index in read.unread:
        operands[index] = _shape_of(operands[index])
    ctx.save_for_backward(
        *[output[index] for index in read.kept], *[operand for operand in operands if operand is not None]
    )


def _shape_of(operand: Tensor | None) -> Tensor | None:
    """A tensor of this shape that takes no room."""
    return None if operand is None else operand.new_zeros(()).expand(operand.shape)


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    needed, rest = tuple(ctx.needs_input_grad[0]), (None,) * 5
    there = [grad for grad in grads if grad is not None]
    if not there:
        return [None] * len(needed), *rest
    if not ctx.saves:
        raise RuntimeError("elm_neuro: a pass that was traced without gradients has none; trace it with them")
    how = _spelled(ctx.how, tuple([grad is not None for grad in grads]), needed)
    found = iter(
        torch.ops.elm_neuro.run_pass_backward([*there, *ctx.saved_tensors], ctx.sizes, how, ctx.integers, ctx.reals)
    )
    return [next(found) if need else None for need in needed], *rest


@lru_cache(maxsize=1024)
def _read_backward(how: str) -> Any:
    return literal_eval(how)


def _taken_apart(tensors: list[Tensor], how: str) -> tuple[Pass, Any, Operands, Operands, Operands, list[bool]]:
    """The pass and the form of its options; operands, results, gradients, and which operands need one."""
    forward, with_grad, needed = _read_backward(how)
    name, form, given = _read(forward)
    pass_, num_grad = _pass(name), sum(with_grad)
    grads, rest = _placed(tensors, with_grad), tensors[num_grad:]
    results: Operands = [None] * len(with_grad)
    for index, kept in zip(pass_.kept, rest, strict=False):
        results[index] = kept
    operands, need = _placed(rest[len(pass_.kept) :], given), iter(needed)
    return pass_, form, operands, results, grads, [there and next(need) for there in given]


def _backward(tensors: list[Tensor], sizes: Sizes, how: str, integers: Any, reals: Any) -> list[Tensor]:
    pass_, form, operands, results, grads, needed = _taken_apart(tensors, how)
    options = _together(form, iter(integers), iter(reals))
    with without_autocast(tensors[0]):  # that was settled when it was traced
        found = pass_.differentiate(Backward(operands, sizes, options, results, grads, needed))
    return [
        torch.zeros_like(operand, memory_format=torch.contiguous_format) if grad is None else _own(grad)
        for operand, grad, need in zip(operands, found, needed, strict=True)
        if need and operand is not None
    ]


def _own(grad: Tensor) -> Tensor:
    """An operator's results may not share memory."""
    return grad.clone(memory_format=torch.contiguous_format) if grad._base is not None else grad.contiguous()


def _empty_backward(tensors: list[Tensor], sizes: Sizes, how: str, integers: Any, reals: Any) -> list[Tensor]:
    _, _, operands, _, _, needed = _taken_apart(tensors, how)
    return [
        operand.new_empty(operand.shape)
        for operand, need in zip(operands, needed, strict=True)
        if need and operand is not None
    ]


def _refuse(ctx: Any, *grads: Any) -> None:
    raise RuntimeError("elm_neuro: a compiled pass has no second derivative; differentiate outside of torch.compile")


def _declare() -> None:
    given = "Tensor[] tensors, SymInt[] sizes, str how, SymInt[] integers, float[] reals"
    for name, schema, run, empty in (
        ("run_pass", f"({given}, bool save) -> Tensor[]", _run, _empty),
        ("run_pass_backward", f"({given}) -> Tensor[]", _backward, _empty_backward),
    ):
        LIBRARY.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        LIBRARY.impl(name, run, "CompositeExplicitAutograd")
        LIBRARY.impl(name, empty, "Meta")
    torch.library.register_autograd("elm_neuro::run_pass", _differentiate, setup_context=_save, lib=LIBRARY)
    torch.library.register_autograd("elm_neuro::run_pass_backward", _refuse, lib=LIBRARY)


_declare()
