"""Made images of Pathfinder: each label by tracing the curves, statistics beside those of the published generator."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from elm_neuro.datasets.lra import Drawing, draw_pathfinder
from elm_neuro.datasets.lra._pathfinder_made import SIZES, Contour
from elm_neuro.datasets.lra._pathfinder_paddles import dilated, disc, stretched


@pytest.fixture(scope="module")
def small() -> list[Drawing]:
    return [draw_pathfinder(number) for number in range(60)]


def trace(contour: Contour, length: int, margin: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two ends of a curve, once each paddle is known to begin near where the one before ended."""
    place = contour.tip
    for head, backwards in contour.paddles:
        tail = (head[0] + length * math.sin(backwards), head[1] + length * math.cos(backwards))
        assert math.dist(tail, place) < 2 * margin + 2.5  # the gap of two margins, and rounding up
        place = head
    return contour.tip, place


@pytest.mark.parametrize("size", [32, 64])
def test_every_label_is_what_tracing_the_curves_finds(size: int, small: list[Drawing]) -> None:
    settings = SIZES[size]
    for drawing in small if size == 32 else [draw_pathfinder(number, size) for number in range(6)]:
        ends = [trace(contour, settings.paddle_length, drawing.margin) for contour in drawing.contours]
        assert all(len(contour.paddles) == 14 for contour in drawing.contours)
        one, other = (tuple(marker) for marker in drawing.markers.tolist())
        assert drawing.label == any({one, other} == set(pair) for pair in ends)
        for layer, (first, last) in zip(drawing.layers, ends, strict=True):
            for row, column in (first, last):  # there is ink at both ends, and a disc over two of the four
                assert layer[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].max() > 0.1
        for row, column in drawing.markers:
            assert drawing.image[row, column] > 160
        assert drawing.image.max() == 255 and drawing.image.min() == 0


def test_curves_touch_as_seldom_as_those_of_the_published_generator(small: list[Drawing], lra: Path) -> None:
    """Their first paddles do not see each other; nor do ours."""
    frozen = np.load(lra / "pathfinder32_layers.npz")
    peaks = frozen["snake_peak"][:, :, None, None]
    layers = {
        "theirs": np.stack((frozen["snake0"], frozen["snake1"]), axis=1) / 255 * peaks,
        "ours": np.stack([drawing.layers for drawing in small]),
    }
    share = {name: ((one[:, 0] > 0.5) & (one[:, 1] > 0.5)).any((1, 2)).mean() for name, one in layers.items()}
    assert share["ours"] == pytest.approx(share["theirs"], abs=0.2)


def test_statistics_are_those_of_the_published_generator(small: list[Drawing], lra: Path) -> None:
    frozen = json.loads((lra / "pathfinder_stats.json").read_text())["32"]
    images = np.stack([drawing.image for drawing in small])
    assert images.mean() / 255 == pytest.approx(frozen["mean_grey"], rel=0.05)
    assert (images > 32).mean() == pytest.approx(frozen["ink_over_32"], rel=0.05)
    assert (images > 127).mean() == pytest.approx(frozen["ink_over_127"], rel=0.05)
    assert (images / 255).std() == pytest.approx(frozen["image_std"], rel=0.03)
    share = np.bincount(images.ravel() // 16, minlength=16) / images.size
    np.testing.assert_allclose(share, frozen["hist16"], atol=0.004)
    rows = {int(drawing.origins[0][0]) for drawing in small}
    assert rows <= set(range(frozen["first_origin_rows"][0], frozen["first_origin_rows"][1] + 1))
    peaks = np.median([drawing.layers.max() for drawing in small])
    assert peaks == pytest.approx(frozen["target_peak"], abs=0.02)
    assert 0.25 < np.mean([drawing.label for drawing in small]) < 0.75


@pytest.mark.slow
def test_large_images_have_the_statistics_of_the_published_generator(lra: Path) -> None:
    frozen = json.loads((lra / "pathfinder_stats.json").read_text())["128"]
    drawings = [draw_pathfinder(number, 128) for number in range(12)]
    images = np.stack([drawing.image for drawing in drawings])
    assert images.mean() / 255 == pytest.approx(frozen["mean_grey"], rel=0.08)
    assert (images > 32).mean() == pytest.approx(frozen["ink_over_32"], rel=0.08)
    assert (images / 255).std() == pytest.approx(frozen["image_std"], rel=0.05)
    share = np.bincount(images.ravel() // 32, minlength=8) / images.size
    np.testing.assert_allclose(share, frozen["hist8"], atol=0.006)
    assert {drawing.margin for drawing in drawings} <= {2, 3}


def test_frozen_images_mark_tips_as_ours_do(lra: Path) -> None:
    """The same rule on the published generator's own layers: both discs at tips of one curve, or of two."""
    frozen = np.load(lra / "pathfinder32_layers.npz")
    for origins, terminals, markers, label in zip(
        frozen["origin_tips"], frozen["terminal_tips"], frozen["markers"], frozen["label"], strict=True
    ):
        ends = [{tuple(origin), tuple(terminal)} for origin, terminal in zip(origins, terminals, strict=True)]
        assert label == any({tuple(marker) for marker in markers} == pair for pair in ends)


def test_an_image_depends_on_seed_size_and_number_alone() -> None:
    one, again, other = draw_pathfinder(5), draw_pathfinder(5), draw_pathfinder(5, seed=1)
    np.testing.assert_array_equal(one.image, again.image)
    assert (one.image != other.image).any()
    easier = draw_pathfinder(5, contour_length=6, num_distractors=0)
    assert [len(contour.paddles) for contour in easier.contours] == [6, 6]
    for options in ({"contour_length": 0}, {"contour_length": 15}, {"num_distractors": -1}):
        with pytest.raises(ValueError, match="must"):
            draw_pathfinder(0, **options)
    with pytest.raises(ValueError, match="size must be one of 32, 64, 128, got 31"):
        draw_pathfinder(0, 31)
    with pytest.raises(ValueError, match="number must not be negative, got -1"):
        draw_pathfinder(-1)


def test_a_dilation_is_the_maximum_under_the_disc() -> None:
    image = np.random.default_rng(0).random((7, 9))
    offsets = np.argwhere(disc(2)) - 2
    expected = np.zeros_like(image)
    for row, column in np.ndindex(image.shape):
        near = [
            image[row + dy, column + dx]
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if dx * dx + dy * dy <= 4 and 0 <= row + dy < 7 and 0 <= column + dx < 9
        ]
        expected[row, column] = max(near)
    np.testing.assert_array_equal(dilated(image, offsets), expected)
    assert stretched(np.zeros((2, 2))).max() == 0
