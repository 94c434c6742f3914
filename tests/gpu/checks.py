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
