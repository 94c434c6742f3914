# %% [markdown]
# # An ELM in a snnTorch network
#
# A spiking network in [snnTorch](https://snntorch.readthedocs.io) gets a hidden layer of 32 ELM neurons in place of
# leaky ones. The face keeps snnTorch's habits: one call a time step, hidden states, `reset` before every batch. What
# differs is what a neuron can do between its input and its spike. You need `pip install
# "elm-neuro[snntorch,data,train]"`.
#
# ## Data
#
# Twenty **synthetic** spoken digits, English and German, as spikes of a made-up cochlea of 700 channels, five of
# which are pooled into one. Accuracies on them are no accuracies on SHD; `SHDDataset("shd_train.h5")` in place of the
# first line reads the real files.

# %%
import snntorch
import torch
from torch import nn

from elm_neuro import plotting, suggest
from elm_neuro.adapters.snntorch import ELM, ELMSequence, reset
from elm_neuro.datasets import SHDDataset, SpokenDigits

torch.manual_seed(0)
train, test = (
    SHDDataset(SpokenDigits(split, num).recordings(), bin_ms=20.0, duration_ms=800.0, pool=5, output="frames")
    for split, num in (("train", 400), ("test", 200))
)
x_train, labels_train, _ = train.batch(range(len(train)))
x_test, labels_test, _ = test.batch(range(len(test)))
print("training", tuple(x_train.shape), "test", tuple(x_test.shape))

# %% [markdown]
# ## The network
#
# 140 channels, 32 ELM neurons with 8 memory units and a spike train each, a `Linear`, and one of snnTorch's `Leaky`
# neurons a digit. Times are milliseconds; `suggest` gives time constants from one step to the length of the data.


# %%
class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        times = suggest(delta_t=20.0, num_steps=train.num_steps)
        self.elm = ELM(train.num_channels, 1, num_memory=8, num_neuron=32, threshold=0.1, init_hidden=True, **times)
        self.linear = nn.Linear(32, 20)
        self.leaky = snntorch.Leaky(beta=0.95, reset_mechanism="none", init_hidden=True, output=True)

    def forward(self, x_t):
        spikes = self.elm(x_t)  # (batch, 32): the state stays inside, as in snnTorch
        return spikes, self.leaky(self.linear(spikes))[1]


def run(net, x):
    reset(net)  # elm_neuro's reset knows snnTorch's neurons and ours; so does snntorch.utils.reset
    spikes, membranes = zip(*[net(x_t) for x_t in x.unbind(1)], strict=True)
    return torch.stack(spikes), torch.stack(membranes)  # time first


net = Network()
print(net.elm)

# %% [markdown]
# ## Training
#
# Surrogate gradients flow through the threshold as through any of snnTorch's neurons.

# %%
epochs, batch_size = 8, 40
optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * len(train) // batch_size)
accuracy = {"training": [], "test": []}
for _ in range(epochs):
    right = 0
    for chosen in torch.randperm(len(train)).split(batch_size):
        logits = run(net, x_train[chosen])[1].mean(0)
        loss = nn.functional.cross_entropy(logits, labels_train[chosen])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right += int((logits.argmax(-1) == labels_train[chosen]).sum())
    with torch.no_grad():
        hidden, membranes = run(net, x_test)
    accuracy["training"].append(right / len(train))
    accuracy["test"].append(float((membranes.mean(0).argmax(-1) == labels_test).float().mean()))
print(f"test accuracy {accuracy['test'][-1]:.0%}, by guessing 5 %")

# %% [markdown]
# ## What it does with one digit
#
# The neurons spike at different moments of the word; the readout adds up who spoke when.

# %%
logits = membranes.mean(0)
sample = int(logits.softmax(-1)[torch.arange(len(labels_test)), labels_test].argmax())
figure = plotting.network_workings(
    {"input spikes of a synthetic digit": x_test[sample], "spikes of the ELM neurons, by latency": hidden[:, sample]},
    membranes[:, sample],
    answer=int(labels_test[sample]),
    name=f"class {int(labels_test[sample])}",
    delta_t=20.0,
    accuracy=accuracy,
    majority=0.05,
)
figure

# %% [markdown]
# ## Whole sequences at once
#
# A layer that needs nobody's answer within a step can take the whole sequence, on the fast backends: `ELMSequence` is
# the same neuron with the same weights, time first, and gives the same spikes.

# %%
sequence = ELMSequence(
    train.num_channels, 1, num_memory=8, num_neuron=32, threshold=0.1, **suggest(20.0, train.num_steps)
)
sequence.load_state_dict(net.elm.state_dict())
with torch.no_grad():
    at_once = sequence(x_test.transpose(0, 1)).flatten(2)
differing = int((at_once != hidden.flatten(2)).sum())
print(f"{differing} of {at_once.numel():,} spikes differ between step by step and at once")
assert differing <= 2  # a membrane within a rounding of the threshold

# %% [markdown]
# ## Where to go on
#
# - `reset_mechanism="subtract"`, `learn_threshold`, `inhibition`, `graded_spikes_factor` and the others are
#   snnTorch's keywords ([the face](../reference/adapters.snntorch.md)); what each face costs and which versions are
#   tried: [snnTorch and norse](../how-to/hosts.md).
# - `BranchELM` with `routing="random"` has far fewer weights; [Choose the settings](../how-to/choose.md) compares
#   them.
# - `examples/snntorch_mixed.py` is this network at full size, `to_onnx(net.elm, ...)` exports a face
#   ([Export](../how-to/onnx.md)).
