# %% [markdown]
# # An ELM in a snnTorch network
# Text with $\kappa_m$.

# %%
import torch

print(torch.ones(3))

# %%
from matplotlib.figure import Figure

figure = Figure(figsize=(6, 2))
figure.subplots().plot([1, 2, 3])
figure
