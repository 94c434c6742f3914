"""Lightning's command line with one run in a folder, and checkpoints that say what they were trained as."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import shlex
import signal
import sys
import threading
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from filelock import BaseFileLock, FileLock, Timeout
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

from elm_neuro.cli._settings import (
    KEY,
    check_built_classes,
    check_classes,
    contradictions,
    named_in,
    read_checkpoint,
    read_settings,
    settings_of,
)
from elm_neuro.cli._stored import check_sizes
from elm_neuro.files import remove_old_leftovers, write_whole
from elm_neuro.nn._keywords import meant
from elm_neuro.training.loop._checkpoints import TERMINATED, KeepOnTermination, WholeCheckpoints
from elm_neuro.training.loop._progress import Size

CONFIG = ("--config", "-c")


class OneLineParser(LightningArgumentParser):
    """Ends with one line that names the option, and the one that may be meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the line and end with status 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        say(f"error: {one_line(message)}")
        raise SystemExit(2)


def one_line(message: str) -> str:
    r"""What jsonargparse says over many lines, without the types that were tried in vain.

    >>> one_line("Problem with given class_path 'elm_neuro.nn.LIF':\n  Option 'tau_w' is not accepted")
    "elm_neuro.nn.LIF: Option 'tau_w' is not accepted; did you mean tau_v?"
    """
    kinds = re.findall(r"given class_path '([\w.]+)'", message)
    if unknown := re.search(r"Option '([\w.]+)' is not accepted", message):
        options = list(inspect.signature(_class(kinds[-1])).parameters) if kinds else []  # type: ignore[arg-type]
        line = f"{kinds[-1]}: {unknown[0]}" if kinds else unknown[0]
        hint = meant(unknown[1], options)
        return f"{line}; {hint}" if hint else line
    if re.match(r"the following arguments are required: \w+\.(data|model)", message):
        return "--config must name a recipe, or the config.yaml that lies beside a checkpoint"
    lines = [line.strip(" -") for line in message.splitlines()]
    tried = (
        "Subtypes:",
        "Errors:",
        "Given value",
        "Does not validate",
        "Expected a <class 'NoneType'>",
        "Problem with",
    )
    return " ".join(line for line in lines if not line.startswith(tried))


class KeepSettings(SaveConfigCallback):
    """Puts the settings of a ``fit`` into its folder, as config.yaml, and those of model and data into its checkpoints,
    as JSON.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, *, folder: Path | None = None) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.folder = folder

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml."""
        folder = Path(trainer.log_dir or trainer.default_root_dir) if self.folder is None else self.folder
        folder.mkdir(parents=True, exist_ok=True)
        settings = self.config.clone()
        settings.ckpt_path = None  # or who trains by this file once more would go on with this run
        write_whole({folder / "config.yaml": self.parser.dump(settings, skip_none=False).encode()})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the settings of model and data."""
        checkpoint[KEY] = json.dumps(as_json(self.parser, self.config))


class Command(LightningCLI):
    """``fit`` trains anew or goes on; everything else evaluates what a checkpoint holds, as it was trained."""

    folder: Path | None = None  # of the run: where its checkpoints go
    lock: BaseFileLock | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        before = (
            signal.signal(signal.SIGTERM, _terminate) if threading.current_thread() is threading.main_thread() else None
        )
        try:
            super().__init__(*arguments, **options)
        except BaseException as error:
            if ended_by_user(error) or (isinstance(error, SystemExit) and error.code == TERMINATED):
                say(f"{'interrupted' if ended_by_user(error) else 'terminated'}{self._what_is_kept()}")
            raise
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)
            if self.lock is not None:
                self.lock.release()

    def _what_is_kept(self) -> str:
        """Of a ``fit`` that ended early."""
        config = getattr(self, "config", None)
        if config is None or config.get("subcommand") != "fit":
            return ""
        if self.lock is None or (path := latest(self.folder)) is None:
            return "; no checkpoint was written, nothing is kept"
        checkpoint = read_checkpoint(path, "the checkpoint")
        return (
            f"; {path} holds what was trained up to step {checkpoint.get('global_step')}, in epoch "
            f"{checkpoint.get('epoch', 0) + 1}: run the same command with --resume to go on from there"
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Declare where a run is, and that it goes on."""
        parser.add_argument("--name", type=str | None, help="Name of the run's folder, beside that of the recipe.")
        parser.add_argument("--out", type=str | None, help="The run's folder; when evaluating, where results go.")
        parser.add_argument("--resume", action="store_true", help="Go on with the run in the folder.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Read the arguments, and once more with the settings of the checkpoint between the recipe and the options."""
        self.args = list(args)
        place = self._parse(args)
        command = self.config.subcommand
        path = self._checkpoint(**place)
        checkpoint = {} if path is None else read_checkpoint(path, "--ckpt_path")
        stored = None if path is None else settings_of(checkpoint, path)
        if stored is not None and path is not None:
            self._take(stored, list(args), path)
            ours = all(name.startswith("elm_neuro.") for name in named_in(stored["model"]))
            check_sizes(path, checkpoint, path, stored["model"], () if ours else ("the recipe's",))
        if path is not None:
            _check_whole(path, checkpoint, command)
        if path is not None and stored is None:
            say(
                f"{path} does not say how it was trained, as those of earlier versions: the settings of --config are "
                "taken for its own"
            )
        self.config[command].ckpt_path = None if path is None else str(path)
        if self.folder is not None and (recipe := _folder(self.config[command])) is not None:
            self.config[command].trainer = _moved(self.config[command].trainer, recipe, self.folder)

    def _parse(self, args: Any) -> dict[str, Any]:
        """Read the arguments; those of the run's place are given back, since they are no settings of it."""
        super().parse_arguments(self.parser, args)
        config = self.config[self.config.subcommand]
        return {name: config.pop(name) for name in ("name", "out", "resume")}

    def _checkpoint(self, *, name: str | None, out: str | None, resume: bool) -> Path | None:
        """The checkpoint to start from, and in `folder` the place of the run."""
        command = self.config.subcommand
        config = self.config[command]
        given, recipe = config.ckpt_path, _folder(config)
        if "://" in str(given):
            raise ValueError(f"--ckpt_path must be a file on this machine, got the address {given}")
        if command != "fit" and (given is None or resume):
            raise ValueError(f"{command} needs --ckpt_path CHECKPOINT, the network to {command}")
        if (name or out) and recipe is None:
            raise ValueError("--name and --out need a recipe with a folder: a ModelCheckpoint with a dirpath")
        if name and (out or Path(name).name != name):
            raise ValueError(f"--name must be one word and goes without --out, got {name}")
        if recipe is not None:
            beside = recipe if command == "fit" else Path(given).parent
            self.folder = Path(out) if out else recipe.with_name(name) if name else beside
        if command == "fit" and (resume or given == "last"):
            if given not in (None, "last"):
                raise ValueError(f"--resume goes without --ckpt_path, got {given}")
            if (last := latest(self.folder)) is None:
                raise ValueError(
                    f"--resume needs a run in {self.folder} with a checkpoint; without it one starts there"
                )
            return last
        return None if given is None else Path(given)

    def _take(self, stored: dict[str, Any], args: list[str], path: Path) -> None:
        """Parse again with the network and the preprocessing of a checkpoint, which no option may contradict."""
        command, parser = self.config.subcommand, self._subcommand_parsers[self.config.subcommand]
        before = as_json(parser, self.config[command])
        names = getattr(_class(before["data"]["class_path"]), "network_settings", ())
        stored_data = stored.get("data", {}).get("init_args", {})
        inputs = {name: value for name, value in stored_data.items() if name in names}
        recipe = [argument for pair in _configs(args) for argument in pair]
        named = named_in([before, *(read_settings(Path(file)) for _, file in _configs(args))])
        check_classes([stored["model"], inputs], path, named)
        taken = [f"--model={json.dumps(stored['model'])}"]
        for name, value in inputs.items():
            text = value if isinstance(value, str) else json.dumps(value)
            taken.append(f"--data.init_args.{name}={text}")
        self._parse([command, *recipe, *taken, *_options(args)])
        after = as_json(parser, self.config[command])
        check_built_classes(after["model"], path, named)
        differing = [
            *contradictions(stored["model"], after["model"], "model"),
            *contradictions({"init_args": inputs}, after["data"], "data"),
        ]
        if differing:
            raise ValueError(f"{path} was trained with other settings: {'; '.join(sorted(differing))}")

    def instantiate_classes(self) -> None:
        """As Lightning; of what a class refuses, its own words alone.

        Raises:
            ValueError: a value in the settings is out of range.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            if not str(error).startswith("Does not validate"):
                raise
            raise ValueError(one_line(str(error))) from error

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would put the hyperparameters in a checkpoint above the options."""

    def before_instantiate_classes(self) -> None:
        """Have the folder for this run alone; an earlier run in it is not written over."""
        if self.subcommand != "fit":
            self.save_config_callback = None
            return
        self.save_config_kwargs = {"folder": self.folder}
        if self.folder is None or getattr(rank_zero_only, "rank", None):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            self.lock = None
            raise ValueError(
                f"{self.folder} must have one run at a time: another elm-neuro fit is at work there; "
                "--name gives this one a folder of its own"
            ) from None
        remove_old_leftovers(self.folder)
        start = self.config.fit.ckpt_path
        if latest(self.folder) is not None and (start is None or Path(start).parent.resolve() != self.folder.resolve()):
            raise ValueError(
                f"{self.folder} must hold no other run, got {latest(self.folder)}: --resume goes on with it, --name "
                "gives this one a folder of its own"
            )

    def after_fit(self) -> None:
        """Say where the checkpoint is, and what can be done with it."""
        if (path := latest(self.folder)) is None or not self.trainer.is_global_zero:
            return
        best = path.with_name("best.ckpt")
        chosen = best if best.is_file() else path
        settings = path.with_name("config.yaml")  # a recipe says nothing of what the command line changed
        say(
            f"trained: {chosen}\nnext: {shlex.join(['elm-neuro', 'test', '--config', str(settings)])}"
            f" --ckpt_path {shlex.quote(str(chosen))}"
        )

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, WholeCheckpoints()]
        if config.get("enable_model_summary") is None:  # Lightning's counts FLOPs, and finds none
            config["enable_model_summary"] = False
            callbacks = [*callbacks, Size()]
        if self.subcommand != "fit":  # which writes no checkpoints, wherever its folder is
            warnings.filterwarnings("ignore", message="The dirpath has changed", category=UserWarning)
        elif self.folder is not None:
            callbacks = [*callbacks, KeepOnTermination(self.folder / "last.ckpt")]
        return super()._instantiate_trainer(config, callbacks)


def _check_whole(path: Path, checkpoint: dict[str, Any], command: str) -> None:
    """Refuse a checkpoint without what Lightning takes from it for a command.

    Raises:
        ValueError: a part is missing; the message names it.
    """
    needed = {"state_dict": dict, "pytorch-lightning_version": str}
    if command == "fit":
        needed |= {"optimizer_states": list, "lr_schedulers": list}
    if missing := [name for name, kind in needed.items() if not isinstance(checkpoint.get(name), kind)]:
        raise ValueError(f"--ckpt_path must be a checkpoint of elm-neuro fit, got {path} without {', '.join(missing)}")


def ended_by_user(error: BaseException) -> bool:
    """Whether Ctrl-C ended a command; Lightning then leaves with a SystemExit of its own."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    )


def _terminate(*_: Any) -> None:
    raise SystemExit(TERMINATED)


def say(message: str) -> None:
    """A line for people, beside the output."""
    print(f"elm-neuro: {message}", file=sys.stderr, flush=True)


def latest(folder: Path | None) -> Path | None:
    """The checkpoint that a run goes on from: last.ckpt, or the one that was written last; None where there is none."""
    checkpoints = [] if folder is None else sorted(folder.glob("[!.]*.ckpt"), key=lambda path: path.stat().st_mtime)
    named = [path for path in checkpoints if path.name == "last.ckpt"]
    return next(reversed(named or checkpoints), None)


def _folder(config: Any) -> Path | None:
    """Where a recipe has its checkpoints; None where it does not say."""
    for callback in config.trainer.get("callbacks") or []:
        if dirpath := (callback.get("init_args") or {}).get("dirpath"):
            return Path(dirpath)
    return None


def _moved(settings: Any, old: Path, new: Path) -> Any:
    """Settings of a Trainer with the paths in folder `old` in `new`, those of loggers, in two parts, too."""
    if isinstance(settings, str):
        path = Path(settings)
        return str(new / path.relative_to(old)) if path.is_relative_to(old) else settings
    if isinstance(settings, list):
        return [_moved(value, old, new) for value in settings]
    if not isinstance(settings, Namespace):
        return settings
    moved: Any = settings.clone()
    for name, value in vars(settings).items():
        moved[name] = _moved(value, old, new)
    save_dir, name = settings.get("save_dir"), settings.get("name")
    if isinstance(save_dir, str) and isinstance(name, str) and Path(save_dir, name) == old:
        moved.save_dir, moved.name = str(new.parent), new.name
    return moved


def as_json(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """Resolved settings of model and data, as plain values."""
    settings = json.loads(parser.dump(config, format="json", skip_none=False))
    return {name: settings.get(name) or {} for name in ("model", "data")}


def _class(path: str) -> object:
    place, _, name = path.rpartition(".")
    return getattr(import_module(place), name)


def _configs(args: list[str]) -> list[tuple[str, str]]:
    """The options that name recipes, with the files."""
    pairs = [(before, argument) for before, argument in itertools.pairwise(args) if before in CONFIG]
    return pairs + [("--config", argument.partition("=")[2]) for argument in args if argument.startswith("--config=")]


def _options(args: list[str]) -> list[str]:
    """All arguments after the command but those."""
    return [
        argument
        for before, argument in itertools.pairwise(args)
        if argument not in CONFIG and before not in CONFIG and not argument.startswith("--config=")
    ]
