"""The figure of docs/how-to/look.md: what one more spike on each branch of a published neuron changes.

python docs/figures/look.py [--out docs/figures/look.png]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from elm_neuro import checkpoints
from elm_neuro.look import parts_of, poisson_drive, spike_responses
from elm_neuro.look._figures import responses_figure

HERE = Path(__file__).resolve().parent
NAME = "num_memory_20"


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "look.png")
    out = parser.parse_args().out
    beside = HERE.parent / "tutorials" / NAME  # without it, it is downloaded
    neuron = checkpoints.from_pretrained(beside if beside.is_dir() else NAME)
    (part,) = parts_of(neuron)
    drive = poisson_drive(neuron.input_size, neuron.delta_t, num_excitatory=part.num_excitatory, duration_ms=2000.0)
    shown = responses_figure(part, spike_responses(part, drive.events), drive)
    shown.figure.savefig(out, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
