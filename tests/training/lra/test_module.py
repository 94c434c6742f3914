"""Training on token sequences: accuracies by length and group, resuming, budgets of time, gradient accumulation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from elm_neuro import ELM
from elm_neuro.datasets.lra import ListOpsSettings, MadeListOps, make_listops
from elm_neuro.training import (
    ListOpsDataModule,
    ResidualStack,
    SequentialDigitsDataModule,
    TimeBudget,
    TokenClassification,
    TokenClassifier,
    TokenReport,
    num_parameters,
)
from elm_neuro.training.lra._groups import AnswersByGroup, Share

SMALL = ListOpsSettings(max_depth=4, max_args=4, min_length=5, max_length=30)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 short expressions to train on, 20 to validate and 20 to test."""
    path = tmp_path_factory.mktemp("listops") / "made"
    make_listops(200, SMALL).save(path)
    return path


@pytest.fixture
def data(source: Path, tmp_path: Path) -> Callable[..., ListOpsDataModule]:
    return lambda **options: ListOpsDataModule(source, cache_dir=source.parent, **{"batch_size": 20, **options})


def module(dropout: float = 0.0, **options: Any) -> TokenClassification:
    torch.manual_seed(0)
    if dropout:
        layers = [ELM(6, 12, 4, tau_m_init=(1.0, 30.0)) for _ in range(2)]
        return TokenClassification(ResidualStack(layers, num_tokens=25, num_classes=10, dropout=dropout), **options)
    return TokenClassification(TokenClassifier(ELM(25, 10, 5, tau_m_init=(1.0, 30.0))), **options)


def test_accuracies_by_length_and_group_are_counted_right() -> None:
    random = np.random.default_rng(0)
    labels, answers = random.integers(0, 3, 200), random.integers(0, 3, 200)
    lengths, groups = random.integers(5, 60, 200), random.integers(0, 2, 200)
    counted = AnswersByGroup()
    for start in range(0, 200, 50):
        rows = slice(start, start + 50)
        logits = torch.nn.functional.one_hot(torch.from_numpy(answers[rows]), 3).float()
        counted.update(*(logits, *(torch.from_numpy(one[rows]) for one in (labels, lengths, groups))))
    right = labels == answers
    figures = counted.compute()
    assert figures["accuracy"] == pytest.approx(right.mean())
    assert figures["majority"] == np.bincount(labels).max() / 200
    best = sum(np.bincount(labels[groups == group]).max() for group in (0, 1)) / 200
    assert figures["by_group"] == pytest.approx(best)
    shares = counted.by_length(4)
    assert sum(share.samples for share in shares.values()) == 200 and len(shares) == 4
    for name, share in shares.items():
        low, high = map(int, name.split("-"))
        chosen = (lengths >= low) & (lengths <= high)
        assert share == Share(pytest.approx(right[chosen].mean()), chosen.sum())
    assert counted.by_group(["a", "b"])["b"].accuracy == pytest.approx(right[groups == 1].mean())
    confusion = counted.confusion(3)
    assert confusion[0, 1] == ((labels == 0) & (answers == 1)).sum()
    counted.reset()
    pairs = torch.tensor([3, 9, 4, 4])
    counted.update(torch.eye(2), torch.tensor([0, 1]), pairs, torch.tensor([-1, -1]))
    assert set(counted.by_length(2)) == {"4-6", "7-9"} and counted.by_group([]) == {}
    assert "by_group" not in counted.compute()


def test_a_run_prints_what_needs_no_network_and_reports_by_length_and_operator(
    data: Callable[..., ListOpsDataModule],
    source: Path,
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = TokenReport(tmp_path / "test")
    trainer = make_trainer(max_epochs=2, callbacks=[report])
    trained, sequences = module(), data()
    trainer.fit(trained, datamodule=sequences)
    trainer.test(trained, datamodule=sequences)
    written = json.loads((tmp_path / "test" / "evaluation.json").read_text())
    made = MadeListOps.load(source)
    test = made.sequences(180, 200)
    assert written["majority"] == np.bincount(test.labels).max() / 20
    best = sum(np.bincount(test.labels[test.groups == group]).max() for group in set(test.groups.tolist())) / 20
    assert written["by_group"] == pytest.approx(best)
    assert sum(map(sum, written["confusion"])) == 20
    assert sum(one["samples"] for one in written["groups"].values()) == 20
    assert set(written["groups"]) <= {"[MAX", "[MED", "[MIN", "[SM"}
    printed = capsys.readouterr().out
    assert f"the best answer to each root operator {100 * best:.1f} %" in printed
    assert "validation: the commonest answer scores" in printed
    assert printed.count("validation: the commonest") == 1
    assert "by root operator: [M" in printed


def test_digits_are_learned(make_trainer: Callable[..., Trainer]) -> None:
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    network = TokenClassifier(ELM(17, 10, 30, tau_m_init=(1.0, 64.0), tau_m_bounds=(1.0, 64.0)))
    trained, data = TokenClassification(network, learning_rate=5e-3), SequentialDigitsDataModule(batch_size=32)
    trainer = make_trainer(max_epochs=3)
    trainer.fit(trained, datamodule=data)
    (figures,) = trainer.test(trained, datamodule=data)
    assert figures["test/accuracy"] > 0.4 > 3 * figures["test/majority"]


class PowerCut(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError


@pytest.mark.parametrize("cut", [5, 8, 11])
def test_a_run_broken_off_goes_on_as_one_that_was_not(
    data: Callable[..., ListOpsDataModule], make_trainer: Callable[..., Trainer], tmp_path: Path, cut: int
) -> None:
    def fit(*callbacks: Callback, ckpt_path: Path | None = None) -> dict[str, torch.Tensor]:
        trained = module(dropout=0.3, learning_rate=1e-2)
        keep = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=1, enable_version_counter=False)
        trainer = make_trainer(max_epochs=2, callbacks=[keep, *callbacks], enable_checkpointing=True)
        trainer.fit(trained, datamodule=data(), ckpt_path=ckpt_path)
        assert trainer.global_step == 16
        return {key: value.clone() for key, value in trained.state_dict().items()}

    expected = fit()
    with pytest.raises(InterruptedError):
        fit(PowerCut(cut))
    resumed = fit(ckpt_path=tmp_path / "last.ckpt")
    for key, value in expected.items():
        assert torch.equal(value, resumed[key]), key


def test_accumulated_gradients_are_those_of_the_whole_batch(
    data: Callable[..., ListOpsDataModule], make_trainer: Callable[..., Trainer]
) -> None:
    weights = []
    for size, pieces in ((40, 1), (20, 2)):
        trained = module(learning_rate=1e-2)
        sequences = data(batch_size=size)
        order = data(batch_size=40).train_dataloader().sampler
        sequences.train_dataloader = lambda sequences=sequences, order=order: sequences._loader(  # type: ignore[method-assign]
            sequences.part("train"), order
        )
        trainer = make_trainer(max_epochs=1, accumulate_grad_batches=pieces)
        trainer.fit(trained, datamodule=sequences)
        assert trainer.global_step == 4
        weights.append(trained.network.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-4, msg=key)


def test_a_budget_of_time_ends_a_run_with_a_rate_that_has_come_down(
    data: Callable[..., ListOpsDataModule],
    make_trainer: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = [0.0]
    monkeypatch.setattr("elm_neuro.training.lra._budget.time.monotonic", lambda: clock[0])
    rates: list[float] = []

    class Second(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            clock[0] += 1.0
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def fit(minutes: float, ckpt_path: Path | None = None) -> Trainer:
        keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        budget = TimeBudget(minutes, reserve_s=10.0)
        trainer = make_trainer(max_epochs=1000, callbacks=[Second(), budget, keep], enable_checkpointing=True)
        trainer.fit(module(learning_rate=0.5), datamodule=data(), ckpt_path=ckpt_path)
        return trainer

    trainer = fit(1.0)
    assert trainer.global_step == 50  # one a second, ten seconds are reserved
    assert "1000 ms an update of 20 sequences: about 29 more in the 29 s that are left" in capsys.readouterr().err
    # the optimizer steps at the rate set before, the scheduler has set its own by the time that is looked at
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 50
    with pytest.raises(ValueError, match="the run must have time left, got 50 s of 50 s spent"):
        fit(1.0, tmp_path / "last.ckpt")
    clock[0] += 1000.0  # the machine was off
    assert fit(2.0, tmp_path / "last.ckpt").global_step == 110


def test_the_rate_follows_a_cosine_over_the_time() -> None:
    budget = TimeBudget(1.0, reserve_s=0.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    optimizer.param_groups[0]["initial_lr"] = 2.0
    trainer: Any = type("Trainer", (), {"optimizers": [optimizer]})()
    for elapsed in (0.0, 20.0, 30.0, 60.0, 70.0):
        budget.before = elapsed + budget.before - budget.elapsed
        budget.on_train_batch_start(trainer, trainer, None, 0)
        expected = 1.0 + math.cos(math.pi * min(elapsed / 60, 1.0))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, abs=1e-3)
    for options in ({"minutes": 0.0}, {"minutes": 1.0, "reserve_s": 60.0}, {"minutes": math.nan}):
        with pytest.raises(ValueError, match="must be"):
            TimeBudget(**options)


def test_lightnings_own_limit_of_time_leaves_a_checkpoint_to_go_on_from(
    data: Callable[..., ListOpsDataModule], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    def fit(seconds: float, ckpt_path: Path | None = None) -> int:
        keep = ModelCheckpoint(tmp_path, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        limits: dict[str, Any] = {"max_epochs": 1000, "max_time": {"seconds": seconds}}
        trainer = make_trainer(callbacks=[keep], enable_checkpointing=True, **limits)
        trainer.fit(module(), datamodule=data(), ckpt_path=ckpt_path)
        return trainer.global_step

    steps = fit(1)
    assert 0 < steps < 8000
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == steps
    assert steps < fit(2, tmp_path / "last.ckpt") < 8000


def test_a_module_refuses_what_does_not_fit(
    data: Callable[..., ListOpsDataModule], make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="optimizer must be one of"):
        module(optimizer="sgd")
    slow = TokenClassification(TokenClassifier(ELM(25, 10, 5, delta_t=2.0)))
    with pytest.raises(ValueError, match=r"network.neuron.* must have delta_t 1.0 ms, the step of a token, got 2.0 ms"):
        make_trainer(max_epochs=1).fit(slow, datamodule=data())
    with pytest.raises(TypeError, match="TokenReport must go with a tested TokenClassification, got object"):
        TokenReport(tmp_path).on_test_end(None, object())  # type: ignore[arg-type]
    assert num_parameters(module().network) == num_parameters(ELM(25, 10, 5))
