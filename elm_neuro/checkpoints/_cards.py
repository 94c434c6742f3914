"""Model cards of the published neurons, and the page that shows them all, from the same data."""

from __future__ import annotations

from elm_neuro.checkpoints._published import PublishedNeuron, list_pretrained, published
from elm_neuro.pretrained import front_matter

PAPER = "[Spieler et al., ICLR 2024, arXiv:2306.16922](https://arxiv.org/abs/2306.16922)"
DATA = (
    "NeuronIO: simulations of a biophysical layer 5 pyramidal cell by David Beniaguev, Idan Segev and Michael London "
    "([single-neurons-as-deep-nets-nmda]"
    "(https://www.kaggle.com/datasets/selfishgene/single-neurons-as-deep-nets-nmda-train-data) on Kaggle; the data "
    "are not part of the neuron)"
)
PROTOCOL = (
    "The scores are the authors' own, from the `eval_results.json` beside each neuron: NeuronIO's test set in windows "
    "of 500 ms without their first 150 ms, the voltage aligned to the truth. `elm-neuro neuronio eval` prints the same "
    "figures for a file, and beside them those without alignment."
)
PAGE_HEAD = f"""# Model cards

The 15 neurons that the authors of the ELM published. One line loads one, from the cache after the first time:

<!-- not run: an outline -->
```python
from elm_neuro import checkpoints

neuron = checkpoints.from_pretrained("num_memory_20")
```

- **What**: Branch-ELM neurons (v1, 1278 inputs, 45 branches with 100 synapses each, 2 outputs: the logit of a spike and
  the somatic voltage, which `checkpoints.neuronio_head` gives in mV). `best_elm_neuron` has SiLU in its MLP, the others
  ReLU. Time constants of the memory lie from 1 to 150 ms and were not trained. {PAPER}.
- **Data**: {DATA}.
- **Licence**: MIT, copyright (c) 2023 Aaron Spieler. They are downloaded from the authors' repository; nothing of
  them is part of this package.
- **Scores**: {PROTOCOL[0].lower() + PROTOCOL[1:]}

`checkpoints.list_pretrained()` gives this table with types, `elm-neuro models NAME` one neuron's card, and
`elm-neuro look NAME` [pictures of it](../how-to/look.md).
"""
OURS = """## Neurons of your own

No trained neuron of ours is published; what the demonstration and the recipes train is yours. `save_pretrained`
writes a card (`README.md`) beside the weights, made from the configuration; it says that data, scores and licence are
not known until you write them in. Once its first comment is removed, it is never written over. One command brings the
folder to the [Hugging Face hub](https://huggingface.co), after `pip install "elm-neuro[hub]"` and `hf auth login`:

<!-- not run: an outline -->
```sh
elm-neuro push FOLDER USER/NAME
```

It reads the folder whole before anything is sent, makes the repository where there is none (`--private`), and sends the
card, the configuration and the weights in one commit. `checkpoints.from_pretrained("USER/NAME")` loads it.
"""


def model_card(name: str) -> str:
    """The card of a published neuron as Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        name: of :func:`elm_neuro.checkpoints.list_pretrained`.

    Raises:
        ValueError: there is no such neuron.

    >>> "AUC 0.9922" in model_card("num_memory_20")
    True
    """
    neuron = published(name)
    test, training = neuron.test, neuron.training
    measured = (
        ("roc_auc", "spikes: AUC", test.auc),
        ("rmse", "voltage: RMSE (mV)", test.soma_rmse_mv),
        ("explained_variance", "voltage: explained variance (%)", test.soma_explained_variance_percent),
    )
    results = [
        {
            "task": {"type": "other", "name": "input and output of a cortical neuron"},
            "dataset": {"type": "neuronio", "name": "NeuronIO", "split": "test"},
            "metrics": [{"type": kind, "name": label, "value": value} for kind, label, value in measured],
            "source": {"name": f"{neuron.repository} at {neuron.revision[:7]}", "url": neuron.page_url},
        }
    ]
    head = front_matter(
        license=neuron.licence.lower(),
        library_name="elm_neuro",
        tags=["elm-neuro", "spiking-neural-network", "neuroscience", "neuronio"],
        **{"model-index": [{"name": neuron.name, "results": results}]},
    )
    size = f"{neuron.num_memory} memory unit{'s' * (neuron.num_memory > 1)}"
    schedule = f"{training.epochs} epochs of {training.batches_per_epoch:,} batches of {training.batch_size}"
    return f"""{head}
# {neuron.name}

Branch-ELM neuron (v1) with {size}: 1278 inputs, 45 branches with 100 synapses each, an MLP with {neuron.activation},
2 outputs; {neuron.num_parameters:,} trained parameters. It predicts spikes and somatic voltage of a cortical neuron.
{PAPER}.

```python
from elm_neuro import checkpoints

neuron = checkpoints.from_pretrained("{neuron.name}")
spike_probability, soma_mv = checkpoints.neuronio_head(neuron(x)[0])  # x (batch, time, 1278), 1 ms a step
```

- **Data**: {DATA}.
- **Training**: {schedule}, windows of 500 ms, learning rate {training.learning_rate:g}.
- **Scores**: AUC {test.auc:.4f}, {100 * test.true_positives_at_1_percent:.1f} % of the spikes at 1 % false ones,
  voltage RMSE {test.soma_rmse_mv:.3f} mV, explained variance {test.soma_explained_variance_percent:.2f} %.
  {PROTOCOL}
- **Licence**: {neuron.licence}, {neuron.copyright}.
- **Files**: {neuron.page_url}, {neuron.weights_bytes:,} bytes of weights.
- **sha256**:
    - model_config.json `{neuron.config_sha256}`
    - neuronio_best_model_state.pt `{neuron.weights_sha256}`
"""


def cards_page() -> str:
    """The page of the site, docs/reference/model_cards.md; ``elm-neuro models --markdown`` prints it.

    >>> cards_page().count("| `num_memory_")
    14
    """
    neurons = list_pretrained()
    scores = "\n".join(_scores_row(neuron) for neuron in neurons)
    sums = "\n".join(f"| `{one.name}` | `{one.weights_sha256}` | `{one.config_sha256}` |" for one in neurons)
    return f"""{PAGE_HEAD}
## Sizes and scores

| name | memory units | parameters | weights | AUC | spikes at 1 % false | RMSE | explained variance | training |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |
{scores}

Learning rate {neurons[0].training.learning_rate:g}; *training* is epochs of batches of windows.

{OURS}
## Checksums

sha256 of the files at `{neurons[0].repository}`, commit `{neurons[0].revision}`; a download with another is refused.

| name | neuronio_best_model_state.pt | model_config.json |
| --- | --- | --- |
{sums}
"""


def _scores_row(neuron: PublishedNeuron) -> str:
    test, training = neuron.test, neuron.training
    cells = [
        f"[`{neuron.name}`]({neuron.page_url})",
        str(neuron.num_memory),
        f"{neuron.num_parameters:,}",
        f"{neuron.weights_bytes / 1000:.0f} kB",
        f"{test.auc:.4f}",
        f"{100 * test.true_positives_at_1_percent:.1f} %",
        f"{test.soma_rmse_mv:.3f} mV",
        f"{test.soma_explained_variance_percent:.2f} %",
        f"{training.epochs} × {training.batches_per_epoch:,} × {training.batch_size}",
    ]
    return f"| {' | '.join(cells)} |"
