"""Text and Retrieval, held to the frozen files: bytes, characters, quotes, no UTF-8, empty and over-long texts."""

from __future__ import annotations

import csv
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from elm_neuro.datasets.lra import held_out, read_retrieval, read_text
from elm_neuro.datasets.lra._retrieval import FILES, read_pairs
from elm_neuro.datasets.lra._text import review_files
from elm_neuro.datasets.lra._vocabulary import Convention


@pytest.fixture
def reviews(lra: Path, tmp_path: Path) -> Path:
    """A copy of the frozen folder that can be changed."""
    folder = tmp_path / "aclImdb"
    shutil.copytree(lra / "aclImdb", folder, copy_function=shutil.copyfile)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    folder.chmod(0o755)
    return folder


@pytest.fixture
def papers(lra: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "tsv_data"
    folder.mkdir()
    for path in (lra / "tsv_data").iterdir():
        shutil.copyfile(path, folder / path.name)
    return folder


def test_reviews_are_those_of_the_frozen_folder_with_googles_ids(lra: Path) -> None:
    expected = {one["file"]: one for one in json.loads((lra / "aclImdb_expected.json").read_text())}
    parts = read_text(lra / "aclImdb", "google", max_length=10_000)
    seen = 0
    for part, sequences in parts.items():
        for row, path in enumerate(review_files(lra / "aclImdb", part)):
            one = expected[str(path.relative_to(lra / "aclImdb"))]
            ids = sequences.sequence(row)
            assert one["split"] == part and sequences.labels[row] == one["label"]
            assert ids.size == max(one["bytes"], 1)  # an empty text is one padding
            first = one["google_ids_first"] or [0]
            assert ids[: len(first)].tolist() == first
            seen += 1
    assert seen == len(expected) == len(parts["train"]) + len(parts["test"])
    assert parts["train"].num_tokens == 257
    assert read_text(lra / "aclImdb", "google")["train"].lengths.max() == 4000


def test_characters_are_counted_and_cut_as_s4_does(lra: Path) -> None:
    expected = json.loads((lra / "aclImdb_expected.json").read_text())
    parts = read_text(lra / "aclImdb", "s4", undecodable="replace")
    for part, sequences in parts.items():
        names = [str(path.relative_to(lra / "aclImdb")) for path in review_files(lra / "aclImdb", part)]
        characters = {one["file"]: one["characters"] for one in expected}
        for name, sequence_length, row in zip(names, sequences.lengths, range(len(names)), strict=True):
            if characters[name] is not None:
                assert sequence_length == min(characters[name], 4095) + 1
            assert sequences.sequence(row)[-1] == 2
    texts = [path.read_bytes().decode("utf-8", "replace")[:4095] for path in review_files(lra / "aclImdb", "train")]
    everything = "".join(texts)
    frequent = sorted({c for c in everything if everything.count(c) >= 15}, key=lambda c: (-everything.count(c), c))
    assert parts["train"].num_tokens == 3 + len(frequent)
    ids = {c: 3 + place for place, c in enumerate(frequent)}
    for row, text in enumerate(texts):
        assert parts["train"].sequence(row)[:-1].tolist() == [ids.get(c, 1) for c in text]


def test_megas_reviews_have_the_papers_input_size(lra: Path) -> None:
    parts = read_text(lra / "aclImdb", "mega", undecodable="replace")
    assert parts["train"].num_tokens == 169
    assert parts["train"].lengths.max() == 4002
    assert read_retrieval(lra / "tsv_data", "mega")["train"].num_tokens == 105


def test_bytes_that_are_no_utf_8_are_refused_by_name_or_replaced(lra: Path) -> None:
    with pytest.raises(ValueError, match=r"train/neg/2_2.txt must be UTF-8 for convention 's4', got byte 0xe9 at 13"):
        read_text(lra / "aclImdb", "s4")
    replaced = read_text(lra / "aclImdb", "s4", undecodable="replace")["train"]
    assert replaced.lengths[2] == 39 + 1


def test_folders_without_reviews_say_where_they_come_from(reviews: Path) -> None:
    for path in (reviews / "test" / "neg").iterdir():
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"test/neg must hold reviews named NUMBER_RATING.txt, got an empty folder"
    ):
        read_text(reviews, "google")
    shutil.rmtree(reviews / "test")
    with pytest.raises(FileNotFoundError, match=r"aclImdb_v1.tar.gz"):
        read_text(reviews, "google")


def test_reviews_that_are_links_out_of_the_folder_are_refused(reviews: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("password")
    inside, outside = reviews / "train" / "pos" / "98_9.txt", reviews / "test" / "neg" / "99_1.txt"
    inside.symlink_to("0_9.txt")
    train = read_text(reviews, "google")["train"]
    assert train.sequence(len(train) - 1).tolist() == train.sequence(len(train) - 4).tolist()
    outside.symlink_to(tmp_path / "secret")
    for read in (lambda: read_text(reviews, "google"), lambda: review_files(reviews, "test")):
        with pytest.raises(ValueError, match=r"test/neg/99_1.txt must lie in .*aclImdb, got a link that leads out"):
            read()


def test_a_part_of_the_training_set_can_validate(lra: Path) -> None:
    train = read_text(lra / "aclImdb", "google")["train"]
    parts = held_out(train, 0.34)
    assert [len(part) for part in parts.values()] == [4, 2]
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\), got 1.0"):
        held_out(train, 1.0)


def test_pairs_are_those_of_the_frozen_files_quotes_and_all(lra: Path) -> None:
    expected = json.loads((lra / "tsv_data_expected.json").read_text())
    for part, file in (("train", "train"), ("valid", "eval"), ("test", "test")):
        path = lra / "tsv_data" / f"new_aan_pairs.{file}.tsv"
        pairs, frozen = read_pairs(path), expected[file]
        assert [label for label, *_ in pairs] == frozen["labels"]
        assert [[len(text) for text in texts] for _, *texts in pairs] == frozen["bytes"]
        characters = [[len(text.decode()) for text in texts] for _, *texts in pairs]
        assert characters == frozen["characters"]
        assert len(pairs) == frozen["rows_without_quoting"]
        assert len(read_pairs(path, quoting=True)) == frozen["rows_with_default_quoting"]
        google = read_retrieval(lra / "tsv_data", "google")[part]
        bytes_ = np.array(frozen["bytes"]).ravel()
        assert google.lengths.tolist() == np.maximum(np.minimum(bytes_, 4000), 1).tolist()
        assert google.sequence(0).tolist() == [byte + 1 for byte in pairs[0][1]]
        s4 = read_retrieval(lra / "tsv_data", "s4")[part]
        assert s4.lengths.tolist() == (np.minimum(np.array(characters).ravel(), 3999) + 1).tolist()
        assert (len(s4), s4.per_item) == (len(pairs), 2)


def test_an_open_quote_swallows_a_row_only_where_that_is_asked_for(lra: Path) -> None:
    rows = read_pairs(lra / "tsv_data" / "new_aan_pairs.train.tsv", quoting=True)
    assert rows[1][2] == b""  # of four columns
    assert b"Third pair" in rows[1][1]


@pytest.mark.parametrize("quoting", [False, True])
@pytest.mark.parametrize(
    "raw",
    [b"1\ta\tb\ttext\t" + b"x" * 300 + b"\n", b'1\ta\tb\ttext\t"' + b"x\n" * 150 + b'"\n', b"1\t" * 200],
    ids=["line", "lines in quotes", "columns"],
)
def test_texts_and_lines_without_end_are_refused_by_the_files_name(
    papers: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes, quoting: bool
) -> None:
    monkeypatch.setattr("elm_neuro.datasets.lra._retrieval.MAX_LINE", 200)
    limit = csv.field_size_limit()
    path = papers / "new_aan_pairs.eval.tsv"
    path.write_bytes(b"1\ta\tb\tone\ttwo\n" + raw)
    with pytest.raises(ValueError, match=rf"^{path}.* must "):
        read_pairs(path, quoting=quoting)
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("convention", ["google", "s4", "mega"])
def test_papers_are_cut_as_they_are_read(papers: Path, convention: Convention) -> None:
    """Long texts, one after the other, take no more memory than their beginnings."""
    text = "a é".encode() * 10_000
    for name in FILES.values():
        (papers / name).write_bytes(b"".join(b"1\ta\tb\t%s\t%s\n" % (text, text) for _ in range(20)))
    tracemalloc.start()
    try:
        parts = read_retrieval(papers, convention, max_length=101)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20 < (papers / FILES["train"]).stat().st_size
    assert set(parts["train"].lengths.tolist()) == {101}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1.0\ta\tb\ttext\n", "row 1 must have 5 columns .*, got 4"),
        (b"1.0\ta\tb\ttext\tmore\tand more\n", "row 1 must have 5 columns .*, got 6"),
        (b"2.0\ta\tb\ttext\tmore\n", "row 1 must have a label of 0 or 1, got b'2.0'"),
        (b"\ta\tb\ttext\tmore\n", "row 1 must have a label of 0 or 1, got b''"),
        (b"label\tid1\tid2\ttext1\ttext2\n", "got b'label'"),
        (b"0.5\ta\tb\ttext\tmore\n", "got b'0.5'"),
        (b"\n", "row 1 must have 5 columns .*, got 1"),
    ],
)
def test_rows_that_are_no_pairs_are_refused(papers: Path, line: bytes, message: str) -> None:
    (papers / "new_aan_pairs.eval.tsv").write_bytes(line)
    with pytest.raises(ValueError, match=message):
        read_retrieval(papers, "google")


def test_papers_that_are_no_utf_8_or_not_there_are_named(papers: Path) -> None:
    (papers / "new_aan_pairs.eval.tsv").write_bytes(b"1.0\ta\tb\tcaf\xe9\tmore\n")
    assert len(read_retrieval(papers, "google")["valid"]) == 1
    with pytest.raises(ValueError, match=r"new_aan_pairs.eval.tsv, row 1 must be UTF-8"):
        read_retrieval(papers, "s4")
    (papers / "new_aan_pairs.eval.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"new_aan_pairs.eval.tsv.*lra_release.gz"):
        read_retrieval(papers)
