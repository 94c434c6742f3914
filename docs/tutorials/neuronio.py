# %% [markdown]
# # NeuronIO: fit, score, look inside a published neuron
#
# NeuronIO (Beniaguev et al. 2021) is what a detailed model of a cortical pyramidal cell does with 1278 synapses:
# spikes and somatic voltage, millisecond by millisecond. A Branch-ELM of 8,000 parameters follows it. Here you fit
# one to a cell, score it by the published protocol, and open one of the neurons that the authors have published. You
# need `pip install "elm-neuro[data,train]"`.
#
# The data set is 115 GB on Kaggle, too much for this page: a **made-up** cell stands in, a leaky membrane with random
# synapses, written in NeuronIO's own file format by `examples/neuronio.py` of the repository. Every score below is
# about that cell.

# %%
import sys
import tempfile
from pathlib import Path

import torch
from torch.utils.data import DataLoader

here = Path(globals().get("__file__", "notebook")).resolve()  # a notebook looks from where it runs
REPOSITORY = next(folder for folder in here.parents if (folder / "docs" / "live").is_dir())
sys.path.insert(0, str(REPOSITORY))
from elm_neuro import BranchELM, checkpoints
from elm_neuro.datasets import NeuronIODataset, convert_neuronio, open_simulations
from examples.neuronio import made_up_cell

folder = Path(tempfile.mkdtemp())
made_up_cell(folder / "raw" / "sim__train.p", num_simulations=6, num_steps=3000)
made_up_cell(folder / "raw" / "sim__test.p", num_simulations=3, num_steps=3000, seed=1)

# %% [markdown]
# ## Convert
#
# The files are Python 2 pickles from strangers: they are read by a reader that can name nothing but numpy's numbers
# and arrays, and become HDF5 a fifteenth of the size, in which a window is one slice. On the whole data set this is
# `elm-neuro neuronio convert ...`, which goes on where it was stopped.

# %%
names = convert_neuronio([folder / "raw"], folder / "converted")
files = {Path(name).stem.split("__")[-1]: folder / "converted" / name for name in names}
simulations = open_simulations(files["test"])
print(
    sorted(files),
    f"{len(simulations)} test simulations of {simulations.num_steps} ms, {simulations.num_spikes} output spikes",
)

# %% [markdown]
# ## Fit
#
# Windows of 500 ms, whichever (seed, epoch, index) says; the loss leaves out a burn-in of 150 ms in which the memory
# fills.

# %%
from elm_neuro.training import neuronio_loss

torch.manual_seed(0)
steps = 300
neuron = BranchELM(1278, 2, num_memory=20, num_branch=45, num_synapse_per_branch=100)
windows = NeuronIODataset([files["train"]], num_windows=8 * steps)
optimizer = torch.optim.Adam(neuron.parameters(), lr=5e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
losses = []
for x, spikes, soma in DataLoader(windows, batch_size=8, collate_fn=NeuronIODataset.collate):
    loss = neuronio_loss(neuron(x)[0], spikes, soma).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(neuron.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} at first, {sum(losses[-10:]) / 10:.3f} at the end, {steps} updates of 8 windows")

# %% [markdown]
# ## Score
#
# Two columns, because the published protocol aligns the voltage to the truth before it measures the error, and starts
# every window from zero; the raw column does neither. `elm-neuro neuronio eval` prints the same table.

# %%
from rich.console import Console

from elm_neuro.training import evaluation_table, predict_protocols, summarise_protocols

predictions = predict_protocols(neuron, [files["test"]])
Console(width=92).print(evaluation_table(summarise_protocols(predictions, num_draws=0)))

# %% [markdown]
# ## See it follow the cell

# %%
from elm_neuro.training import neuronio_workings

neuronio_workings(neuron, simulations, 0, start=500, stop=1500)

# %% [markdown]
# ## Open a published neuron
#
# `checkpoints.fetch_upstream("num_memory_20")` downloads one of the fifteen that the authors have published and
# checks its hash; a copy of this one (MIT licence) lies in the repository, where [a neuron in a
# page](../live/index.html) lives on it. It was trained on the real NeuronIO and scores an AUC of 0.9922 there, which
# `elm-neuro neuronio eval` reproduces to 1e-9 on a real file.

# %%
published = checkpoints.from_upstream(REPOSITORY / "docs" / "live" / "model" / "num_memory_20")
print(published)
print("time constants of its memory (ms):", ", ".join(f"{tau:.3g}" for tau in sorted(published.tau_m.tolist())))

# %% [markdown]
# What each branch reads: neighbouring segments of the cell, because the routing is a window over them, with weights
# that training found. Where a branch has weakened its inhibitory synapses, or its excitatory ones, one sees it here.

# %%
from elm_neuro.training import receptive_fields

receptive_fields(published)

# %% [markdown]
# And what one input spike does to it: the response of the somatic voltage to a single excitatory spike on each of a
# few branches, from rest.

# %%
from matplotlib.figure import Figure

silence = torch.zeros(1, 200, 1278)
figure = Figure(figsize=(7.2, 2.8), layout="constrained")
axis = figure.subplots()
with torch.no_grad():
    rest = checkpoints.neuronio_head(published(silence)[0]).soma_mv[0]
    for segment in (20, 150, 300, 450, 600):
        x = silence.clone()
        x[0, 50, segment] = 1.0
        response = checkpoints.neuronio_head(published(x)[0]).soma_mv[0] - rest
        axis.plot(response, label=f"segment {segment}")
axis.set(xlabel="time (ms)", ylabel="change of the voltage (mV)", title="one excitatory spike at 50 ms, from rest")
axis.legend(fontsize=7)
figure

# %% [markdown]
# ## Go on
#
# - The whole data set: [NeuronIO](../how-to/neuronio.md) converts, verifies, trains by the paper's recipe and
#   evaluates.
# - Run it as a service: [From a checkpoint to a streaming service](streaming.py).
