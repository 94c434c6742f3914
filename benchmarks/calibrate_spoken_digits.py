"""How hard the made-up spoken digits are: logistic regression on spike counts, and a GRU, trained and tested as on
recorded digits.

python benchmarks/calibrate_spoken_digits.py --seeds 0 1
python benchmarks/calibrate_spoken_digits.py --smoke

The marks to meet with 1440 training samples are 40 +- 10 % for the regression and 70 +- 10 % for the GRU. They are
marks of `SpokenDigits` alone: no accuracy printed here is one on SHD.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from elm_neuro.datasets import SHDDataset, SpikeRecordings, SpokenDigits, read_shd, unseen_speakers

REGULARISATION = 0.01  # scikit-learn's C, chosen once for standardised counts
LEARNING_RATE, BATCH_SIZE, NUM_HIDDEN = 2e-3, 32, 128


def spike_counts(recordings: SpikeRecordings) -> np.ndarray:
    """Spikes of each sample and channel, (num_samples, 700)."""
    sample = np.repeat(np.arange(len(recordings)), np.diff(recordings.indptr))
    return np.bincount(sample * 700 + recordings.units, minlength=len(recordings) * 700).reshape(-1, 700)


def regression(train: SpikeRecordings, test: SpikeRecordings) -> np.ndarray:
    """Which test samples logistic regression on spike counts gets right, (num_samples,), bool."""
    scale = StandardScaler().fit(spike_counts(train))
    model = LogisticRegression(C=REGULARISATION, max_iter=500).fit(scale.transform(spike_counts(train)), train.labels)
    return model.predict(scale.transform(spike_counts(test))) == test.labels


class Reader(nn.Module):
    """A GRU over time, read out from the mean of its states."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.gru = nn.GRU(input_size, NUM_HIDDEN, batch_first=True)
        self.readout = nn.Linear(NUM_HIDDEN, 20)

    def forward(self, frames: Tensor) -> Tensor:
        states, _ = self.gru(frames)  # (batch, time, NUM_HIDDEN)
        return self.readout(states.mean(dim=1))


def gru(train: SpikeRecordings, test: SpikeRecordings, *, num_epochs: int, seed: int) -> np.ndarray:
    """Which test samples a GRU on 20 ms bins of 140 pooled channels gets right after its last epoch, (num_samples,),
    bool.
    """
    torch.manual_seed(seed)
    options = {"bin_ms": 20.0, "duration_ms": 1000.0, "output": "frames", "pool": 5}
    frames, labels, _ = SHDDataset(train, **options).batch(np.arange(len(train)))
    model = Reader(frames.shape[2])
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(num_epochs):
        for chosen in torch.randperm(len(train)).split(BATCH_SIZE):
            loss = nn.functional.cross_entropy(model(frames[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    frames, labels, _ = SHDDataset(test, **options).batch(np.arange(len(test)))
    with torch.no_grad():
        return (model(frames).argmax(dim=1) == labels).numpy()


def describe(name: str, recordings: SpikeRecordings) -> None:
    count = np.diff(recordings.indptr)
    last = np.array(
        [times[-1] / 1e6 if times.size else 0.0 for times, _ in map(recordings.sample, range(len(recordings)))]
    )
    for what, values, digits in (("spikes", count, 0), ("seconds", last, 2)):
        low, middle, high = np.percentile(values, [5, 50, 95])
        print(
            f"{name}: {what} a sample: mean {values.mean():.{digits}f}, 5 % {low:.{digits}f}, median "
            f"{middle:.{digits}f}, 95 % {high:.{digits}f}"
        )


def report(name: str, right: np.ndarray, unseen: np.ndarray) -> None:
    groups = ", ".join(
        f"{who} speakers {right[chosen].mean():.1%}"
        for who, chosen in (("seen", ~unseen), ("unseen", unseen))
        if chosen.any()
    )
    print(f"{name}: {right.mean():.1%} ({groups})", flush=True)


def made(split: str, num_samples: int, seed: int) -> SpikeRecordings:
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        recordings = SpokenDigits(split, num_samples, seed, cache_dir=folder).recordings()
        print(f"{split}: {num_samples} samples made in {time.process_time() - start:.1f} s of one core")
    return recordings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num-train", type=int, default=1440)
    parser.add_argument("--num-test", type=int, default=1440)
    parser.add_argument("--num-epochs", type=int, default=40)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--train-file", help="SHD-format file in place of made training samples")
    parser.add_argument("--test-file", help="SHD-format file in place of made test samples")
    parser.add_argument(
        "--smoke", action="store_true", help="a few samples and one epoch, in seconds; the accuracies mean nothing"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.num_threads)
    if arguments.smoke:
        arguments.num_train, arguments.num_test, arguments.num_epochs = 80, 60, 1
    for seed in arguments.seeds:
        print(f"seed {seed}, {arguments.num_epochs} epochs")
        train = read_shd(arguments.train_file) if arguments.train_file else made("train", arguments.num_train, seed)
        test = read_shd(arguments.test_file) if arguments.test_file else made("test", arguments.num_test, seed)
        describe("train", train)
        describe("test", test)
        unseen = np.isin(test.speakers, unseen_speakers(train, test))
        print(
            f"majority class: {np.bincount(test.labels).max() / len(test):.1%}, test samples of unseen speakers: "
            f"{unseen.mean():.1%}"
        )
        report("logistic regression on spike counts", regression(train, test), unseen)
        start = time.process_time()
        right = gru(train, test, num_epochs=arguments.num_epochs, seed=seed)
        report("GRU-128, 20 ms bins, 140 pooled channels", right, unseen)
        print(f"the GRU took {time.process_time() - start:.0f} s of CPU")


if __name__ == "__main__":
    main()
