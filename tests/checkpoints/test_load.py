"""Checkpoints whose numbers are not those of the file are refused before anything of that size is made."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from elm_neuro import ELM
from elm_neuro.checkpoints import from_pretrained, from_upstream
from elm_neuro.checkpoints._load import load_weights, shown
from tests.checkpoints.upstream_files import Upstream


def rezip(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        records = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, record in records.items():
            archive.writestr(name, change(name, record))


def doubled(depth: int) -> Any:
    """A tuple of two of a tuple of two, and so on: a few bytes, 2**depth objects."""
    value: Any = ("name",)
    for _ in range(depth):
        value = (value, value)
    return value


def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    tied = torch.randn(3, 2)
    content = {
        "state_dict": {"a": tied, "b": tied, "c": tied.t(), "d": torch.arange(5)[1:4], "e": torch.randn(2).bfloat16()},
        "epoch": 3,
        "nested": [(1, 2.5, None, True), {"betas": (0.9, 0.999)}, torch.float32, 1 << 70],
    }
    torch.save(content, tmp_path / "one.ckpt")
    found = load_weights(tmp_path / "one.ckpt")
    expected = torch.load(tmp_path / "one.ckpt", weights_only=True)
    torch.testing.assert_close(found["state_dict"], expected["state_dict"], rtol=0, atol=0)
    assert found["nested"] == content["nested"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(1).expand(60_000, 50_000), r"must hold each tensor whole, got \(60000, 50000\) over 4 bytes"),
        (
            [whole[i:] for whole in [torch.ones(9000)] for i in range(100)],
            r"must hold its tensors, got \d+ bytes of them in",
        ),
        (bytearray(5), "must hold weights and plain values, got __builtin__ bytearray"),
        (torch.ones(2, device="meta"), None),
    ],
)
def test_values_that_take_more_than_the_file_has_are_refused(tmp_path: Path, value: Any, message: str | None) -> None:
    path = tmp_path / "one.pt"
    torch.save(value, path)
    if message is None:
        assert load_weights(path).is_meta
        return
    with pytest.raises(ValueError, match=message):
        load_weights(path)


def test_a_key_whose_hash_takes_for_ever_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    torch.save({"a": 1}, path)
    pairs = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(40))  # a pair of the pair before, twice
    key = b"\x80\x02}X\x01\x00\x00\x00aq\x00" + pairs + b"K\x01s."
    rezip(path, lambda name, record: key if name.endswith("data.pkl") else record)
    with pytest.raises(ValueError, match="must hold no tuple of more than 65536 objects, got one"):
        load_weights(path)


def test_records_that_are_compressed_or_smaller_than_their_storage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    torch.save({"a": torch.zeros(1 << 16)}, path)
    whole = path.read_bytes()
    rezip(path, lambda _, record: record, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2000
    with pytest.raises(ValueError, match="must hold records no larger than its"):
        load_weights(path)
    path.write_bytes(whole)
    rezip(path, lambda name, record: record[:8] if "data/" in name and name.endswith("/0") else record)
    with pytest.raises(ValueError, match="must hold a record for each storage, got a record of 8 bytes for 65536"):
        load_weights(path)


def test_messages_do_not_write_out_what_they_are_about(tmp_path: Path) -> None:
    assert len(shown(["w" * 10**6] * 10**5)) < 1000 and len(shown(doubled(30))) < 1000
    upstream = Upstream()
    upstream.state["x" * 10**6] = torch.ones(1)
    with pytest.raises(ValueError, match="must hold the tensors of its config") as caught:
        from_upstream(upstream.write(tmp_path))
    assert len(str(caught.value)) < 2000


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    upstream = Upstream()
    upstream.state["w_y.weight"][1, 2] = float("inf")
    with pytest.raises(ValueError, match=re.escape("w_y.weight must be finite, got 1 of 10 that are not")):
        from_upstream(upstream.write(tmp_path / "upstream"))
    neuron = ELM(3, 1, num_memory=2)
    torch.nn.init.constant_(neuron.cell.mlp[0].bias, float("nan"))
    neuron.save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match=r"cell\.mlp\.0\.bias must be finite, got 4 of 4 that are not"):
        from_pretrained(tmp_path / "own")


def test_time_constants_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    ELM(3, 1, num_memory=2, tau_s=5.0).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["config"]["tau_s"] = 6.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest() == config["weights_sha256"]
    with pytest.raises(ValueError, match="tau_s must be that of the config, 6 ms, got 5 ms"):
        from_pretrained(tmp_path)
