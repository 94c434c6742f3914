# %% [markdown]
# # SHD-Adding through tonic
#
# Two spoken digits, one after the other; the answer is their sum, 0 to 18. A network has to hold the first while it
# hears the second. The task is Spieler et al.'s, on the Spiking Heidelberg Digits of Cramer et al.; what is new here
# is a list of pairs that everybody gets: [the protocol](../reference/shd_adding.md) draws them from integers alone,
# and a fingerprint names them. You need `pip install "elm-neuro[tonic,data]"`.
#
# SHD cannot be downloaded where this page was built. **Synthetic** digits stand in; a folder in place of `digits`
# reads tonic's SHD from there, or downloads it.

# %%
import torch
from tonic.transforms import Compose
from torch.utils.data import DataLoader

from elm_neuro import ELM, last_output, plotting, suggest
from elm_neuro.adapters.tonic import InputDropout, PoolChannels, SHDAdding, TimeJitter, ToRaster
from elm_neuro.datasets import SpokenDigits

digits = SpokenDigits("train", num_samples=240)
events_only = SHDAdding(digits, split="train", num_samples=4)
events, total = events_only[0]
print(events_only.classes[:3], "...", events.dtype.names, f"{len(events):,} spikes, sum {total}")

# %% [markdown]
# ## Transforms that repeat
#
# tonic's own conventions: frozen dataclasses, times in microseconds. What is drawn depends on (seed, epoch, index),
# whatever the number of workers, so that a run can be repeated and resumed. `InputDropout` is off in the validation
# list.

# %%
raster = ToRaster(bin_us=20_000, duration_us=2_000_000, num_channels=140)
transform = Compose([TimeJitter(1000.0), PoolChannels(5), raster, InputDropout(0.3)])
train = SHDAdding(digits, split="train", num_samples=256, transform=transform)
valid = SHDAdding(digits, split="validation", num_samples=120, transform=Compose([PoolChannels(5), raster]))
print("training list  ", train.fingerprint[:16], "...")
print("validation list", valid.fingerprint[:16], "... of speakers who are in no training pair")

# %% [markdown]
# ## A neuron that has to wait
#
# One ELM neuron answers at the end of the second digit; its memory runs from one step to both digits.

# %%
torch.manual_seed(0)
steps, delta_t = 100, 20.0
neuron = ELM(140, len(train.classes), num_memory=50, **suggest(delta_t, steps))
epochs = 3
loader = DataLoader(train, batch_size=32)
optimizer = torch.optim.Adam(neuron.parameters(), lr=1e-2)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * len(loader))
for epoch in range(epochs):
    train.set_epoch(epoch)  # other pairs, other jitter: an epoch never repeats
    for frames, totals in loader:
        loss = torch.nn.functional.cross_entropy(last_output(neuron(frames)[0]), totals)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(neuron.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        answers = [(last_output(neuron(x)[0]).argmax(-1), t) for x, t in DataLoader(valid, batch_size=120)]
    right, totals = torch.cat([a == t for a, t in answers]), torch.cat([t for _, t in answers])
    print(f"epoch {epoch}: loss {loss.item():.2f}, validation {right.float().mean():.1%}")
commonest = float(totals.bincount().max() / len(totals))
print(f"the commonest sum is right in {commonest:.1%}: that is chance here, not one in nineteen")

# %% [markdown]
# Twenty-four updates of 32 do not teach it to add: expect figures near chance. The paper trains 140,000 updates of 8;
# `elm-neuro fit --config shd_adding_elm` runs that recipe, an hour on one core ([measured](../reference/results.md)).
# What can be seen at once is what the neuron has to work with: how long each unit remembers the first digit.

# %%
frames, _ = next(iter(DataLoader(valid, batch_size=1)))
with torch.no_grad():
    traces = neuron.traces(frames)
figure = plotting.workings(
    frames[0], traces, tau_m=neuron.tau_m, delta_t=delta_t, answer=int(totals[0]),
    names=[str(k) for k in range(19)],
)  # fmt: skip
figure

# %% [markdown]
# ## Cite the list
#
# `train.fingerprint` is a SHA-256 over the pairs and every spike of their digits. Who prints the same one has trained
# on the same list, and one who reads the real SHD with the same protocol gets the published fingerprint. The authors'
# own lists are there too: `SHDAdding(..., pairing="upstream")`. Why the two differ: [Honest
# evaluation](../explanation/evaluation.md).
