"""The check of a model: onnxruntime beside the module itself, over random lengths, batches, inputs and states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from elm_neuro.export._graph import State
from elm_neuro.export._lowering import write_weights
from elm_neuro.export._measure import FIRST_STEPS, Exact, Measure, Rounded
from elm_neuro.export._model import Built, Found
from elm_neuro.export._nodes import ExportError
from elm_neuro.export._session import Session
from elm_neuro.nn._copies import copied

NUM_STEPS = 32
CHUNK = 16  # steps after which the states of torch are taken up, so that chaos does not look like a fault
LOUDER = (4.0, 16.0, 64.0, 256.0)  # factors on the input while a layer has not fired
MIN_STEPS = 10  # that must be decided, or a twentieth of all where those are fewer


class VerifyReport(NamedTuple):
    """How far the model and the module are apart, and over how much of what they give."""

    errors: dict[str, float]  # of each output: see `unit`
    tolerances: dict[str, float]  # what was allowed
    num_steps: int  # steps run, over all sequences
    opset: int
    num_undecided: int  # steps of y left out, for a spike so near its threshold that rounding decides, or after one
    form: str
    precision: str
    runtime: str
    compared: dict[str, int]  # values of each output that were compared
    argmax: dict[str, float]  # in lower precision, share of steps with another largest output
    silent: tuple[str, ...]  # layers that never fired, however loud the input: nothing behind them was seen

    @property
    def unit(self) -> str:
        """What the errors are."""
        if self.precision == "float32":
            return "largest absolute difference"
        return "root mean square of the difference by the spread of the output; share of spikes that differ"


class Case(NamedTuple):
    """A batch of sequences."""

    batch: int
    density: float  # share of inputs that are not zero
    fresh: bool = True  # from the start of a sequence, else from random states
    gain: float = 1.0
    num_active: int | None = None  # steps with an input; all by default


@torch.no_grad()
def compare(model: bytes | Path, built: Built, *, num_steps: int, seed: int, provider: str = "cpu") -> VerifyReport:
    """Run a model beside the module it was built from.

    Args:
        model: the file, or what is in it.
        built: what it should compute.
        num_steps: length of the longest sequence; the form "unrolled" has its own.
        seed: of the random inputs and states.
        provider: of onnxruntime.

    Raises:
        ExportError: the file is not a model of this module, an output is off by more than is allowed, or too few steps
            could be compared.
    """
    check = _Check(Session(model, built, provider), built, num_steps, seed)
    for case in check.cases():
        check.run(case)
    for gain in LOUDER:
        if not check.silent:
            break
        check.run(Case(check.batches[-1], 1.0, gain=gain))
    return check.report()


class _Check:
    """A model, the module itself, and what their outputs have been so far.

    Both copies of the module are the check's own: faces keep states, hooks and generators theirs. The second one is in
    the other of float32 and float64; it shows torch's own rounding error, and how near spikes are to their thresholds.
    """

    def __init__(self, session: Session, built: Built, num_steps: int, seed: int) -> None:
        self.session, self.built = session, built
        self.num_steps = num_steps if built.options.num_steps is None else built.options.num_steps
        self.generator = torch.Generator().manual_seed(seed)
        self.module, self.twin = copied(built.module), copied(built.module)
        other = torch.float64 if built.dtype == torch.float32 else torch.float32
        write_weights(self.twin.to(other))
        for part in self.twin.modules():
            if hasattr(part, "backend"):
                # a watched surrogate is a function that other backends may not know
                setattr(part, "backend", "reference")  # noqa: B010  # torch types attributes as tensors and modules
        self.other = other
        self.device = next(built.module.parameters()).device
        kind: Callable[[Built, str], Measure] = Exact if built.options.precision == "float32" else Rounded
        self.measures = {name: kind(built, name) for name in built.results}
        self.num_spikes: dict[str, int] = {}
        self.total = self.undecided = 0
        size = built.options.batch_size
        self.batches = (1, 2, 5) if size is None else (size, size)

    def cases(self) -> Iterator[Case]:
        *first, last = self.batches
        drawn = self.built.options.precision == "float32"  # in lower precision they would hide an error of the weights
        for batch, density in zip(first, (0.05, 0.5), strict=False):
            yield Case(batch, density, fresh=not drawn)
        yield Case(last, 1.0)
        if self.built.options.num_steps is not None and self.num_steps > CHUNK:
            # over many steps of many neurons some spike is undecided: with a quiet end the last states can be compared
            yield Case(self.batches[-1], 0.5, num_active=CHUNK)

    @property
    def silent(self) -> tuple[str, ...]:
        """Layers that have not fired."""
        return tuple(name or "module" for name, number in self.num_spikes.items() if number == 0)

    def run(self, case: Case) -> None:
        """One batch in chunks of random length, each from where the module's last one ended."""
        built, fixed = self.built, self.built.options.num_steps is not None
        left = self.num_steps if fixed or case.batch == 1 else self._draw(self.num_steps)
        states = {name: self._random_state(case.batch, state).to(self.device) for name, state in built.states.items()}
        rounded = built.options.precision != "float32"
        if case.fresh:
            states = {name: torch.zeros_like(state) for name, state in states.items()}
        while left:
            longest = CHUNK if rounded and case.batch != self.batches[-1] else FIRST_STEPS
            length = left if fixed else self._draw(min(left, longest if rounded else CHUNK))
            left -= length
            x = torch.randn(case.batch, length, *built.x.shape, generator=self.generator) * case.gain
            x = (x * (torch.rand(x.shape, generator=self.generator) < case.density)).to(built.dtype)
            if built.options.input_dtype is not None:
                limits = torch.iinfo(built.frames_dtype)
                x = x.round().clamp(limits.min, limits.max)
            if case.num_active is not None:
                x[:, case.num_active :] = 0.0
            lengths = self._random_lengths(case.batch, length)
            states = self._chunk(x, states, lengths, count=case.fresh)

    def _chunk(self, x: Tensor, states: dict[str, Tensor], lengths: Tensor | None, *, count: bool) -> dict[str, Tensor]:
        """Compare one chunk, and with `count` note which layers fire; the module's states after it."""
        built, (batch, length) = self.built, x.shape[:2]
        given = x.to(built.frames_dtype)
        found = self.session.run(given if lengths is None else _spoiled(given, lengths), states, lengths)
        expected = self._whole(self.module, x.to(self.device), states, lengths)
        near = self._whole(
            self.twin,
            x.to(self.device, self.other),
            {name: state.to(self.other) for name, state in states.items()},
            lengths,
            watched=True,
        )
        for name, number in near.num_spikes.items():
            self.num_spikes[name] = self.num_spikes.get(name, 0) + count * number
        for name, measure in self.measures.items():
            margin = near.margins.get(name, torch.tensor(torch.inf)).expand(batch, length)
            got, want, other = (
                part.detach().double().cpu() for part in (found[name], expected.outputs[name], near.outputs[name])
            )
            measure.add(got, want, other, margin)
        self.total += batch * length
        first = self.measures[next(iter(built.outputs))]
        self.undecided = first.undecided
        return {name: expected.outputs[f"{name}_next"] for name in states}

    def _whole(
        self,
        module: nn.Module,
        x: Tensor,
        states: dict[str, Tensor],
        lengths: Tensor | None,
        *,
        watched: bool = False,
    ) -> Found:
        """What the module gives; where samples have lengths, each alone and without its padding."""
        if lengths is None:
            return self.built.run(module, x, states, watched=watched)
        samples = []
        for i, end in enumerate(lengths.tolist()):
            own = {name: state[i : i + 1] for name, state in states.items()}
            if end:
                samples.append(self.built.run(module, x[i : i + 1, :end], own, watched=watched))
            else:  # its states stay, and all its outputs are padding
                samples.append(Found({f"{name}_next": state for name, state in own.items()}, {}, {}))
        whole = samples[int(lengths.argmax())]
        outputs = {}
        for name, value in whole.outputs.items():
            parts = [found.outputs.get(name, value[:, :0]) for found in samples]
            outputs[name] = torch.cat([_padded(part, x.shape[1]) if self.built.timed(name) else part for part in parts])
        margins = {}
        for name in whole.margins:
            nearest = [
                found.margins.get(name, torch.tensor(torch.inf)).expand(1, end)
                for found, end in zip(samples, lengths.tolist(), strict=True)
            ]
            margins[name] = torch.cat([_padded(part, x.shape[1], torch.inf) for part in nearest])
        return Found(
            outputs,
            margins,
            {name: sum(found.num_spikes.get(name, 0) for found in samples) for name in whole.num_spikes},
        )

    def report(self) -> VerifyReport:
        """What was found.

        Raises:
            ExportError: an output is off by more than is allowed, or could not be compared.
        """
        built, kind = self.built, type(self.built.module).__name__
        errors = {name: measure.error for name, measure in self.measures.items()}
        tolerances = {name: measure.tolerance for name, measure in self.measures.items()}
        wrong = [measure.wrong(name) for name, measure in self.measures.items()]
        if any(wrong):
            raise ExportError(
                f"{self.session.runtime} must compute what {kind} computes, got outputs that are off by "
                f"{', '.join(filter(None, wrong))}"
            )
        for name, measure in self.measures.items():
            steps = measure.num_compared
            if name not in built.outputs and isinstance(measure, Rounded) and built.options.num_steps is not None:
                continue  # after so many steps spikes have fallen otherwise; the outputs of the first ones are compared
            few = steps < max(1, min(MIN_STEPS, self.total // 20)) if built.timed(name) else steps == 0
            if few:
                raise ExportError(
                    f"{name} must be compared at {MIN_STEPS} steps or more, got {steps} of {self.total}: at the others "
                    f"a readout of {kind} is so near its threshold that rounding decides, so that nothing is verified"
                )
        return VerifyReport(
            errors,
            tolerances,
            self.total,
            self.session.opset,
            self.undecided,
            built.options.form,
            built.options.precision,
            self.session.runtime,
            {name: measure.num_values for name, measure in self.measures.items()},
            {name: measure.argmax for name, measure in self.measures.items() if measure.argmax is not None},
            self.silent,
        )

    def _draw(self, limit: int) -> int:
        return int(torch.randint(1, limit + 1, (), generator=self.generator))

    def _random_lengths(self, batch: int, length: int) -> Tensor | None:
        if not self.built.options.lengths:
            return None
        # a readout of a sample without steps is not defined
        least = 0 if all(self.built.timed(name) for name in self.built.outputs) else 1
        lengths = torch.randint(least, length + 1, (batch,), generator=self.generator)
        lengths[int(torch.randint(batch, (), generator=self.generator))] = length
        return lengths

    def _random_state(self, batch: int, state: State) -> Tensor:
        drawn = torch.randn(batch, *state.shape, generator=self.generator)
        return (drawn > 1.0).to(self.built.dtype) if state.spikes else drawn.to(self.built.dtype)


def _spoiled(x: Tensor, lengths: Tensor) -> Tensor:
    """`x` with what must not matter past each sample's end."""
    past = torch.arange(x.shape[1]) >= lengths[:, None]
    spoil = torch.nan if x.is_floating_point() else torch.iinfo(x.dtype).max
    return x.masked_fill(past.view(*past.shape, *[1] * (x.ndim - 2)), spoil)


def _padded(value: Tensor, length: int, fill: float = 0.0) -> Tensor:
    """A sample's records (1, time, ...) with `fill` up to `length` steps."""
    rest = value.new_full((1, length - value.shape[1], *value.shape[2:]), fill)
    return torch.cat([value, rest], dim=1)
