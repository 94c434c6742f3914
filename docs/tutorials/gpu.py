# %% [markdown]
# # On a GPU
#
# On an NVIDIA GPU the ELM has CUDA kernels of its own, compiled for the neuron's shape at first use by the NVRTC that
# comes with torch: no compiler and no toolkit to install. This page runs wherever it is built, with a GPU or without,
# and says which.

# %%
import torch

from elm_neuro import ELM, SpikeEvents, backends, last_output, suggest

device = "cuda" if torch.cuda.is_available() else "cpu"
print("built on", torch.cuda.get_device_name() if device == "cuda" else "a CPU: what is said of GPUs was not run here")
for name, said in backends.available().items():
    print(f"{name:<10} {said}")

# %% [markdown]
# ## Nothing changes
#
# `.to(device)` on module and data, as ever. `backend="auto"`, the default, takes `cuda` for tensors on a GPU,
# `native` on the CPU where installing found a C++ compiler, and plain `torch` elsewhere; its name stands in the repr,
# and a backend that is named and cannot run raises and says why.

# %%
torch.manual_seed(0)
neuron = ELM(700, 20, num_memory=100, **suggest(delta_t=10.0, num_steps=100)).to(device)
x = (torch.rand(32, 100, 700) < 0.02).float().to(device)
y, state = neuron(x)
print(neuron.backend, backends.resolve("auto", x), tuple(y.shape), y.device)

# %% [markdown]
# ## The same numbers
#
# The oracle is a plain loop over the equations; every backend is held to it. A float64 copy of the neuron shows what
# float32 costs.

# %%
with torch.no_grad(), backends.use("reference"):
    exact, _ = neuron.double()(x.double())
neuron.float()
error = ((y - exact).abs().max() / exact.abs().max()).item()
print(f"largest difference from the float64 loop: {error:.1e} of the largest output")
assert error < 1e-5

# %% [markdown]
# ## Move less
#
# Spikes as indices are what a loader should hand over: 2 % of the entries here, pinned and copied without waiting.
# Bytes are read as they are by the kernels, for frames that hold counts.

# %%
events = SpikeEvents.from_frames(x.cpu())
if device == "cuda":
    events = events.pin_memory()
events = events.to(device, non_blocking=True)
y_events, _ = neuron(events)
y_bytes, _ = neuron(x.to(torch.uint8))
torch.testing.assert_close(y_events, y, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(y_bytes, y, rtol=1e-4, atol=1e-4)
print(events, "and bytes give the same outputs")

# %% [markdown]
# ## Train, with mixed precision
#
# Under `torch.autocast` the large products are lowered; memory and traces stay float32.

# %%
labels = torch.randint(0, 20, (32,), device=device)
optimizer = torch.optim.Adam(neuron.parameters(), lr=1e-3)
for _ in range(3):
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(last_output(neuron(events)[0]).float(), labels)
    optimizer.zero_grad(set_to_none=True)
    with torch.autograd.set_multithreading_enabled(False):  # the backward pass in this thread: see below
        loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")

# %% [markdown]
# ## When the host is too slow
#
# Narrow neurons wait for Python: the device needs less than half of the time that the host takes to issue the work.
# Autograd runs a GPU's backward pass in a thread of its own, and the way there and back is a third of such a pass:
# `set_multithreading_enabled(False)` leaves it out, for a network on one device. A CUDA
# graph replays a whole training pass for one shape (`torch.cuda.make_graphed_callables`); it takes dense frames
# without `lengths`, and a module that returns tensors.

# %%
if device == "cuda":

    class Plain(torch.nn.Module):
        def __init__(self, neuron):
            super().__init__()
            self.neuron = neuron

        def forward(self, x):
            return self.neuron(x)[0]

    captured = torch.cuda.make_graphed_callables(Plain(neuron), (x.clone(),))
    print(tuple(captured(x).shape), "from a graph")
else:
    print("no GPU: nothing captured")

# %% [markdown]
# Measured times and the command that prints them: [Speed](../reference/speed.md#on-a-gpu). Several GPUs:
# [here](../how-to/gpus.md). `make test-gpu` runs the GPU's tests on a machine that has nothing but torch and pytest.
