"""What the reference shows of our sources: every keyword in a signature, and summaries that are whole sentences."""

from __future__ import annotations

import importlib
import inspect
import re
import warnings
from typing import Any

import griffe


class SpelledOut(griffe.Extension):
    """Keywords that a ``TypedDict`` declares are spelled out in signatures, as ``help`` and editors show them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """The first sentence of a docstring on one line: summaries show the first line only."""
        if obj.docstring:
            first, blank, rest = obj.docstring.value.partition("\n\n")
            obj.docstring.value = re.sub(r"\n(?! )", " ", first) + blank + rest

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Take the parameters of the function as it is at run time, where its source leaves them to a ``TypedDict``."""
        if not any("Unpack[" in str(parameter.annotation) for parameter in func.parameters):
            return
        signature = inspect.signature(_at_run_time(func.path))
        func.parameters = griffe.Parameters(
            *(
                griffe.Parameter(
                    name,
                    annotation=_annotation(parameter.annotation),
                    kind=griffe.ParameterKind[parameter.kind.name.lower()],
                    default=None if parameter.default is parameter.empty else repr(parameter.default),
                )
                for name, parameter in signature.parameters.items()
            )
        )


def _at_run_time(path: str) -> Any:
    """The object at a dotted path, whose module is the longest part of it that can be imported."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of hosts
                found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if not error.name or not path.startswith(error.name):
                raise
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise ImportError(f"no part of {path} is a module")


def _annotation(annotation: Any) -> str | None:
    """As it is written, without the modules in which the names live."""
    if annotation is inspect.Parameter.empty:
        return None
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b[A-Za-z_][\w.]*\.(?=\w)", "", text)
