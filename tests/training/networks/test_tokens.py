"""Networks over tokens: the same as dense one-hot vectors, blind to padding, of the paper's sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from elm_neuro import ELM, LIF, BranchELM, ELMCell
from elm_neuro.training import NormalisedReadout, ResidualStack, TokenClassifier, TokenLSTM, TwoTowers, num_parameters

SIZES = {  # inputs, outputs, ELM, Chrono-LSTM; about 100K, Text 200K and Retrieval 150K in the paper
    "listops": (25, 10, 99_610, 107_710),
    "text": (169, 2, 141_602, 192_902),
    "retrieval": (105, 75, 134_027, 166_127),
    "image": (16, 10, 96_910, 102_310),
    "pathfinder": (16, 2, 95_702, 101_102),
    "pathx": (8, 2, 93_302, 96_302),
}
TOKENS = torch.tensor([[3, 1, 0, 0, 0], [2, 2, 1, 4, 0], [1, 4, 3, 2, 1]], dtype=torch.uint8)
LENGTHS = torch.tensor([2, 4, 5])


def elm(inputs: int = 5, outputs: int = 3, memory: int = 4) -> ELM:
    return ELM(inputs, outputs, memory, generator=torch.Generator().manual_seed(0))


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "elm": TokenClassifier(elm()),
        "branch": TokenClassifier(
            BranchELM(5, 3, 4, num_branch=3, num_synapse_per_branch=4, routing="random")  # the routing is drawn
        ),
        "lstm": TokenLSTM(5, 3, 4, timescales=(1.0, 50.0)),
        "stack": ResidualStack([elm(6, 12), elm(6, 12)], num_tokens=5, num_classes=3),
        "gated stack": ResidualStack([elm(6, 6), elm(6, 6)], num_tokens=5, num_classes=3, gate="input", dropout=0.5),
        "plain stack": ResidualStack([elm(6, 6)], num_tokens=5, num_classes=3, gate=None),
    }


@pytest.mark.parametrize("name", networks())
def test_padding_and_the_rest_of_the_batch_are_not_seen(name: str) -> None:
    network = networks()[name].eval()
    together = network(TOKENS, LENGTHS)
    assert together.shape == (3, 3)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = network(TOKENS[row : row + 1, :length].long(), LENGTHS[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-6)
    poisoned = TOKENS.masked_fill(torch.arange(5) >= LENGTHS[:, None], 4)
    torch.testing.assert_close(network(poisoned, LENGTHS), together, rtol=1e-5, atol=1e-6)


def test_tokens_are_one_hot_vectors() -> None:
    neuron = elm().double()
    y, _ = neuron(F.one_hot(TOKENS.long(), 5).double())
    expected = torch.stack([y[row, length - 1] for row, length in enumerate(LENGTHS.tolist())])
    torch.testing.assert_close(TokenClassifier(neuron)(TOKENS, LENGTHS), expected)
    lstm = TokenLSTM(5, 3, 4)
    h, _ = lstm.lstm(F.one_hot(TOKENS.long(), 5).float())
    expected = torch.stack([lstm.readout(h[row, length - 1]) for row, length in enumerate(LENGTHS.tolist())])
    torch.testing.assert_close(lstm(TOKENS, LENGTHS), expected)


@pytest.mark.parametrize("task", SIZES)
def test_sizes_are_the_papers(task: str) -> None:
    inputs, outputs, elms, lstms = SIZES[task]
    one = TokenClassifier(ELM(inputs, outputs, 150, learn_w_s=False))
    other = TokenLSTM(inputs, outputs, timescales=(1.0, 4e3))
    pair = task == "retrieval"
    assert num_parameters(TwoTowers(one) if pair else one) == elms
    assert num_parameters(TwoTowers(other) if pair else other) == lstms
    published = {"text": 200_000, "retrieval": 150_000}.get(task, 100_000)
    assert lstms == pytest.approx(published, rel=0.11)


def test_two_towers_read_both_texts_by_one_network_and_put_them_together() -> None:
    tower = TokenClassifier(elm(5, 4))
    towers = TwoTowers(tower, num_classes=2)
    tokens, lengths = TOKENS[[0, 1, 2, 0]], LENGTHS[[0, 1, 2, 0]]
    u, v = tower(tokens[::2], lengths[::2]), tower(tokens[1::2], lengths[1::2])
    expected = towers.readout(torch.cat((u, v, u * v, u - v), 1))
    torch.testing.assert_close(towers(tokens, lengths), expected)
    with pytest.raises(ValueError, match="tokens must be pairs of texts, an even number, got 3"):
        towers(TOKENS, LENGTHS)
    with pytest.raises(TypeError, match="tower must have an output_size, the size of its latent, got Tanh without"):
        TwoTowers(nn.Tanh())


def test_a_normalised_readout_sees_differences_that_are_small_beside_what_they_share() -> None:
    tower = TokenClassifier(elm(5, 4))
    network = NormalisedReadout(tower, num_classes=2, momentum=1.0)
    latent = tower(TOKENS, LENGTHS)
    mean, deviation = latent.mean(0), latent.var(0, unbiased=False)
    hidden = ((latent - mean) / (deviation + 1e-5).sqrt()) @ network.readout[1].weight.T + network.readout[1].bias
    expected = hidden.relu() @ network.readout[3].weight.T + network.readout[3].bias
    torch.testing.assert_close(network(TOKENS, LENGTHS), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TypeError, match="tower must have an output_size"):
        NormalisedReadout(nn.Tanh())
    with pytest.raises(ValueError, match=r"momentum must be in \(0, 1\], got 0.0"):
        NormalisedReadout(tower, momentum=0.0)


def test_a_stack_computes_what_it_says() -> None:
    stack = networks()["stack"]
    assert isinstance(stack, ResidualStack)
    x = stack.embedding(TOKENS.long())
    for norm, layer in zip(stack.norms, stack.layers, strict=False):
        y, _ = layer(norm(x))
        x = x + y[..., :6] * torch.sigmoid(y[..., 6:])
    last = torch.stack([x[row, length - 1] for row, length in enumerate(LENGTHS.tolist())])
    torch.testing.assert_close(stack(TOKENS, LENGTHS), stack.readout(stack.norms[-1](last)), rtol=1e-4, atol=1e-5)


def test_dropout_of_a_stack_falls_in_training_only() -> None:
    stack = networks()["gated stack"]
    assert not torch.equal(stack(TOKENS, LENGTHS), stack(TOKENS, LENGTHS))
    stack.eval()
    assert torch.equal(stack(TOKENS, LENGTHS), stack(TOKENS, LENGTHS))


def test_gradients_reach_every_parameter() -> None:
    for name, network in networks().items():
        network(TOKENS, LENGTHS).square().sum().backward()
        without = [key for key, value in network.named_parameters() if value.grad is None and value.requires_grad]
        assert not without, (name, without)


def test_recomputed_activations_give_the_same_gradients() -> None:
    grads = []
    for every in (None, 2):
        network = TokenClassifier(ELM(5, 3, 4, generator=torch.Generator().manual_seed(0), recompute_every=every))
        network(TOKENS, LENGTHS).sum().backward()
        grads.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="neuron must be a layer"):
        TokenClassifier(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="neuron must be a single one"):
        TokenClassifier(ELM(5, 3, 4, num_neuron=2))
    with pytest.raises(ValueError, match="neuron must take sequences, got ELMCell, which takes one step"):
        TokenClassifier(ELMCell(5, 3))
    with pytest.raises(ValueError, match=r"layers.0 must take sequences, got ELMCell, which takes one step"):
        ResidualStack([ELMCell(6, 12)], num_tokens=5, num_classes=3)
    with pytest.raises(ValueError, match="layers must hold at least one layer, got none"):
        ResidualStack([], num_tokens=5, num_classes=3)
    with pytest.raises(
        ValueError, match=r"layers.1 must have input_size 6 and output_size 12 with gate='glu', got 6 and"
    ):
        ResidualStack([elm(6, 12), LIF(6, 6)], num_tokens=5, num_classes=3)
    with pytest.raises(ValueError, match='gate must be "glu", "input" or None'):
        ResidualStack([elm(6, 6)], num_tokens=5, num_classes=3, gate="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1.0"):
        ResidualStack([elm(6, 6)], num_tokens=5, num_classes=3, gate=None, dropout=1.0)
    with pytest.raises(ValueError, match=r"tokens must be integers \(batch, time\) and lengths \(batch,\)"):
        TokenClassifier(elm())(TOKENS, LENGTHS[:2])
    with pytest.raises(ValueError, match=r"channel must be in \[0, 5\), got 7"):
        TokenClassifier(elm())(TOKENS + 3, LENGTHS)
