"""What the tests of every operator on a GPU ask for: no waiting, the current stream, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.tolerances import assert_close


def assert_waits_for_nothing(layer: Any, x: Any) -> None:
    """A pass and its gradients, called before, never wait for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_a_graph_repeats(layer: Any, draw: Callable[[], Tensor], weight: Tensor) -> None:
    """A CUDA graph of a pass over what `draw` gives, gradients included, computes from what its input then holds."""
    x = draw()
    expected, stream = layer(x)[0].detach(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            layer.zero_grad(set_to_none=True)
            layer(x)[0].sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    assert weight.grad is not None
    eager = weight.grad.clone()
    graph = torch.cuda.CUDAGraph()
    layer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        y = layer(x)[0]
        y.sum().backward()
    x.zero_()
    graph.replay()
    assert not torch.equal(y, expected)
    x.copy_(draw())
    graph.replay()
    torch.cuda.synchronize()
    assert_close(y.detach(), expected)
    assert_close(weight.grad, eager)


def assert_works_on_the_current_stream(layer: Any, draw: Callable[[], Tensor]) -> None:
    """The pass comes behind what its stream is still busy with."""
    expected, stream = layer(draw())[0].detach(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        y = layer(draw().mul(1.0))[0]
    stream.synchronize()
    assert_close(y.detach(), expected)


def assert_compiles_as_one_graph(layer: Any, given: Any, backend: str = "aot_eager") -> None:
    """Inside torch.compile a layer gives what it gives outside, both ways, of frames or events with lengths."""
    num_steps = given.shape[1]
    lengths = torch.tensor([num_steps, 0, num_steps // 2]).cuda()
    torch._dynamo.reset()
    found = []
    for call in (layer, torch.compile(lambda *inputs: layer(*inputs), fullgraph=True, backend=backend)):
        layer.zero_grad()
        y, after = call(given, None, lengths)
        (y.square().sum() + torch.stack([part.sum() for part in after]).sum()).backward()
        grads = [torch.zeros_like(one) if one.grad is None else one.grad.clone() for one in layer.parameters()]
        found.append([y.detach(), *(part.detach() for part in after), *grads])
    for wanted, result in zip(*found, strict=True):
        assert_close(result, wanted)
