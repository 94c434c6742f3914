"""Settings behave as the frozen dataclasses that the standard library makes of the same fields."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import pytest
import torch

from elm_neuro import ALIFConfig, ELMConfig
from elm_neuro.functional import FastSigmoid, MultiGaussian, NetworkRule
from elm_neuro.functional._settings import settings
from elm_neuro.nn import ELMNetworkConfig

MADE: list[Any] = [
    ELMConfig(input_size=3, output_size=2, tau_s=(1.0, 2.0, 3.0)),
    ALIFConfig(input_size=3, output_size=2),
    ELMNetworkConfig(input_size=3, output_size=2, tau_m_bounds=(0.5, 600)),
    FastSigmoid(4.0),
    MultiGaussian(h=0.25),
    NetworkRule("silu"),
]


def of_the_standard_library(one: Any) -> Any:
    """An equal one of a class of the same name and fields."""
    fields = [(field.name, field.type, dataclasses.field(default=field.default)) for field in dataclasses.fields(one)]
    kind = dataclasses.make_dataclass(type(one).__name__, fields, frozen=True, kw_only=fields[0][0] == "input_size")
    return kind(**{name: getattr(one, name) for name, *_ in fields})


@pytest.mark.parametrize("one", MADE, ids=lambda one: type(one).__name__)
def test_text_hash_signature_and_copies_are_those_of_a_frozen_dataclass(one: Any) -> None:
    theirs = of_the_standard_library(one)
    assert repr(one) == repr(theirs)
    assert hash(one) == hash(theirs)
    assert dataclasses.asdict(one) == dataclasses.asdict(theirs)
    shown, expected = (inspect.signature(type(each)).parameters.values() for each in (one, theirs))
    assert [(each.name, each.kind, each.default) for each in shown] == [
        (each.name, each.kind, each.default) for each in expected
    ]
    for copied in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one)), dataclasses.replace(one)):
        assert copied == one
        assert hash(copied) == hash(one)
        assert copied is not one
    assert one != theirs
    assert theirs != one


@pytest.mark.parametrize("one", MADE, ids=lambda one: type(one).__name__)
def test_nothing_is_set_or_deleted(one: Any) -> None:
    before = dict(vars(one))
    theirs = of_the_standard_library(one)
    for name in (*before, "another", "slope"):
        messages = []
        for each in (one, theirs):
            for change in (lambda: setattr(each, name, 1.0), lambda: delattr(each, name)):  # noqa: B023
                with pytest.raises(dataclasses.FrozenInstanceError) as refused:
                    change()
                messages.append(str(refused.value))
        assert messages[:2] == messages[2:]
    assert vars(one) == before


def test_one_other_value_makes_it_another() -> None:
    for one in MADE:
        for field in dataclasses.fields(one):
            other = copy.copy(one)
            vars(other)[field.name] = object()
            assert other != one


def test_a_stranger_s_order_of_fields_makes_no_difference() -> None:
    one = MADE[0]
    shuffled = copy.copy(one)
    values = dict(reversed(vars(one).items()))
    vars(shuffled).clear()
    shuffled.__setstate__(values)
    assert (shuffled, hash(shuffled), repr(shuffled)) == (one, hash(one), repr(one))


def test_classes_derive_from_them_as_from_frozen_dataclasses() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Longer(ELMConfig):
        seed: int = 0

    longer = Longer(input_size=3, output_size=2, seed=5)
    assert (longer.seed, longer.branches) == (5, 3)
    assert longer == dataclasses.replace(longer, seed=5) != dataclasses.replace(longer, seed=6)
    assert longer != ELMConfig(input_size=3, output_size=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        longer.input_size = 4  # type: ignore[misc]

    class Named(FastSigmoid):
        def __init__(self, scale: float) -> None:
            super().__init__(scale)
            self.name = "slope"

    named = Named(3.0)
    named.name = "other"
    assert (named.scale, named.name, named == Named(3.0)) == (3.0, "other", True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        named.scale = 4.0  # type: ignore[misc]
    with pytest.raises(TypeError, match="non-frozen"):

        @dataclasses.dataclass
        class Changing(ELMConfig):  # type: ignore[misc]
            pass

    class Module(FastSigmoid, torch.nn.Module):  # what stands behind it is asked too
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.weight = torch.nn.Parameter(torch.zeros(()))

    assert [name for name, _ in Module().named_parameters()] == ["weight"]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen must be True"):
        settings(frozen=False)
