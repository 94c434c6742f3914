"""Made ListOps: every answer by an independent parser, distributions beside those of the published generator."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from elm_neuro.datasets.lra import ListOpsSettings, MadeListOps, make_listops, read_listops, write_listops
from elm_neuro.datasets.lra._listops_file import encode_made, listops_vocabulary
from elm_neuro.datasets.lra._listops_trees import OPERATORS, TOKENS
from tests.datasets.lra.listops_oracle import depth, evaluate
from tests.full_disk import full_disk

SMALL = ListOpsSettings(max_depth=5, max_args=5, min_length=10, max_length=60)
FINGERPRINT = "eb9639f969945e1b31968da75f81c747db6cc0f6d78dcaaf407535c22b1cf455"  # of 300 sequences, as cited


@pytest.fixture(scope="module")
def published_kind() -> MadeListOps:
    return make_listops(1500)


def words_of(made: MadeListOps) -> list[list[str]]:
    sequences = made.sequences()
    return [[TOKENS[token] for token in sequences.sequence(k)] for k in range(len(sequences))]


@pytest.mark.parametrize("settings", [SMALL, ListOpsSettings(max_args=2, min_length=3, max_length=40, seed=7)])
def test_every_answer_is_what_an_independent_parser_finds(settings: ListOpsSettings) -> None:
    made = make_listops(500, settings)
    words = words_of(made)
    assert [evaluate(one) for one in words] == made.answers.tolist()
    assert all(settings.min_length < len(one) < settings.max_length for one in words)
    assert all(depth(one) < settings.max_depth for one in words)
    assert len({tuple(one) for one in words}) == 500  # no duplicates


def test_lengths_depths_answers_and_tokens_are_distributed_as_published(
    published_kind: MadeListOps, shared: Path
) -> None:
    frozen = json.loads((shared / "data" / "lra" / "listops_stats.json").read_text())["default"]
    sequences, words = published_kind.sequences(), words_of(published_kind)
    assert [evaluate(one) for one in words] == published_kind.answers.tolist()
    accepted = len(published_kind) / (published_kind.trees[-1] + 1)
    assert accepted == pytest.approx(frozen["accepted"], abs=4 * 0.0025)
    lengths = sequences.lengths
    for quantile in ("0.25", "0.5", "0.75"):
        assert np.quantile(lengths, float(quantile)) == pytest.approx(frozen["length_quantiles"][quantile], rel=0.05)
    assert lengths.mean() == pytest.approx(frozen["length_mean"], rel=0.03)
    assert 500 < lengths.min() and lengths.max() < 2000
    assert {depth(one) for one in words} == {9}
    share = np.bincount(published_kind.answers, minlength=10) / len(words)
    np.testing.assert_allclose(share, np.array(frozen["answer_counts"]) / 4000, atol=0.04)
    tokens = np.bincount(sequences.tokens, minlength=15) / sequences.tokens.size
    expected = [frozen["token_frequency"]["X" if token == "]" else token] for token in TOKENS]
    np.testing.assert_allclose(tokens, expected, rtol=0.02)
    for group, operator in enumerate(OPERATORS):
        answers = np.bincount(published_kind.answers[sequences.groups == group], minlength=10)
        theirs = np.array(frozen["answer_by_root_operator"][operator])
        np.testing.assert_allclose(answers / answers.sum(), theirs / theirs.sum(), atol=0.09)
    best = sum(max(np.bincount(published_kind.answers[sequences.groups == group])) for group in range(4))
    assert best / len(words) == pytest.approx(0.361, abs=0.05)


@pytest.mark.slow
def test_what_is_made_does_not_depend_on_the_number_of_processes() -> None:
    one, two = make_listops(2000, SMALL), make_listops(2000, SMALL, num_workers=2)
    np.testing.assert_array_equal(one.trees, two.trees)
    np.testing.assert_array_equal(one.answers, two.answers)


def test_more_sequences_begin_with_the_fewer_ones_and_are_the_same_as_ever() -> None:
    one = make_listops(300, SMALL)
    fewer = make_listops(100, SMALL)
    np.testing.assert_array_equal(fewer.trees, one.trees[:100])
    assert make_listops(100, replace(SMALL, seed=1)).trees.tolist() != fewer.trees.tolist()
    assert one.sequences().fingerprint == FINGERPRINT


def test_a_stopped_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    parts = tmp_path / "parts"

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_listops(2000, SMALL, parts=parts, progress=stop)
    (block,) = parts.iterdir()
    before = block.stat().st_mtime_ns
    counts: list[int] = []
    made = make_listops(2000, SMALL, parts=parts, progress=lambda done, total: counts.append(done))
    assert block.stat().st_mtime_ns == before  # read, not made again
    np.testing.assert_array_equal(made.trees, make_listops(2000, SMALL).trees)
    assert counts == sorted(counts) and counts[-1] == 2000
    block.write_bytes(block.read_bytes()[:100])  # half of a block, as a full disk leaves it
    np.testing.assert_array_equal(make_listops(2000, SMALL, parts=parts).trees, made.trees)


def test_a_saved_file_is_small_and_gives_the_same_sequences(tmp_path: Path, published_kind: MadeListOps) -> None:
    path = tmp_path / "listops.safetensors"
    published_kind.save(path)
    assert path.stat().st_size < 40e6 * len(published_kind) / 100_000
    loaded = MadeListOps.load(path)
    assert loaded.settings == published_kind.settings
    assert loaded.sequences().fingerprint == published_kind.sequences().fingerprint
    part = loaded.sequences(3, 5)
    np.testing.assert_array_equal(part.sequence(1), loaded.sequences().sequence(4))


def test_made_sequences_are_printed_in_the_published_layout(tmp_path: Path) -> None:
    made = make_listops(60, SMALL)
    for name, first, last in (("train", 0, 40), ("val", 40, 50), ("test", 50, 60)):
        write_listops(tmp_path / f"basic_{name}.tsv", made.sequences(first, last))
    read = read_listops(tmp_path, "mega")
    vocabulary = listops_vocabulary([made.sequences(0, 40).tokens], "mega")
    for name, first, last in (("train", 0, 40), ("valid", 40, 50), ("test", 50, 60)):
        direct = encode_made(made.sequences(first, last), vocabulary)
        assert direct.fingerprint == read[name].fingerprint
        np.testing.assert_array_equal(direct.groups, read[name].groups)


def test_a_full_disk_is_named_with_the_file(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(OSError, match=r"basic_train\.tsv cannot be written: File too large"):
        write_listops(tmp_path / "basic_train.tsv", make_listops(60, SMALL).sequences())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "must be a whole file"),
        (lambda raw: b"", "must be a whole file"),
        (lambda raw: raw.replace(b"elm_neuro listops 1", b"elm_neuro listops 2"), "format must be"),
        (lambda raw: raw.replace(b'\\"max_args\\": 5', b'\\"max_args\\": 1'), "max_args must be in"),
        (lambda raw: raw[:-1] + b"\xff", "answers be digits"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "f"
    made = make_listops(8, SMALL)
    made.save(path)
    raw = path.read_bytes()
    path.write_bytes(change(raw))
    with pytest.raises(ValueError, match=message):
        MadeListOps.load(path)


def test_a_bit_that_flipped_is_found_wherever_it_is(tmp_path: Path) -> None:
    path, made = tmp_path / "f", make_listops(8, SMALL)
    made.save(path)
    raw, refused = path.read_bytes(), 0
    for place in range(0, 8 * len(raw), 13):
        path.write_bytes(flipped(raw, place))
        try:
            loaded = MadeListOps.load(path)
        except ValueError:
            refused += 1
        else:  # in the checksum's name
            assert loaded.settings == SMALL and loaded.trees.tolist() == made.trees.tolist()
            assert loaded.answers.tolist() == made.answers.tolist()
    assert refused > 0.95 * len(raw) * 8 / 13


def flipped(raw: bytes, place: int) -> bytes:
    changed = bytearray(raw)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def test_files_of_earlier_versions_are_read_and_their_first_trees_grown(tmp_path: Path) -> None:
    made = make_listops(8, SMALL)

    def saved(settings: ListOpsSettings, trees: np.ndarray, answers: np.ndarray) -> Path:
        metadata = {"format": "elm_neuro listops 1", "settings": json.dumps(asdict(settings), sort_keys=True)}
        safetensors.numpy.save_file({"trees": trees, "answers": answers}, tmp_path / "old", metadata)
        return tmp_path / "old"

    assert MadeListOps.load(saved(SMALL, made.trees, made.answers)).sequences().fingerprint == (
        made.sequences().fingerprint
    )
    with pytest.raises(ValueError, match="answers must be those of the trees, got others"):
        MadeListOps.load(saved(SMALL, made.trees, np.roll(made.answers, 1)))
    with pytest.raises(ValueError, match="sequences must have more than 10 tokens, got one that has not"):
        MadeListOps.load(saved(SMALL, np.arange(8), made.answers))
    with pytest.raises(ValueError, match=r"answers must be those|sequences must have|must have fewer than 60 tokens"):
        MadeListOps.load(saved(replace(SMALL, seed=1), made.trees, made.answers))


@pytest.mark.parametrize("header", [b"[]", b'{"__metadata__": [1]}', b'{"__metadata__": {"format": 1}}'])
def test_headers_that_are_no_tables_of_texts_are_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="must be a whole file"):
        MadeListOps.load(tmp_path / "f")


def test_settings_out_of_range_are_refused() -> None:
    for options, message in (
        ({"max_depth": 0}, "max_depth must be at least 1, got 0"),
        ({"max_args": 1}, "max_args must be in"),
        ({"min_length": 10, "max_length": 11}, "leave a length below max_length, got 10 and 11"),
        ({"max_length": 1 << 21}, "max_length must be at most"),
        ({"seed": -1}, "seed must be in"),
    ):
        with pytest.raises(ValueError, match=message):
            ListOpsSettings(**options)
    with pytest.raises(ValueError, match="num_samples and num_workers must be at least 1"):
        make_listops(0)
    with pytest.raises(ValueError, match=r"must give 50 different sequences, got 10"):  # single digits only
        make_listops(50, ListOpsSettings(max_depth=1, min_length=0, max_length=3))


def test_trees_that_were_never_accepted_are_refused_before_they_are_built(tmp_path: Path) -> None:
    """A stranger's file may name any tree, and a depth without end."""
    made = MadeListOps(
        ListOpsSettings(max_depth=10**6), np.array([2, 4, 43], dtype=np.int64), np.array([1, 7, 4], dtype=np.uint8)
    )
    made.save(tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match="must have fewer than 2000 tokens, got more"):
        MadeListOps.load(tmp_path / "deep.safetensors").sequences()
    wide = MadeListOps(ListOpsSettings(max_args=1000), np.arange(40, dtype=np.int64), np.zeros(40, dtype=np.uint8))
    with pytest.raises(ValueError, match="must have fewer than 2000 tokens, got more"):
        wide.sequences()
    with pytest.raises(TypeError, match=r"max_depth must be an integer, got 10\.5"):
        ListOpsSettings(max_depth=10.5)  # type: ignore[arg-type]
