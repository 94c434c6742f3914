"""A language model of bytes: what is carried, what it learns, and that it goes on where it was stopped."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from elm_neuro import ELM, ELMNetworkClassifier
from elm_neuro.datasets import alphabet
from elm_neuro.training import ByteModel, TextStreamDataModule
from elm_neuro.training.enwik8._module import one_hot_events

SMALL: dict[str, Any] = {"num_branch": 4, "num_synapse_per_branch": 3, "tau_m_init": (1.0, 20.0), "binarize": False}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words in an order that is drawn: after a letter of a word the next one is sure."""
    rng = np.random.default_rng(0)
    words = [b"alpha ", b"beta ", b"gamma ", b"delta "]
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_bytes(b"".join(words[k] for k in rng.integers(0, 4, 700)))
    return path


def data(path: Path, **options: Any) -> TextStreamDataModule:
    settings: dict[str, Any] = {"num_bytes": None, "held_back": 300, "batch_size": 8, "num_steps": 20}
    return TextStreamDataModule(path, **{**settings, "eval_batch_size": 2, **options})


def model(num_letters: int = 11, **options: Any) -> ByteModel:
    seed_everything(0, verbose=False)
    network = ELMNetworkClassifier(num_letters, num_letters, 12, 4, input_dropout=0.1, **SMALL)
    return ByteModel(network, **{"learning_rate": 2e-2, **options})


def test_a_model_learns_letters_and_says_bits(text: Path, make_trainer: Callable[..., Trainer]) -> None:
    """Below the entropy of single letters, which is what a model without a memory reaches at best."""
    letters = np.frombuffer(text.read_bytes(), dtype=np.uint8)
    share = np.unique(letters, return_counts=True)[1] / len(letters)
    entropy = float(-(share * np.log2(share)).sum())
    fitted, source = model(), data(text)
    assert source.num_letters == len(alphabet(letters)) == 11
    trainer = make_trainer(max_epochs=6)
    untrained = make_trainer().validate(model(), datamodule=source, verbose=False)[0]["valid/bits"]
    assert untrained == pytest.approx(math.log2(11), abs=1.0)
    trainer.fit(fitted, datamodule=source)
    bits = trainer.test(fitted, datamodule=source, verbose=False)[0]["test/bits"]
    assert bits < entropy < untrained


def test_evaluation_is_one_pass_over_the_text(text: Path, make_trainer: Callable[..., Trainer]) -> None:
    """Against the layer over the whole stream at once, from no state."""
    fitted, source = model().eval(), data(text)
    bits = make_trainer().validate(fitted, datamodule=source, verbose=False)[0]["valid/bits"]
    streams = source.streams("valid")
    tokens = torch.cat([streams[k].tokens for k in range(len(streams))], 1)
    targets = torch.cat([streams[k].targets for k in range(len(streams))], 1)
    with torch.no_grad():
        logits, _ = fitted.network(one_hot_events(tokens, 11, 3.0))
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).item() / math.log(2.0)
    assert bits == pytest.approx(wanted, rel=1e-5)


class Cut(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def test_a_run_goes_on_in_the_middle_of_a_text_with_its_state(
    text: Path, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole = model()
    make_trainer(max_epochs=2).fit(whole, datamodule=data(text))
    cut = model()
    saved = ModelCheckpoint(tmp_path, "last", every_n_train_steps=1, enable_version_counter=False)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        make_trainer(max_epochs=2, callbacks=[saved, Cut(7)], enable_checkpointing=True).fit(cut, datamodule=data(text))
    resumed = model()
    trainer = make_trainer(
        max_epochs=2,
        callbacks=[ModelCheckpoint(tmp_path, "on", every_n_train_steps=1, enable_version_counter=False)],
        enable_checkpointing=True,
    )
    trainer.fit(resumed, datamodule=data(text), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for ours, theirs in zip(resumed.carried["train"], whole.carried["train"], strict=True):
        assert torch.equal(ours, theirs)


def test_any_layer_is_a_model_and_its_sizes_are_checked(text: Path, make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(max_steps=2)
    trainer.fit(ByteModel(ELM(11, 11, num_memory=4)), datamodule=data(text))
    with pytest.raises(ValueError, match="an input and an output for each of 11 letters, got 9 and 9"):
        make_trainer(max_steps=2).fit(model(9), datamodule=data(text))
    with pytest.raises(TypeError, match="network must be a layer"):
        ByteModel(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match="input_scale must be a finite number above 0, got 0"):
        model(input_scale=0)


def test_the_flag_that_the_host_asks_about_stays_there(text: Path) -> None:
    source = data(text)
    batch = next(iter(source.val_dataloader()))
    there = source.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert there.tokens.is_meta and there.targets.is_meta and there.begins is batch.begins
