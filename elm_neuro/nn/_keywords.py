"""Keywords that a signature shows one by one, and the nearest one where a name is misspelled."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

Init = TypeVar("Init", bound=Callable[..., None])
ELSEWHERE = {  # keywords of torch, snntorch, norse and spikingjelly, and what they may be here
    "hidden_size": ("num_memory", "output_size"),
    "hidden_dim": ("num_memory", "output_size"),
    "dt": ("delta_t",),
    "beta": ("tau_v", "tau_m_init"),
    "tau": ("tau_v", "tau_m_init"),
    "tau_mem": ("tau_v", "tau_m_init"),
    "dropout": ("input_dropout",),
    "reset_mechanism": ("reset",),
    "surrogate_function": ("surrogate",),
    "spike_grad": ("surrogate",),
}


def spelled_out(
    options: type[Any], *sources: Callable[..., Any] | Mapping[str, Any], **shown: type[Any]
) -> Callable[[Init], Init]:
    """Decorator of a constructor that takes ``**options: Unpack[options]``: its signature names every one of them.

    Type checkers and editors read the ``TypedDict``; ``help``, :func:`inspect.signature` and jsonargparse read what is
    set here. The constructor itself is left as it is.

    Args:
        options: the ``TypedDict``; keys that the constructor names itself are left out.
        sources: what the defaults are taken from, the first that has a key: mappings, or classes and functions with
            these keywords.
        shown: types that parameters have for who reads the signature, where the annotation is for type checkers only.

    >>> from typing import TypedDict
    >>> class Options(TypedDict, total=False):
    ...     height: float
    >>> def box(width: float, height: float = 2.0) -> None: ...
    >>> @spelled_out(Options, box)
    ... def cube(width: float, **options: object) -> None: ...
    >>> inspect.signature(cube)
    <Signature (width: 'float', *, height: float = 2.0) -> 'None'>
    """
    defaults: dict[str, Any] = {}
    for source in sources:
        if isinstance(source, Mapping):
            defaults = {**source, **defaults}
            continue
        for name, parameter in inspect.signature(source).parameters.items():
            if parameter.default is not parameter.empty:
                defaults.setdefault(name, parameter.default)

    def decorate(init: Init) -> Init:
        signature = inspect.signature(init)
        own = [
            one.replace(annotation=shown.get(one.name, one.annotation))
            for one in signature.parameters.values()
            if one.kind is not one.VAR_KEYWORD
        ]
        named = {one.name for one in own}
        spelled = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind)
            for name, kind in get_type_hints(options).items()
            if name not in named
        ]
        init.__signature__ = signature.replace(parameters=[*own, *spelled])  # type: ignore[attr-defined]
        return init

    return decorate


def meant(name: str, known: Sequence[str]) -> str:
    """A hint at what an unknown keyword may mean; empty where nothing is near.

    >>> meant("hidden_size", ["input_size", "num_memory", "mlp_hidden_size"])
    'did you mean num_memory?'
    >>> meant("num_heads", ["input_size", "num_memory", "num_neuron"])
    ''
    """
    if name == "num_layers":
        return "layers stand one after the other, as in nn.Sequential or elm_neuro.training.ResidualStack"
    near = [one for one in ELSEWHERE.get(name, ()) if one in known] or get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else ""


def check_keywords(
    owner: object, options: Mapping[str, object], allowed: type[Any], constructor: Callable[..., Any]
) -> None:
    """Refuse keywords that a constructor does not have.

    Args:
        owner: the object that is made.
        options: the keywords that came in its ``**options``.
        allowed: the ``TypedDict`` of them.
        constructor: the function that was called: what its signature shows may have been meant.

    Raises:
        TypeError: a name is unknown; the message names the class of `owner` and the nearest keyword.

    >>> from elm_neuro.nn import ELM
    >>> ELM(10, 5, num_memry=4)
    Traceback (most recent call last):
    TypeError: ELM has no keyword num_memry: did you mean num_memory?
    """
    for name in options:
        if name in allowed.__annotations__:
            continue
        known = [one for one in inspect.signature(constructor).parameters if one != "self"]
        hint = meant(name, known) or f"it takes {', '.join(known)}"
        raise TypeError(f"{type(owner).__name__} has no keyword {name}: {hint}")
