"""Every keyword of every layer and face stands in its signature with type and default, and a misspelled one is
named; so is a value of another kind.
"""

from __future__ import annotations

import inspect
import math
import pydoc
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from elm_neuro import (
    ALIF,
    ELM,
    LIF,
    ALIFCell,
    ALIFConfig,
    BranchELM,
    ELMCell,
    ELMConfig,
    ELMNetwork,
    SpikeOutput,
    SpikingELM,
)
from elm_neuro.functional import FastSigmoid
from elm_neuro.nn._config import ELMOptions

SMALL = {"num_branch": 2, "num_synapse_per_branch": 2}
MAKERS: dict[str, Callable[..., nn.Module]] = {
    "ELM": lambda **more: ELM(4, 2, **more),
    "BranchELM": lambda **more: BranchELM(4, 2, **SMALL, **more),
    "ELMCell": lambda **more: ELMCell(4, 2, **more),
    "LIF": lambda **more: LIF(4, 2, **more),
    "ALIF": lambda **more: ALIF(4, 2, **more),
    "ALIFCell": lambda **more: ALIFCell(4, 2, **more),
    "SpikingELM": lambda **more: SpikingELM(ELM(4, 2), **more),
}


def faces(host: str) -> Any:
    return pytest.importorskip(f"elm_neuro.adapters.{host}", exc_type=ImportError)


def constructors() -> list[Any]:
    return [ELM, BranchELM, ELMCell, LIF, ALIF, ALIFCell, SpikingELM]


@pytest.mark.parametrize(
    ("name", "wrong", "near"),
    [
        ("ELM", "num_memry", "num_memory"),
        ("ELM", "tau_m_bound", "tau_m_bounds"),
        ("BranchELM", "routng", "routing"),
        ("ELMCell", "varient", "variant"),
        ("LIF", "tauv", "tau_v"),
        ("ALIF", "adaptiv", "adaptive"),
        ("ALIFCell", "latencies", "latency"),
        ("SpikingELM", "treshold", "threshold"),
    ],
)
def test_a_misspelled_keyword_is_told_with_the_class_and_the_nearest_one(name: str, wrong: str, near: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} has no keyword {wrong}: did you mean {near}\?$"):
        MAKERS[name](**{wrong: 1})


@pytest.mark.parametrize(
    ("name", "foreign", "hint"),
    [
        ("ELM", "hidden_size", "did you mean num_memory?"),
        ("ELM", "num_layers", "layers stand one after the other, as in nn.Sequential or elm_neuro.training."),
        ("ELM", "beta", "did you mean tau_m_init?"),
        ("ELM", "dt", "did you mean delta_t?"),
        ("LIF", "tau", "did you mean tau_v?"),
        ("LIF", "surrogate_function", "did you mean surrogate?"),
        ("ALIF", "hidden_size", "did you mean output_size?"),
        ("SpikingELM", "reset_mechanism", "did you mean reset?"),
        *[("ELM", one, "it takes input_size, ") for one in ("dropout", "init_hidden", "learning_rate", "num_heads")],
        ("LIF", "num_branches", "it takes input_size, "),
    ],
)
def test_a_keyword_of_another_library_is_told_what_it_is_here_and_no_nonsense(
    name: str, foreign: str, hint: str
) -> None:
    with pytest.raises(TypeError, match=rf"^{name} has no keyword {foreign}: {re.escape(hint)}"):
        MAKERS[name](**{foreign: 1})


def test_a_keyword_like_no_other_is_told_all_that_there_are() -> None:
    with pytest.raises(TypeError, match=r"^LIF has no keyword zzz: it takes input_size, output_size, backend, tau_v, "):
        LIF(4, 2, zzz=1)


def test_a_lif_is_not_asked_whether_it_adapts() -> None:
    with pytest.raises(TypeError, match=r"^LIF has no keyword adaptive"):
        LIF(4, 2, adaptive=True)


@pytest.mark.parametrize("host", ["snntorch", "norse", "spikingjelly"])
def test_faces_name_the_nearest_keyword_too(host: str) -> None:
    module = faces(host)
    threshold = "v_threshold" if host == "spikingjelly" else "threshold"
    for make, wrong, near in (
        (lambda **k: module.ELM(4, 2, **k), "num_memry", "num_memory"),
        (lambda **k: module.BranchELM(4, 2, **SMALL, **k), "tau_z", "tau_s"),
        (lambda **k: module.ALIF(4, 2, **k), "tau_vv", "tau_v"),
        (lambda **k: getattr(module, "Cell", module.Layer)(ELM(4, 2), **k), "treshold", threshold),
        (lambda **k: module.Layer(ELM(4, 2), **k), "treshold", threshold),
    ):
        with pytest.raises(TypeError, match=rf"^\w+ has no keyword {wrong}: did you mean {near}\?$"):
            make(**{wrong: 1})  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("kind", constructors(), ids=lambda kind: kind.__name__)
def test_signature_and_help_show_every_keyword_with_type_and_default(kind: Any) -> None:
    shown = inspect.signature(kind).parameters
    config = ELMConfig if issubclass(kind, ELM | ELMCell) else ALIFConfig if issubclass(kind, ALIF | ALIFCell) else None
    source = inspect.signature(SpikeOutput if config is None else config).parameters
    missing = set(source) - set(shown) - {"core"}
    assert missing == ({"adaptive"} if kind is LIF else set())
    for name, parameter in shown.items():
        assert parameter.annotation is not parameter.empty, name
        assert parameter.kind is not parameter.VAR_KEYWORD, name
        if name in source and name not in (
            "num_branch",
            "num_synapse_per_branch",
            "num_memory",
            "routing",
            "surrogate",
        ):
            assert parameter.default == source[name].default, name
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    for name in shown:
        assert f"{name}:" in text, name


@pytest.mark.parametrize("host", ["snntorch", "norse", "spikingjelly"])
def test_signatures_of_faces_show_the_keywords_of_neuron_and_host(host: str) -> None:
    module = faces(host)
    shown = inspect.signature(module.ELM).parameters
    threshold = "v_threshold" if host == "spikingjelly" else "threshold"
    for name in ("num_memory", "tau_m_init", "num_branch", "backend", threshold, "generator"):
        assert shown[name].annotation is not inspect.Parameter.empty
    assert shown["tau_s"].default == (0.005 if host == "norse" else 5.0)
    assert inspect.signature(module.ALIF).parameters["tau_v"].default == (0.01 if host == "norse" else 10.0)
    assert inspect.signature(module.BranchELM).parameters["num_branch"].default is inspect.Parameter.empty
    for face in (module.ELM, module.BranchELM, module.ALIF, getattr(module, "Cell", module.Layer), module.Layer):
        assert all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(face).parameters.values())


def test_the_options_are_those_of_the_configuration() -> None:
    """A TypedDict cannot be made from a dataclass where type checkers see it: the two are held together here."""
    hints, configured = get_type_hints(ELMOptions), get_type_hints(ELMConfig)
    assert set(hints) == {field.name for field in fields(ELMConfig)} - {"input_size", "output_size", "num_memory"}
    assert {name for name, kind in hints.items() if configured[name] != kind} == {"routing"}  # a tensor too


SPIKING = "elm_neuro.nn.SpikingELM"
ELM_IN_YAML = {
    "class_path": "elm_neuro.nn.ELM",
    "init_args": {"input_size": 3, "output_size": 2, "num_memory": 4, "delta_t": 2.0, "tau_s": [1, 2, 3]},
}


@pytest.mark.parametrize(
    ("net", "found"),
    [
        (ELM_IN_YAML, lambda net: net),
        ({"class_path": SPIKING, "init_args": {"core": ELM_IN_YAML, "threshold": 0.5}}, lambda net: net.core),
    ],
)  # fmt: skip
def test_jsonargparse_parses_checks_and_makes_them(net: dict[str, Any], found: Callable[[Any], Any]) -> None:
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "net")
    made = parser.instantiate(parser.parse_object({"net": net})).net
    assert found(made).config == ELMConfig(input_size=3, output_size=2, num_memory=4, delta_t=2.0, tau_s=(1, 2, 3))
    assert made(torch.zeros(1, 2, 3))[0].shape == (1, 2, 2)
    for wrong in ({"delta_t": "fast"}, {"tau_m_init": 3.0}, {"num_memry": 4}):
        bad = {"class_path": "elm_neuro.nn.ELM", "init_args": ELM_IN_YAML["init_args"] | wrong}  # type: ignore[operator]
        with pytest.raises(jsonargparse.ArgumentError, match=next(iter(wrong))):
            parser.parse_object({"net": bad})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIF(3, 2, surrogate=FastSigmoid), "surrogate must be an object, got the class itself"),
        (lambda: SpikingELM(ELM(3, 2), surrogate=FastSigmoid), "surrogate must be an object, got the class itself"),
        (lambda: ELMNetwork(3, 2, surrogate=FastSigmoid), "surrogate must be an object, got the class itself"),
        (lambda: ELM(3, 2, generator=0), "generator must be a torch.Generator, got 0"),
        (lambda: ALIF(3, 2, generator=0), "generator must be a torch.Generator, got 0"),
        (lambda: ELMNetwork(3, 2, generator=0), "generator must be a torch.Generator, got 0"),
        (lambda: ELMNetwork(3, 2, wiring=None), "wiring must be a name, an index tensor or a function, got NoneType"),
        (
            lambda: BranchELM(3, 2, num_branch=2, num_synapse_per_branch=2, routing=np.zeros((2, 2), int)),
            "routing must be a name, None or an index tensor, got ndarray",
        ),
    ],
)
def test_what_is_of_another_kind_is_named(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("b_init", [math.nan, -5.0, "abc", None])
def test_b_init_is_checked_whether_it_is_used_or_not(b_init: Any, adaptive: bool) -> None:
    with pytest.raises(ValueError, match=re.escape(f"b_init must be in [0.001, 1.0], got {b_init!r}")):
        ALIF(3, 2, adaptive=adaptive, b_init=b_init)


def test_true_is_no_number_of_steps() -> None:
    with pytest.raises(ValueError, match="recompute_every must be an integer of at least 1, got True"):
        ELM(3, 2, recompute_every=True)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_times_come_as_any_sequence(kind: Any) -> None:
    assert ELM(3, 2, 2, tau_s=kind([1.0, 2.0, 3.0])).config.tau_s == (1.0, 2.0, 3.0)
