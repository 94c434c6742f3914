"""The faces for snnTorch and norse on every device."""

from __future__ import annotations

import pytest
import torch

from tests.tolerances import assert_close

pytest.importorskip("snntorch")
pytest.importorskip("norse")
kinds = pytest.importorskip("tests.nn.conformance.kinds", exc_type=ImportError)


@pytest.mark.parametrize("name", list(kinds.FACES))
def test_a_face_gives_on_a_device_what_it_gives_on_the_cpu(name: str, device: torch.device) -> None:
    found = []
    for place in (torch.device("cpu"), device):
        module = kinds.made(name).double().to(place)
        y = kinds.run(name, module, kinds.frames(torch.float64).to(place))
        y.sum().backward()
        found.append([y.detach().cpu(), *(p.grad.cpu() for p in module.parameters() if p.grad is not None)])
    for result, wanted in zip(found[1], found[0], strict=True):
        assert_close(result, wanted)
