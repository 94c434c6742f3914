# %% [markdown]
# # An ELM in a norse network
#
# [norse](https://norse.github.io/norse/) passes states explicitly and has times in **seconds**; so does the face.
# Here 32 ELM neurons read a spoken digit, norse's `LIF` neurons read them, and norse's leaky integrators answer. You
# need `pip install "elm-neuro[norse,data,train]"`.

# %%
import warnings

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch.jit, which norse uses on import
    import norse.torch as norse

from elm_neuro import plotting
from elm_neuro.adapters.norse import ELM, detach, suggest
from elm_neuro.datasets import SHDDataset, SpokenDigits

torch.manual_seed(0)
DT = 0.02  # seconds, as norse has them
train, test = (
    SHDDataset(SpokenDigits(split, num).recordings(), bin_ms=1e3 * DT, duration_ms=800.0, pool=5)
    for split, num in (("train", 400), ("test", 200))
)
print(train[0])  # spikes as indices, label, speaker; the digits are synthetic

# %% [markdown]
# ## The network
#
# A `SequentialState` like any other. The ELM layer takes whole sequences, time first, here even as events in place of
# frames.

# %%
slow = {
    "tau_syn_inv": torch.tensor(1 / 0.04),
    "tau_mem_inv": torch.tensor(1 / 0.06),
}  # norse's own are faster than our steps
net = norse.SequentialState(
    ELM(train.num_channels, 1, num_memory=10, num_neuron=32, threshold=0.3, **suggest(DT, train.num_steps)),
    norse.Lift(nn.Linear(32, 48)),
    norse.LIF(norse.LIFParameters(**slow, v_th=torch.tensor(0.5), alpha=torch.tensor(5.0)), dt=DT),
    norse.Lift(nn.Linear(48, 20)),
    norse.LI(norse.LIParameters(**slow), dt=DT),
)
events, labels, _ = test.batch(range(len(test)))
voltages, state = net(events)
print(tuple(voltages.shape), [type(part).__name__ for part in state])

# %% [markdown]
# ## Training

# %%
epochs, batch_size = 8, 40
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * len(train) // batch_size)
accuracy = {"training": [], "test": []}
for _ in range(epochs):
    right = 0
    for chosen in torch.randperm(len(train)).split(batch_size):
        x, answers, _ = train.batch(chosen.tolist())
        logits = 10.0 * net(x)[0].mean(0)
        loss = nn.functional.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right += int((logits.argmax(-1) == answers).sum())
    with torch.no_grad():
        voltages, _ = net(events)
    accuracy["training"].append(right / len(train))
    accuracy["test"].append(float((voltages.mean(0).argmax(-1) == labels).float().mean()))
print(f"test accuracy {accuracy['test'][-1]:.0%}, by guessing 5 %; synthetic digits")

# %% [markdown]
# ## Inside one neuron
#
# A face keeps the neuron that it wraps as `.core`; its memory units are coloured by their time constants.

# %%
logits = voltages.mean(0)
sample = int(logits.softmax(-1)[torch.arange(len(labels)), labels].argmax())
frames = test.batch([sample])[0].to_dense()
with torch.no_grad():
    hidden = net[0](frames.transpose(0, 1))[0].flatten(2)
    memory = net[0].core.core.traces(frames).memory[0]  # (time, neuron, unit)
busy = int(hidden.sum((0, 1)).argmax())
figure = plotting.network_workings(
    {"input spikes of a synthetic digit": frames[0], "spikes of the ELM neurons, by latency": hidden[:, 0]},
    voltages[:, sample],
    answer=int(labels[sample]),
    name=f"class {int(labels[sample])}",
    delta_t=1e3 * DT,
    accuracy=accuracy,
    majority=0.05,
    memory=(memory[:, busy], net[0].core.core.tau_m[busy]),
)
figure

# %% [markdown]
# ## Streams
#
# The state that comes out goes in again; `detach` cuts the gradient between two stretches (truncated
# backpropagation). Carrying the state changes nothing: two halves give the spikes of the whole.

# %%
with torch.no_grad():
    x = frames.transpose(0, 1)
    first, state = net(x[:15])
    second, _ = net(x[15:], detach(state))
    whole, _ = net(x)
torch.testing.assert_close(torch.cat([first, second]), whole)
print("two stretches give what one gives")

# %% [markdown]
# More: [the face](../reference/adapters.norse.md), [versions and costs](../how-to/hosts.md),
# `examples/norse_mixed.py`.
