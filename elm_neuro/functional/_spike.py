"""Spikes from a distance to threshold, and the slopes that learning sees in place of the step's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function

from elm_neuro.functional._transforms import batched, transformed

Surrogate = Callable[[Tensor], Tensor]


class _Step(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(distance: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        return distance.clone().gt_(0)  # stays in the dtype: a comparison into bools and a cast take five times as long

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        distance, ctx.slope = inputs
        ctx.save_for_backward(distance)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        (distance,) = ctx.saved_tensors
        slope = ctx.slope(distance)
        return (slope * grad[0] if torch.is_grad_enabled() or batched(grad) else slope.mul_(grad[0])), None


# torch asks for it in every call, and finding it out anew takes longer than the step
_Step.forward.__signature__ = inspect.signature(_Step.forward)  # type: ignore[attr-defined]


class _TransformedStep(_Step):
    """The same for vmap, which has no rule for a comparison in place, and forward mode, which torch.compile refuses."""

    @staticmethod
    def forward(distance: Tensor, slope: Callable[[Tensor], Tensor]) -> Tensor:
        return (distance > 0).to(distance.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Step.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (distance,) = ctx.saved_tensors
        return torch.mul(ctx.slope(distance), tangent)


class _Bernoulli(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(logit: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.bernoulli(torch.sigmoid(logit), generator=generator)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        (logit,) = ctx.saved_tensors
        return grad[0] * _sigmoid_slope(logit), None


class _TransformedBernoulli(_Bernoulli):
    """The same for forward mode, which torch.compile refuses."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Bernoulli.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (logit,) = ctx.saved_tensors
        return tangent * _sigmoid_slope(logit)


def _sigmoid_slope(logit: Tensor) -> Tensor:
    probability = torch.sigmoid(logit)
    return probability * (1.0 - probability)


def bernoulli_spike(logit: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """1 with probability ``sigmoid(logit)``, else 0; the gradient is that of the probability (straight-through).

    Args:
        logit: any shape.
        generator: source of the random numbers; torch's global one by default.

    Raises:
        RuntimeError: `generator` is asked for spikes during a backward pass, which are to be those of the forward pass.

    >>> bernoulli_spike(torch.tensor([-100.0, 100.0]))
    tensor([0., 1.])
    """
    if generator is not None and torch._C._current_autograd_node() is not None:
        raise RuntimeError(
            "a generator of its own cannot draw the same spikes again, as torch.utils.checkpoint asks in the backward "
            "pass: draw from torch's global generator (generator=None), whose state it restores"
        )
    if _recorded_without_gradient():
        return torch.bernoulli(torch.sigmoid(logit), generator=generator)
    draw = _TransformedBernoulli if transformed() else _Bernoulli
    spikes: Tensor = draw.apply(logit, generator)  # type: ignore[no-untyped-call]  # torch leaves Function.apply untyped
    return spikes


def _recorded_without_gradient() -> bool:
    """Whether ``torch.jit.trace`` records for use alone: it saves no functions with a gradient of their own."""
    return torch._C._get_tracing_state() is not None and not torch.is_grad_enabled()


class SurrogateStep:
    """A surrogate called on the distance to threshold: 1 where it is positive, in its dtype, with the gradient of
    :meth:`slope`.

    Raises:
        ValueError: a setting is not a finite number, or one of :attr:`positive` is not above 0.

    >>> FastSigmoid(float("inf"))
    Traceback (most recent call last):
    ValueError: scale of FastSigmoid must be a finite number, got inf
    """

    positive: ClassVar[tuple[str, ...]] = ()  # settings with which the slope has a pole, or is nowhere, unless above 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value):
                raise ValueError(f"{name} of {type(self).__name__} must be a finite number, got {value}")
            if name in self.positive and value <= 0:
                raise ValueError(f"{name} of {type(self).__name__} must be above 0, got {value}")

    def __call__(self, distance: Tensor) -> Tensor:
        if _recorded_without_gradient():
            return (distance > 0).to(distance.dtype)
        step = _TransformedStep if transformed() else _Step
        if step is _Step and not (distance.requires_grad and torch.is_grad_enabled()):
            return _Step.forward(distance, self.slope)  # nothing learns: torch's way around it is a tenth of a step
        spikes: Tensor = step.apply(distance, self.slope)  # type: ignore[no-untyped-call]
        return spikes

    def slope(self, distance: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class FastSigmoid(SurrogateStep):
    r"""Slope :math:`1 / (1 + k |x|)^2`. Source: Zenke and Ganguli 2018, arXiv:1705.11146; `scale` 10 as in Blocks.

    >>> FastSigmoid()(torch.tensor([-1.0, 0.0, 0.5]))
    tensor([0., 0., 1.])
    """

    positive = ("scale",)
    scale: float = 10.0

    def slope(self, distance: Tensor) -> Tensor:
        x = distance.abs().mul_(self.scale).add_(1.0)
        return (x * x).reciprocal()


@dataclass(frozen=True)
class ATan(SurrogateStep):
    r"""Slope :math:`\frac{\alpha}{2} / (1 + (\frac{\pi}{2} \alpha x)^2)`, the default of snnTorch. Source: Fang et al.
    2021, arXiv:2007.05785.
    """

    positive = ("alpha",)
    alpha: float = 2.0

    def slope(self, distance: Tensor) -> Tensor:
        x = distance * (math.pi / 2.0 * self.alpha)
        return (x * x).add_(1.0).reciprocal() * (self.alpha / 2.0)


@dataclass(frozen=True)
class Boxcar(SurrogateStep):
    """Slope `height` within `width` / 2 of the threshold, 0 elsewhere. Source: Blocks (Taylor, King, Harper, NeurIPS
    2023).
    """

    positive = ("width",)
    width: float = 1.0
    height: float = 0.5

    def slope(self, distance: Tensor) -> Tensor:
        return self.height * (distance.abs() < self.width / 2.0).to(distance.dtype)


@dataclass(frozen=True)
class MultiGaussian(SurrogateStep):
    r"""Slope of one narrow positive and two wide negative Gaussians.

    .. math:: \gamma\,[(1 + h)\,N(x; 0, \sigma) - h\,N(x; \sigma, s\sigma) - h\,N(x; -\sigma, s\sigma)]

    Source: Yin, Corradi, Bohté 2021, arXiv:2103.12593; the defaults are those of Blocks' runs.
    """

    positive = ("sigma", "s")
    sigma: float = 0.5
    h: float = 0.15
    s: float = 6.0
    gamma: float = 0.5

    def slope(self, distance: Tensor) -> Tensor:
        wide = self.s * self.sigma
        centre = (1.0 + self.h) * _gaussian(distance, 0.0, self.sigma)
        sides = _gaussian(distance, self.sigma, wide) + _gaussian(distance, -self.sigma, wide)
        return self.gamma * (centre - self.h * sides)


@dataclass(frozen=True)
class Sigmoid(SurrogateStep):
    r"""Slope :math:`k\,\sigma(k x)\,(1 - \sigma(k x))`, that of a steep sigmoid; `scale` 25 as in snnTorch."""

    positive = ("scale",)
    scale: float = 25.0

    def slope(self, distance: Tensor) -> Tensor:
        sigmoid = torch.sigmoid(self.scale * distance)
        return self.scale * (sigmoid * (1.0 - sigmoid))


def spikes_of(surrogate: Surrogate, distance: Tensor, name: str) -> Tensor:
    """What a surrogate gives at a distance to threshold; where rounding has moved a spike by a hair, as it does in
    ``h + s - s.detach()``, exactly 0 or 1.

    Args:
        surrogate: any function of the distance.
        distance: any shape.
        name: of what has the distance's dtype, for the message.

    Raises:
        TypeError: it gives no tensor, or another dtype.
        ValueError: it gives another shape.
    """
    spikes = surrogate(distance)
    if isinstance(surrogate, SurrogateStep):
        return spikes
    if not isinstance(spikes, Tensor):
        raise TypeError(f"surrogate must give a tensor of spikes, got {type(spikes).__name__}")
    if spikes.dtype != distance.dtype:
        raise TypeError(f"surrogate must keep the dtype {distance.dtype} of the {name}, got spikes of {spikes.dtype}")
    if spikes.shape != distance.shape:
        raise ValueError(f"surrogate must keep the shape {tuple(distance.shape)}, got {tuple(spikes.shape)}")
    value = spikes.detach()
    off = value.round() - value
    return spikes + torch.where(off.abs() < torch.finfo(off.dtype).eps ** 0.5, off, 0.0)


SURROGATES: dict[str, type[Any]] = {kind.__name__: kind for kind in (ATan, Boxcar, FastSigmoid, MultiGaussian, Sigmoid)}


def surrogate_to_dict(surrogate: Surrogate) -> dict[str, Any]:
    """Class and settings of a surrogate of this module, as JSON holds them.

    Raises:
        TypeError: it is another function, of which a file can hold nothing.

    >>> surrogate_to_dict(FastSigmoid(25.0))
    {'class': 'FastSigmoid', 'scale': 25.0}
    """
    name = type(surrogate).__name__
    if SURROGATES.get(name) is not type(surrogate):
        raise TypeError(f"surrogate must be one of {', '.join(SURROGATES)} to be saved, got {surrogate!r}")
    return {"class": name} | {
        setting: float(value) if not isinstance(value, int) and isinstance(value, Real) else value
        for setting, value in vars(surrogate).items()
    }


def surrogate_from_dict(values: object) -> Surrogate:
    """Inverse of :func:`surrogate_to_dict`.

    Raises:
        ValueError: the class or a setting is none of this module's.
    """
    if not isinstance(values, dict) or values.get("class") not in SURROGATES:
        raise ValueError(f"surrogate must have a class of {', '.join(SURROGATES)}, got {values!r:.200}")
    kind = SURROGATES[values["class"]]
    settings = {name: value for name, value in values.items() if name != "class"}
    names = [field.name for field in fields(kind)]
    if not settings.keys() <= set(names) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        for value in settings.values()
    ):
        raise ValueError(f"surrogate {values['class']} must have numbers for {', '.join(names)}, got {settings!r:.200}")
    surrogate: Surrogate = kind(**settings)
    return surrogate


def _gaussian(x: Tensor, mean: float, sigma: float) -> Tensor:
    return torch.exp(-0.5 * ((x - mean) / sigma) ** 2) / (sigma * math.sqrt(2.0 * math.pi))
