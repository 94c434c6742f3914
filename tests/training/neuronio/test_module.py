"""Training on NeuronIO: the loss, windows that a resumed run goes on with, networks that learn.

Longer than most: data, loop and networks are tried on the same few pickles.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from elm_neuro.checkpoints import from_pretrained
from elm_neuro.datasets import read_simulation_file, soma_target
from elm_neuro.events import SpikeEvents
from elm_neuro.nn import ELM, BranchELM
from elm_neuro.training import (
    LIFRegression,
    LSTMRegression,
    NeuronIODataModule,
    NeuronIORegression,
    SaveNeuron,
    flops_per_step,
    linear_elm,
    neuronio_loss,
    num_parameters,
)
from elm_neuro.training.neuronio._tables import paper_networks
from tests.datasets.neuronio.neuronio_files import made, write


@pytest.fixture(scope="module")
def pickles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Kaggle's layout."""
    folder = tmp_path_factory.mktemp("kaggle")
    for i, name in enumerate(
        ("full_ergodic_train_batch_2", "full_ergodic_train_batch_3", "full_ergodic_train_batch_1", "Data_test")
    ):
        write(folder / name / f"sim__{i}.p", made(2, 150, seed=i))
    return folder


def data(folder: Path, cache: Path, **options: Any) -> NeuronIODataModule:
    return NeuronIODataModule(
        folder,
        **{"cache_dir": cache, "num_batches": (6, 2, 2), "batch_size": 4, "window_ms": 60, "skip_ms": 20, **options},
    )


def network(seed: int = 0) -> BranchELM:
    torch.manual_seed(seed)
    return BranchELM(1278, 2, 4, num_branch=45, num_synapse_per_branch=100)


def test_the_loss_is_half_cross_entropy_and_half_squared_error_after_the_burn_in() -> None:
    rng = np.random.default_rng(0)
    y, spikes, soma = (
        rng.standard_normal((3, 7, 2)),
        rng.integers(0, 2, (3, 7)).astype(float),
        rng.standard_normal((3, 7)),
    )
    for burn_in in (0, 2, 6):
        p = 1 / (1 + np.exp(-y[:, burn_in:, 0]))
        bce = -(spikes[:, burn_in:] * np.log(p) + (1 - spikes[:, burn_in:]) * np.log(1 - p)).mean()
        mse = ((y[:, burn_in:, 1] - soma[:, burn_in:]) ** 2).mean()
        found = neuronio_loss(*map(torch.from_numpy, (y, spikes, soma)), burn_in=burn_in)
        np.testing.assert_allclose([found.loss, found.bce, found.mse], [0.5 * (bce + mse), bce, mse], rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "burn_in", "message"), [((2, 5, 3), 0, "y must be"), ((2, 5, 2), 5, r"burn_in must be in \[0, 5\)")]
)
def test_losses_that_cannot_be_are_refused(shape: tuple[int, ...], burn_in: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        neuronio_loss(torch.zeros(shape), torch.zeros(2, 5), torch.zeros(2, 5), burn_in=burn_in)


def test_pickles_are_converted_once_into_the_cache_and_split_by_kaggles_folders(pickles: Path, tmp_path: Path) -> None:
    module = data(pickles, tmp_path)
    module.prepare_data()
    assert {part: [path.stem for path in module.files(part)] for part in ("train", "valid", "test")} == {
        "train": ["sim__0", "sim__1"],
        "valid": ["sim__2"],
        "test": ["sim__3"],
    }
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")}
    again = data(pickles, tmp_path)
    again.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.h5")} == times
    assert len(list(pickles.rglob("*.h5"))) == 0  # nothing is written beside the sources


def test_conversions_of_pickles_that_are_gone_are_not_trained_on_and_other_folders_lead_to_the_same(
    pickles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kaggle"
    shutil.copytree(pickles, folder)
    monkeypatch.chdir(tmp_path)
    module = data(Path("kaggle"), Path("cache"))
    module.prepare_data()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [path.stem for path in module.files("train")] == ["sim__0", "sim__1"]
    assert not list((tmp_path / "elsewhere").iterdir())
    monkeypatch.chdir(tmp_path)
    (folder / "full_ergodic_train_batch_3" / "sim__1.p").rename(folder / "full_ergodic_train_batch_3" / "sim__9.p")
    again = data(Path("kaggle"), Path("cache"))
    again.prepare_data()
    assert [path.stem for path in again.files("train")] == ["sim__0", "sim__9"]
    chosen = data(Path("kaggle"), Path("cache"), train=["full_ergodic_train_batch_?"], valid=[])
    assert sorted(path.stem for path in chosen.files("train")) == ["sim__0", "sim__2", "sim__9"]


def test_converted_folders_and_chosen_files_are_taken_as_they_are(pickles: Path, tmp_path: Path) -> None:
    first = data(pickles, tmp_path)
    first.prepare_data()
    (converted,) = (path for path in tmp_path.iterdir() if path.is_dir())
    module = data(converted, tmp_path / "none", train=["full_ergodic_train_batch_?", "sim__3*"], valid=[])
    module.prepare_data()
    assert [path.stem for path in module.files("train")] == ["sim__3", "sim__2", "sim__0", "sim__1"]
    assert module.val_dataloader() == []
    with pytest.raises(FileNotFoundError, match="train needs NeuronIO files in nothing_like_it, got none"):
        data(converted, tmp_path, train=["nothing_like_it"]).part("train")
    shutil.rmtree(converted / "Data_test")
    with pytest.raises(FileNotFoundError, match="test needs NeuronIO files in Data_test, got none"):
        data(converted, tmp_path).part("test")
    with pytest.raises(FileNotFoundError, match="data must be a folder of NeuronIO files"):
        data(tmp_path / "nowhere", tmp_path)
    with pytest.raises(ValueError, match="num_batches must be three numbers"):
        data(converted, tmp_path, num_batches=(1, 2))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        data(converted, tmp_path, batch_size=0)


class Recorder(Callback):
    """What each training step got."""

    def __init__(self, stop: int | None = None) -> None:
        self.batches: list[bytes] = []
        self.stop = stop

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        x, spikes, soma = batch
        assert not isinstance(x, torch.Tensor) or x.dtype == torch.float32  # int8 was cast on the device
        frames = x.to_dense() if isinstance(x, SpikeEvents) else x
        self.batches.append(b"".join(part.numpy().tobytes() for part in (frames, spikes, soma)))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.stop:
            raise KeyboardInterrupt


class Stop(Callback):
    """An early end that is not Lightning's own limit, as ``max_time`` or EarlyStopping give."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == self.step


def train(
    make_trainer: Callable[..., Trainer],
    module: NeuronIODataModule,
    *,
    callbacks: Any,
    ckpt_path: Path | None = None,
    **more: Any,
) -> NeuronIORegression:
    model = NeuronIORegression(network(), burn_in_ms=20, learning_rate=5e-3)
    options: dict[str, Any] = {
        "max_epochs": 2,
        "callbacks": callbacks,
        "enable_checkpointing": True,
        "limit_val_batches": 0,
        **more,
    }
    make_trainer(**options).fit(model, datamodule=module, ckpt_path=ckpt_path, weights_only=ckpt_path and True)
    return model


@pytest.mark.parametrize("stopped", [4, 6, 9])
def test_a_run_resumed_in_mid_epoch_is_one_that_was_never_stopped(
    make_trainer: Callable[..., Trainer], pickles: Path, tmp_path: Path, stopped: int
) -> None:
    whole = Recorder()
    never = train(make_trainer, data(pickles, tmp_path), callbacks=[whole])
    assert len(whole.batches) == len(set(whole.batches)) == 12
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    train(make_trainer, data(pickles, tmp_path), callbacks=[keep])
    rest = Recorder()
    resumed = train(
        make_trainer,
        data(pickles, tmp_path),
        callbacks=[rest, keep],
        ckpt_path=tmp_path / "kept" / f"step={stopped}.ckpt",
    )
    assert rest.batches == whole.batches[stopped:]
    for name, parameter in never.state_dict().items():
        assert torch.equal(parameter, resumed.state_dict()[name]), name


@pytest.mark.parametrize("ends", [[6], [2, 4, 9], *(pytest.param(one, marks=pytest.mark.slow) for one in ([4], [9]))])
@pytest.mark.parametrize("how", ["max_steps", "should_stop", "validated"])
def test_a_run_that_was_cut_off_in_mid_epoch_goes_on_as_one_that_was_not(
    make_trainer: Callable[..., Trainer], pickles: Path, tmp_path: Path, ends: list[int], how: str
) -> None:
    """Lightning writes such a checkpoint as if the epoch were done, and would go on with the next one."""
    validated: dict[str, Any] = {"limit_val_batches": 1.0, "val_check_interval": 2} if how == "validated" else {}
    whole = Recorder()
    never = train(make_trainer, data(pickles, tmp_path), callbacks=[whole], **validated)
    kept, seen = None, Recorder()
    for end in [*ends, 12]:
        recipe: list[Callback] = [  # as the recipes keep them
            ModelCheckpoint(
                dirpath=tmp_path / "kept", filename="last", save_on_train_epoch_end=True, enable_version_counter=False
            ),
            ModelCheckpoint(
                dirpath=tmp_path / "kept", filename="last", every_n_train_steps=5, enable_version_counter=False
            ),
        ]
        stop: dict[str, Any] = (
            {"callbacks": [seen, *recipe, Stop(end)]}
            if how == "should_stop"
            else {"callbacks": [seen, *recipe], "max_steps": end}
        )
        resumed = train(make_trainer, data(pickles, tmp_path), ckpt_path=kept, **stop, **validated)
        kept = tmp_path / "kept" / "last.ckpt"
        assert torch.load(kept, weights_only=True)["global_step"] == end
        assert seen.batches == whole.batches[:end]
    assert seen.batches == whole.batches
    for name, parameter in never.state_dict().items():
        assert torch.equal(parameter, resumed.state_dict()[name]), name


def test_the_cosine_ends_with_max_epochs_and_follows_a_longer_run(
    make_trainer: Callable[..., Trainer], pickles: Path, tmp_path: Path
) -> None:
    class Rates(Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    def rates(ckpt_path: Path | None = None, **options: Any) -> list[float]:
        found = Rates()
        keep = ModelCheckpoint(
            dirpath=tmp_path / "kept", filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        train(make_trainer, data(pickles, tmp_path), callbacks=[found, keep], ckpt_path=ckpt_path, **options)
        return found.seen

    def cosine(steps: range, of: int) -> list[float]:
        return [5e-3 * (1 + np.cos(np.pi * step / of)) / 2 for step in steps]

    np.testing.assert_allclose(
        rates(max_steps=7), cosine(range(1, 8), 12), rtol=1e-12
    )  # cut off, but not at the end of its decay
    np.testing.assert_allclose(rates(max_steps=7, max_epochs=-1), cosine(range(1, 8), 7), rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(
        [rates(accumulate_grad_batches=4)[i] for i in (3, 5, 9, 11)], cosine(range(1, 5), 4), rtol=1e-12, atol=1e-18
    )
    rates(max_epochs=1)
    np.testing.assert_allclose(
        rates(tmp_path / "kept" / "last.ckpt", max_epochs=3), cosine(range(7, 19), 18), rtol=1e-12, atol=1e-18
    )


@pytest.mark.parametrize(("output", "num_workers"), [("events", 2), ("int8", 0), ("frames", 2)])
def test_outputs_and_workers_give_the_same_batches(
    make_trainer: Callable[..., Trainer], pickles: Path, tmp_path: Path, output: Any, num_workers: int
) -> None:
    one, two = Recorder(), Recorder()
    train(make_trainer, data(pickles, tmp_path), callbacks=[one])
    train(make_trainer, data(pickles, tmp_path, output=output, num_workers=num_workers), callbacks=[two])
    assert one.batches == two.batches


def test_two_processes_share_an_epoch(pickles: Path, tmp_path: Path) -> None:
    module = data(pickles, tmp_path)
    module.prepare_data()

    class Rank:
        world_size, current_epoch = 2, 0
        strategy = SimpleNamespace(root_device=torch.device("cpu"))

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    drawn = []
    for rank in (0, 1):
        module.trainer = Rank(rank)  # type: ignore[assignment]
        drawn.append(list(module.train_dataloader().sampler))
    module.trainer = None
    assert drawn == [list(range(0, 24, 2)), list(range(1, 24, 2))]


def test_figures_of_validation_and_test_are_logged(
    make_trainer: Callable[..., Trainer], pickles: Path, tmp_path: Path
) -> None:
    model, module = NeuronIORegression(network(), burn_in_ms=20), data(pickles, tmp_path)
    trainer = make_trainer(max_epochs=1, callbacks=[SaveNeuron(tmp_path / "neuron")])
    trainer.fit(model, datamodule=module)
    found = trainer.callback_metrics
    assert {
        "train/loss",
        "train/bce",
        "train/mse",
        "valid/loss",
        "valid/soma_RMSE",
        "valid/soma_explained_variance_percent",
    } <= set(found)
    x, spikes, soma = module.part("valid").batch(np.arange(8))
    with torch.no_grad():
        y = model.eval()(x)[:, 20:]
    np.testing.assert_allclose(
        float(found["valid/soma_RMSE"]), 10 * float(((y[..., 1] - soma[:, 20:]) ** 2).mean()) ** 0.5, rtol=1e-5
    )
    if spikes[:, 20:].any():
        from sklearn.metrics import roc_auc_score

        np.testing.assert_allclose(
            float(found["valid/AUC"]), roc_auc_score(spikes[:, 20:].flatten(), y[..., 0].flatten()), rtol=1e-6
        )
    saved = from_pretrained(tmp_path / "neuron")
    assert all(torch.equal(one, two) for one, two in zip(saved.parameters(), model.network.parameters(), strict=True))
    assert {"test/loss", "test/soma_RMSE"} <= set(trainer.test(model, datamodule=module, verbose=False)[0])


def test_time_steps_and_windows_that_do_not_fit_are_refused(
    make_trainer: Callable[..., Trainer], pickles: Path, tmp_path: Path
) -> None:
    module = data(pickles, tmp_path)
    with pytest.raises(ValueError, match="network must have delta_t 1 ms, the step of NeuronIO, got 2"):
        make_trainer(max_epochs=1).fit(NeuronIORegression(ELM(1278, 2, 3, delta_t=2.0)), datamodule=module)
    with pytest.raises(ValueError, match="burn_in_ms must be below window_ms = 60, got 150"):
        make_trainer(max_epochs=1).fit(NeuronIORegression(network()), datamodule=module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"burn_in_ms": -1}, "burn_in_ms"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuronIORegression(network(), **options)


def test_the_lif_neuron_is_its_equation() -> None:
    torch.manual_seed(0)
    lif = LIFRegression(5, tau_v=7.0).double()
    with torch.no_grad():
        lif.weight.uniform_(-1, 2)
        lif.bias.fill_(0.05)
    x = torch.rand(2, 80, 5, dtype=torch.float64) < 0.3
    y, beta = lif(x.double()), float(np.float32(np.exp(-1 / 7)))
    weight = lif.weight.detach().numpy()[0]
    fired = 0
    for sample in range(2):
        v = 0.0
        for t in range(80):
            v = beta * (0.0 if v > 1.27 else v) + float(weight @ x[sample, t].double().numpy()) + 0.05
            fired += v > 1.27
            np.testing.assert_allclose(
                y[sample, t].detach(), [5 * (v - 1.27), v], rtol=1e-5, atol=1e-6
            )  # beta and 1.27 are float32 at first
    assert 10 < fired < 150
    with pytest.raises(ValueError, match="tau_v"):
        LIFRegression(tau_v=0.0)


def test_sizes_are_those_of_tables_s4_to_s7_but_for_what_info_says() -> None:
    for name, (built, published) in paper_networks().items():
        count, flops = num_parameters(built), flops_per_step(built)
        if published is None:
            assert count == {"LIF": 1280, "linear ELM, 1 memory unit": 1286}[name]
            continue
        size = int(name.split(", ")[1].split()[0])
        lstm, routed = name.startswith("LSTM"), name.startswith("Branch")
        count += -(4 * size + 2) if lstm else 4 * size - 2
        digits = 50 if published.parameters < 20e3 or (lstm and size >= 50) or size == 50 or size == 100 else 5
        assert abs(count - published.parameters) <= digits, name  # half of the last digit that is printed
        synapses = 27_000 - 29_220 if routed else 5_112 - 4_805
        flops -= 9 * size + 2 if lstm else 2 - 9 * size + synapses
        assert abs(500 * flops - published.flops) <= 2e-4 * published.flops + 5e3, name
    with pytest.raises(TypeError, match="must be an ELM"):
        flops_per_step(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("build", [LIFRegression, linear_elm, lambda: LSTMRegression(hidden_size=5)])
def test_small_networks_take_events_and_frames_and_learn(
    build: Callable[[], torch.nn.Module], pickles: Path, tmp_path: Path
) -> None:
    seed_everything(0, verbose=False)
    module = data(pickles, tmp_path)
    module.prepare_data()
    x, spikes, soma = module.part("train").batch(np.arange(16))
    model = NeuronIORegression(build(), burn_in_ms=20)
    assert isinstance(x, SpikeEvents)
    torch.testing.assert_close(model(x), model(x.to_dense()), rtol=1e-4, atol=1e-5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = neuronio_loss(model(x), spikes, soma, burn_in=20).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_branch_elm_overfits_the_real_file(shared: Path) -> None:
    """20 memory units, EV above 90 % of the voltage that they were trained on, and a loss far below that of the best
    constants.
    """
    (path,) = (shared / "data" / "neuronio").glob("*part_00.p")
    simulations = read_simulation_file(path)
    from elm_neuro.datasets import NeuronIODataset

    dataset = NeuronIODataset([simulations], num_windows=16 * 600, seed=0)
    torch.manual_seed(0)
    neuron = BranchELM(1278, 2, 20, num_branch=45, num_synapse_per_branch=100)
    optimizer = torch.optim.Adam(neuron.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for step in range(600):
        x, spikes, soma = dataset.batch(np.arange(16 * step, 16 * step + 16))
        optimizer.zero_grad()
        neuronio_loss(neuron(x)[0], spikes, soma).loss.backward()
        torch.nn.utils.clip_grad_norm_(neuron.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    x, spikes, soma = dataset.batch(np.arange(200))
    with torch.no_grad():
        y = neuron(x)[0]
    found = neuronio_loss(y, spikes, soma)
    rate, mean = float(spikes[:, 150:].mean()), soma[:, 150:].mean()
    constant = neuronio_loss(
        torch.stack((torch.full_like(soma, rate).logit(), torch.full_like(soma, float(mean))), -1), spikes, soma
    )
    explained = 1 - float((y[:, 150:, 1] - soma[:, 150:]).var() / soma[:, 150:].var())
    assert explained > 0.9
    assert found.loss < 0.3 * constant.loss
    assert soma_target(simulations.soma_mv).max() < 1.28
