"""From a checkpoint to a streaming service: export a neuron, serve it with NumPy and onnxruntime alone, and drive it
with many streams.

    python examples/onnx_stream.py [--smoke] [--checkpoint FOLDER] [--streams 16] [--steps 500]  # all three, in one go
    python examples/onnx_stream.py export FOLDER neuron.onnx  # needs elm_neuro; writes onnx_neuron.py beside the model
    python examples/onnx_stream.py serve neuron.onnx [--provider cuda]  # needs neither torch nor elm_neuro

The service reads JSON from standard input, one line a request, and writes one line for each. A request is one time step
of a stream, with the input channels that spike or with all inputs, or a list of such frames of different streams, which
are computed as one batch:

    {"stream": "a", "spikes": [3, 17, 902]} -> {"stream": "a", "step": 0, "spike_probability": 0.0021, "soma_mv": -75.3}
    {"stream": "a", "spikes": [8], "inhibitory": [700]}  ->  {"stream": "a", "step": 1, ...}  +1 and -1, as in NeuronIO
    {"stream": "b", "x": [0.0, 1.0, ...]}  ->  {"stream": "b", "step": 0, ...}
    {"stream": "a", "close": true}  ->  {"stream": "a", "closed": true}
    {"stream": "b", "spikes": [99999]} -> {"stream": "b", "error": "spikes must be channels from 0 to 1277, got 99999"}

Each stream has a state of its own, which begins at zero. A frame that is wrong is answered with an error and changes no
state. Without a checkpoint the neuron has random weights. Behind a socket:
``socat TCP-LISTEN:7000,fork EXEC:"python onnx_stream.py serve neuron.onnx"``. Longer than the other examples: a service
that strangers speak to refuses what it cannot take, and the drive checks all of it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

MAX_STREAMS = 10_000
MAX_LINE = 1 << 24  # bytes
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

Array = np.ndarray[Any, Any]


class Service:
    """States of all streams, and the answer to a line."""

    def __init__(self, neuron: Any) -> None:
        self.neuron = neuron
        self.num_input = neuron.session.get_inputs()[0].shape[-1]
        self.streams: dict[str, tuple[int, dict[str, Array]]] = {}  # steps taken, state

    def answer(self, line: bytes) -> Any:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            return {"error": f"a line must be JSON, got {error}"}
        frames = request if isinstance(request, list) else [request]
        answers: list[Any] = [None] * len(frames)
        ready: dict[str, tuple[int, Array]] = {}  # stream -> its place in the request and its input
        for place, frame in enumerate(frames):
            try:
                name = self._stream(frame, len(ready))
                if frame.get("close") is True:
                    self.streams.pop(name, None)
                    answers[place] = {"stream": name, "closed": True}
                elif name in ready:
                    raise ValueError(f"a request must hold one frame a stream, got two of {name!r}")
                else:
                    ready[name] = place, self._input(frame)
            except ValueError as error:
                answers[place] = {
                    "stream": frame.get("stream") if isinstance(frame, dict) else None,
                    "error": str(error),
                }
        if ready:
            for name, (place, _), outputs in zip(ready, ready.values(), self._step(ready), strict=True):
                answers[place] = {"stream": name, **outputs}
        return answers if isinstance(request, list) else answers[0]

    def _stream(self, frame: Any, arriving: int) -> str:
        if not isinstance(frame, dict):
            raise ValueError(f"a frame must be an object, got {type(frame).__name__}")
        name = frame.get("stream")
        if not isinstance(name, str):
            raise ValueError(f"stream must be a string, got {name!r}")
        if name not in self.streams and len(self.streams) + arriving >= MAX_STREAMS:
            raise ValueError(f"there must be at most {MAX_STREAMS} streams: close one")
        return name

    def _input(self, frame: dict[str, Any]) -> Array:
        signs = {"spikes": 1.0, "inhibitory": -1.0}
        if ("x" in frame) == bool(signs.keys() & frame.keys()):
            raise ValueError("a frame must hold either spikes or x")
        x = np.zeros(self.num_input, self.neuron.dtype)
        for key in signs.keys() & frame.keys():
            channels = frame[key]
            wrong = (
                [c for c in channels if type(c) is not int or not 0 <= c < self.num_input]
                if isinstance(channels, list)
                else [channels]
            )
            if wrong:
                raise ValueError(f"{key} must be channels from 0 to {self.num_input - 1}, got {str(wrong[0])[:40]}")
            np.add.at(x, np.array(channels, dtype=np.int64), signs[key])
        if "x" not in frame:
            return x
        try:
            with np.errstate(over="ignore"):  # becomes inf, which is refused below
                given = np.asarray(frame["x"], dtype=self.neuron.dtype)
        except (TypeError, ValueError, OverflowError):
            given = np.empty(0)
        if given.shape != x.shape or not np.isfinite(given).all():
            raise ValueError(f"x must be {self.num_input} finite numbers, got shape {given.shape}")
        return given

    def _step(self, ready: dict[str, tuple[int, Array]]) -> list[dict[str, Any]]:
        """One time step of several streams, as one batch."""
        before = [self.streams.get(name) or (0, self.neuron.initial_state(1)) for name in ready]
        state = {key: np.concatenate([part[key] for _, part in before]) for key in before[0][1]}
        outputs, state = self.neuron.step(np.stack([x for _, x in ready.values()]), state)
        for i, (name, (steps, _)) in enumerate(zip(ready, before, strict=True)):
            self.streams[name] = steps + 1, {key: part[i : i + 1].copy() for key, part in state.items()}
        return [
            {"step": steps, **{key: part[i].tolist() for key, part in outputs.items()}}
            for i, (steps, _) in enumerate(before)
        ]


def serve(model: Path, provider: str) -> None:
    """Answer lines until there are no more; nothing in a line ends the service."""
    spec = importlib.util.spec_from_file_location("onnx_neuron", model.with_name("onnx_neuron.py"))
    if spec is None or spec.loader is None or not model.with_name("onnx_neuron.py").is_file():
        raise SystemExit(f"onnx_neuron.py must stand beside the model, but there is none in {model.parent}")
    runtime = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runtime)
    try:
        service = Service(runtime.OnnxNeuron(model, providers=[PROVIDERS[provider]], num_threads=1))
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if service.neuron.form != "step":
        raise SystemExit(f'the model must be of the form "step" to be streamed, got {service.neuron.form!r}')
    modules = sorted({"torch", "onnx", "elm_neuro"} & set(sys.modules))
    write(
        {
            "ready": str(model),
            "inputs": service.num_input,
            "outputs": service.neuron.output_names,
            "also imported": modules,
        }
    )
    while line := sys.stdin.buffer.readline(MAX_LINE):
        if not line.endswith(b"\n") and len(line) == MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = sys.stdin.buffer.readline(MAX_LINE)
            write({"error": f"a line must be shorter than {MAX_LINE} bytes"})
        elif line.strip():
            write(service.answer(line))


def write(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def export(neuron: Any, model: Path, source: Path | None) -> None:
    """Write the model, checked against torch, and the file that runs it."""
    from elm_neuro.export import to_onnx

    report = to_onnx(neuron.eval(), model, form="step", head=head_of(neuron), source=source, runtime=True)
    assert report is not None
    off = ", ".join(f"{name} {error:.1e}" for name, error in report.errors.items())
    print(f"{model.name}: {model.stat().st_size / 1e3:.0f} kB; onnxruntime and torch differ by {off} at most")


def load(folder: Path) -> Any:
    """A neuron of elm_neuro's own folders or of the authors'."""
    from elm_neuro.checkpoints import from_pretrained, from_upstream

    return from_pretrained(folder) if (folder / "model.safetensors").is_file() else from_upstream(folder)


def head_of(neuron: Any) -> str | None:
    """Neurons of NeuronIO give a spike probability and a somatic voltage."""
    return "neuronio" if neuron.config.routing == "neuronio" and neuron.config.output_size == 2 else None


class Client:
    """The service in a process of its own, and how long its answers take."""

    def __init__(self, model: Path, provider: str) -> None:
        command = [sys.executable, __file__, "serve", str(model), "--provider", provider]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.milliseconds: dict[str, list[float]] = {}
        line = self._read()
        if not line:
            raise SystemExit(self.process.wait() or "the service did not start")
        self.greeting = json.loads(line)

    def ask(self, request: Any, kind: str) -> Any:
        return self.send(json.dumps(request).encode(), kind)

    def send(self, line: bytes, kind: str) -> Any:
        assert self.process.stdin is not None
        start = time.perf_counter()
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()
        answer = self._read()
        self.milliseconds.setdefault(kind, []).append(1e3 * (time.perf_counter() - start))
        return json.loads(answer)

    def _read(self) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait()


def bad_lines(num_input: int) -> list[bytes]:
    """What a broken client might send."""
    frames: list[Any] = [
        {"stream": "s0"},
        {"stream": 7, "spikes": []},
        {"stream": "s0", "spikes": [num_input]},
        {"stream": "s0", "x": [1.0]},
    ]
    frames += [
        {"stream": "s0", "x": [float("nan")] * num_input},
        {"stream": "s0", "spikes": [0], "x": []},
        {"stream": "s0", "spikes": "all"},
        3,
    ]
    return [b"{", b"\xff\xfe", b"[" * 100_000, *(json.dumps(frame).encode() for frame in frames)]


def drive(neuron: Any, model: Path, *, num_stream: int, num_steps: int, provider: str) -> None:
    """Many streams beside each other, with bad frames between, against torch."""
    import torch

    width = neuron.config.input_size
    x = (torch.rand(num_stream, num_steps, width) < 0.01).float()
    if head_of(neuron):
        x[..., width // 2 :] *= -1.0  # NeuronIO's second half is inhibitory
    spikes, inhibitory = (
        [[(sign * x[i, t] > 0).nonzero().flatten().tolist() for t in range(num_steps)] for i in range(num_stream)]
        for sign in (1, -1)
    )
    client = Client(model, provider)
    extra = client.greeting["also imported"]
    print(
        f"the service reads {client.greeting['inputs']} channels, gives {', '.join(client.greeting['outputs'])}; also "
        f"imported: {extra or 'nothing'}"
    )
    broken, refused, records = bad_lines(width), 0, []
    for t in range(num_steps):
        frames = [
            {"stream": f"s{i}", "spikes": spikes[i][t], "inhibitory": inhibitory[i][t]} for i in range(num_stream)
        ]
        if t % 2:
            answers = client.ask(frames, f"{num_stream} streams in one line")
        else:
            answers = [client.ask(frame, "one stream") for frame in frames]
        records.append([list(answer.values())[2:] for answer in answers])
        if t < len(broken):
            refused += "error" in client.send(broken[t], "bad line")
    client.ask({"stream": "s0", "close": True}, "close")
    if client.close():
        raise SystemExit("the service ended with an error")
    with torch.no_grad():
        y, _ = neuron(x)
    if head_of(neuron):
        from elm_neuro.checkpoints import neuronio_head

        y = torch.stack(neuronio_head(y), dim=-1)
    served = np.array(records, dtype=np.float64).reshape(num_steps, num_stream, -1).transpose(1, 0, 2)
    error = float(np.abs(served - y.double().numpy()).max() / max(1.0, float(y.abs().max())))
    for kind, times in client.milliseconds.items():
        p50, p95, p99 = np.percentile(times, [50, 95, 99])
        print(
            f"{kind:>24}: {len(times):6} lines, p50 {p50:.3f} ms, p95 {p95:.3f} ms, p99 {p99:.3f} ms, longest "
            f"{max(times):.3f} ms"
        )
    print(
        f"{refused} of {min(num_steps, len(broken))} bad lines answered with an error; off from torch by {error:.1e} "
        "of the largest value"
    )
    if not error < 2e-5 or refused != min(num_steps, len(broken)):
        raise SystemExit("the service must compute what torch computes and refuse every bad line")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help="export FOLDER MODEL, or serve MODEL; without, all three in one go")
    parser.add_argument(
        "--checkpoint", type=Path, help="folder of elm_neuro or of the authors; random weights by default"
    )
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument(
        "--provider",
        choices=sorted(PROVIDERS),
        default="cpu",
        help="where the service computes; cuda needs onnxruntime-gpu",
    )
    parser.add_argument("--smoke", action="store_true", help="a small neuron and a few streams, in seconds")
    args = parser.parse_args()
    match args.part:
        case ["serve", model]:
            serve(Path(model), args.provider)
        case ["export", folder, model]:
            export(load(Path(folder)), Path(model), Path(folder))
        case []:
            import torch

            from elm_neuro import BranchELM

            torch.manual_seed(0)
            torch.set_num_threads(1)
            if args.checkpoint is not None:
                neuron = load(args.checkpoint)
            else:
                width, branches = (60, 6) if args.smoke else (1278, 45)
                neuron = BranchELM(width, 2, 20, num_branch=branches, num_synapse_per_branch=100 if width > 100 else 10)
                print("random weights: --checkpoint takes a trained neuron")
            with tempfile.TemporaryDirectory() as folder:
                model = Path(folder) / "neuron.onnx"
                export(neuron, model, args.checkpoint)
                num_stream, num_steps = (3, 20) if args.smoke else (args.streams, args.steps)
                drive(neuron, model, num_stream=num_stream, num_steps=num_steps, provider=args.provider)
        case _:
            parser.error(f"part must be export FOLDER MODEL or serve MODEL, got {' '.join(args.part)}")


if __name__ == "__main__":
    main()
