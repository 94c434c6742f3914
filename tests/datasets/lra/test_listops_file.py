"""The published ListOps files and ids, held to what three published loaders gave."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from elm_neuro.datasets.lra import read_listops
from elm_neuro.datasets.lra._listops_file import listops_vocabulary, printed, read_expressions
from elm_neuro.datasets.lra._listops_trees import TOKENS
from tests.datasets.lra.listops_oracle import evaluate


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The three files with made expressions."""
    row = "( ( ( [MAX 3 ) 4 ) ] )\t4\r\n"
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        (tmp_path / f"basic_{name}.tsv").write_bytes(("Source\tTarget\r\n" + row * count).encode())
    return tmp_path


def test_ids_are_those_of_the_three_loaders(lra: Path) -> None:
    expressions, targets = read_expressions(lra / "listops_small.tsv")
    frozen = json.loads((lra / "listops_ids.json").read_text())
    assert len(expressions) == len(targets) == 400
    for convention in ("google", "s4", "mega"):
        vocabulary = listops_vocabulary(expressions, convention)
        for sample, expression, target in zip(frozen["samples"], expressions, targets, strict=False):
            assert vocabulary.ids(expression).tolist() == sample[convention]
            assert target == sample["target"]
    assert list(listops_vocabulary(expressions, "mega").symbols) == frozen["mega"]["symbols"]
    assert list(listops_vocabulary(expressions, "s4").symbols) == frozen["s4"]["vocab"]
    assert [listops_vocabulary(expressions, name).num_tokens for name in ("google", "s4", "mega")] == [17, 18, 25]


def test_tokens_and_targets_of_the_published_generator_are_read_and_printed_as_they_were(lra: Path) -> None:
    raw = gzip.decompress((lra / "listops_default_120.tsv.gz").read_bytes())
    small = (lra / "listops_small.tsv").read_bytes()
    for content in (raw, small):
        for line in content.split(b"\r\n")[1:60]:
            source, _, target = line.partition(b"\t")
            words = [word for word in source.decode().split() if word not in "()"]
            tokens = np.array([TOKENS.index(word) for word in words], dtype=np.uint8)
            assert printed(tokens) == source
            assert evaluate(words) == int(target)


def test_the_published_layout_is_read_with_root_operators(published: Path) -> None:
    parts = read_listops(published, "mega")
    assert {name: len(part) for name, part in parts.items()} == {"train": 3, "valid": 1, "test": 2}
    test = parts["test"]
    assert test.labels.tolist() == [4, 4]
    assert [test.group_names[group] for group in test.groups] == ["[MAX", "[MAX"]
    assert test.lengths.tolist() == [5, 5]  # [MAX 3 4 X and an end


def test_over_long_expressions_are_cut_as_their_loader_cuts_them(published: Path) -> None:
    (published / "basic_test.tsv").write_bytes(
        b"Source\tTarget\r\n( " * 1 + b"( " * 3000 + b"[SM" + b" 1 )" * 2999 + b" ] ) )\t9\r\n"
    )
    lengths = {name: read_listops(published, name)["test"].lengths.item() for name in ("google", "s4", "mega")}
    assert lengths == {"google": 2000, "s4": 2048, "mega": 2002}
    s4 = read_listops(published, "s4")["test"]
    assert s4.sequence(0)[-1] == 2  # ends with its end
    assert read_listops(published, "s4", max_length=7)["test"].lengths.item() == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must begin with the line Source, tab, Target"),
        (b"Target\tSource\r\n", "must begin with the line Source"),
        (b"Source\tTarget\r\n( 3 )\r\n", "line 2 must have 2 columns"),
        (b"Source\tTarget\r\n3\t4\t5\r\n", "line 2 must have 2 columns, Source and Target, got 3"),
        (b'Source\tTarget\r\n"( ( ( [MAX 3 ) 4 ) ] )"\t4\r\n', "got '\"'|got b'\"\\('"),
        (b"Source\tTarget\r\n( ( [MAX \xc3\xa9 ) ] )\t4\r\n", "must be of the tokens"),
        (b"Source\tTarget\r\n( ( [MAX 12 ) ] )\t4\r\n", "got b'12'"),
        (b"Source\tTarget\r\n( ( [AVG 3 ) ] )\t4\r\n", "got b'\\[AVG'"),
        (b"Source\tTarget\r\n( ( [MAX\x80 3 ) ] )\t4\r\n", "must be of the tokens"),
        (b"Source\tTarget\r\n\t4\r\n", "must be of the tokens"),
        (b"Source\tTarget\r\n\r\n( ( [MAX 3 ) ] )\t3\r\n", "line 2 must have 2 columns"),
        (b"Source\tTarget\r\n( ( [MAX 3 ) ] )\t\r\n", "must have a target from 0 to 9, got b''"),
        (b"Source\tTarget\r\n( ( [MAX 3 ) ] )\t10\r\n", "must have a target from 0 to 9, got b'10'"),
        (b"Source\tTarget\r\n( ( [MAX 3 ) ] )\tx\r\n", "must have a target from 0 to 9, got b'x'"),
    ],
)
def test_what_is_no_listops_is_refused_with_its_line(published: Path, content: bytes, message: str) -> None:
    (published / "basic_val.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_listops(published)


def test_missing_files_say_where_they_come_from(published: Path, tmp_path: Path) -> None:
    (published / "basic_val.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"basic_val.tsv.*googleapis.com/long-range-arena.*listops-1000"):
        read_listops(published)
    with pytest.raises(FileNotFoundError, match="does not exist: download"):
        read_listops(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="convention must be one of google, s4, mega"):
        read_listops(published, "S4")  # type: ignore[arg-type]
