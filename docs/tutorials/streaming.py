# %% [markdown]
# # From a checkpoint to a streaming service
#
# A trained neuron leaves PyTorch: it becomes an ONNX model of one time step, is verified, and answers many streams at
# once with NumPy and onnxruntime alone. You need `pip install "elm-neuro[onnx]"` to export, and to serve only numpy
# and onnxruntime.
#
# ## Export
#
# The neuron is one that the authors of the ELM have published, trained on NeuronIO: 1278 synapses in, spike
# probability and somatic voltage out. `head="neuronio"` puts the sigmoid and the millivolts into the model;
# `runtime=True` writes `onnx_neuron.py` beside it.

# %%
import tempfile
from pathlib import Path

import numpy as np
import torch

from elm_neuro import checkpoints
from elm_neuro.export import to_onnx

here = Path(globals().get("__file__", "notebook")).resolve()  # a notebook looks from where it runs
REPOSITORY = next(folder for folder in here.parents if (folder / "docs" / "live").is_dir())
neuron = checkpoints.from_upstream(REPOSITORY / "docs" / "live" / "model" / "num_memory_20")
folder = Path(tempfile.mkdtemp())
report = to_onnx(neuron, folder / "neuron.onnx", form="step", head="neuronio", runtime=True)
for name, error in report.errors.items():
    print(f"{name:<18} differs from torch by at most {error:.1e}, allowed {report.tolerances[name]:.1e}")
print({path.name: f"{path.stat().st_size / 1e3:.0f} kB" for path in sorted(folder.iterdir())})

# %% [markdown]
# The file is only kept because these numbers hold, for random inputs, states and batches. On the command line this is
# `elm-neuro export CHECKPOINT --head neuronio --runtime`.
#
# ## Step by step, without torch
#
# `onnx_neuron.py` needs neither torch nor this package: copy both files anywhere.

# %%
import importlib.util
import time

spec = importlib.util.spec_from_file_location("onnx_neuron", folder / "onnx_neuron.py")
onnx_neuron = importlib.util.module_from_spec(spec)
spec.loader.exec_module(onnx_neuron)
served = onnx_neuron.OnnxNeuron(folder / "neuron.onnx", num_threads=1)

rng = np.random.default_rng(0)
streams, steps = 4, 400
x = np.zeros((streams, steps, 1278), np.float32)
x[:, :, :639] = rng.random((streams, steps, 639)) < 0.02  # excitatory spikes, per millisecond
x[:, :, 639:] = -(rng.random((streams, steps, 639)) < 0.01).astype(np.float32)  # inhibitory ones are -1

state, voltages, probabilities = served.initial_state(streams), [], []
start = time.perf_counter()
for t in range(steps):
    outputs, state = served.step(x[:, t], state)
    voltages.append(outputs["soma_mv"])
    probabilities.append(outputs["spike_probability"])
taken = 1e3 * (time.perf_counter() - start) / steps
print(f"{taken:.2f} ms a step of {streams} streams, one thread of the machine that built this page")

# %% [markdown]
# ## The same numbers as torch

# %%
with torch.no_grad():
    expected = checkpoints.neuronio_head(neuron(torch.from_numpy(x))[0])
soma = np.stack(voltages, 1).reshape(streams, steps)
probability = np.stack(probabilities, 1).reshape(streams, steps)
np.testing.assert_allclose(soma, expected.soma_mv.numpy(), atol=2e-3)
np.testing.assert_allclose(probability, expected.spike_probability.numpy(), atol=1e-5)
print("voltage within", f"{np.abs(soma - expected.soma_mv.numpy()).max():.1e} mV of torch's")

# %%
from matplotlib.figure import Figure

figure = Figure(figsize=(7.2, 3.2), layout="constrained")
above, below = figure.subplots(2, 1, sharex=True)
above.plot(soma.T, linewidth=0.9)
above.set(ylabel="voltage (mV)", title="four streams of random spikes, a published Branch-ELM in onnxruntime")
below.plot(probability.T, linewidth=0.9)
below.set(ylabel="spike probability", xlabel="time (ms)")
figure

# %% [markdown]
# ## A service
#
# `examples/onnx_stream.py serve neuron.onnx` is a whole one: it reads JSON lines, keeps a state a stream, answers
# what is wrong with an error and never ends because of a line. Here it is driven by three requests, as another process
# would.

# %%
import json
import subprocess
import sys

requests = [
    {"stream": "a", "spikes": [3, 17, 402]},
    {"stream": "a", "spikes": [8], "inhibitory": [700]},
    {"stream": "b", "spikes": [99999]},
]
done = subprocess.run(
    [sys.executable, str(REPOSITORY / "examples" / "onnx_stream.py"), "serve", str(folder / "neuron.onnx")],
    input="\n".join(json.dumps(request) for request in requests) + "\n", capture_output=True, text=True, check=True,
)  # fmt: skip
for line in done.stdout.splitlines()[1:]:
    print(line)

# %% [markdown]
# Which form for which runtime, other precisions, GPUs, latencies: [Export to a runtime](../how-to/onnx.md).
