"""Parts of the page by themselves, in the browser that runs them: what arrives at the synapses, and where they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

NUM_STEP = 3000  # 3 s: two waves, twelve rhythms

DRIVE = """async ([pattern, numStep]) => {
  const { layoutOf } = await import(new URL("js/layout.js", location.href).href);
  const { Drive } = await import(new URL("js/drive.js", location.href).href);
  const layout = layoutOf(await (await fetch("model/neuron.json")).json());
  let state = 7; // a generator with a known sequence: Park and Miller's
  const drive = new Drive(layout, () => (state = (state * 48271) % 2147483647) / 2147483647);
  drive.pattern = pattern;
  drive.branch = 20;
  const input = new Float32Array(1278);
  const [sums, negative] = [new Float64Array(1278), new Float64Array(1278)];
  const steps = [];
  for (let t = 0; t < numStep; t += 1) {
    drive.fill(input, t);
    input.forEach((x, i) => { sums[i] += Math.abs(x); negative[i] += x < 0; });
    steps.push(input.reduce((sum, x) => sum + Math.abs(x), 0));
  }
  drive.pattern = "silence";
  drive.press(3);
  drive.press(3);
  drive.press(700);
  drive.fill(input, 1);
  const pressed = [input[3], input[700], input.reduce((sum, x) => sum + Math.abs(x), 0)];
  drive.fill(input, 2);
  return { sums: [...sums], negative: [...negative], steps, pressed, after: input.every((x) => x === 0) };
}"""

PICTURE = """async () => {
  const { layoutOf } = await import(new URL("js/layout.js", location.href).href);
  const { Picture } = await import(new URL("js/picture.js", location.href).href);
  const layout = layoutOf(await (await fetch("model/neuron.json")).json());
  const canvas = document.getElementById("picture");
  const picture = new Picture(canvas, layout, {});
  const box = canvas.getBoundingClientRect();
  const scale = Math.min(box.width, box.height) / 1000;
  const [left, top] = [box.left + (box.width - 1000 * scale) / 2, box.top + (box.height - 1000 * scale) / 2];
  const missed = picture.dendrite.synapses.filter(({ x, y }, input) =>
    picture.near(left + scale * x, top + scale * y, 0.5)[0] !== input).length;
  return { synapses: picture.dendrite.synapses, own: layout.own, readers: layout.readers, missed };
}"""


@pytest.mark.parametrize(("pattern", "factor"), [("steady", 1), ("rhythm", 1), ("wave", 1), ("silence", 0)])
def test_every_pattern_has_the_rates_of_the_sliders(page: Any, pattern: str, factor: float) -> None:
    came = page.evaluate(DRIVE, [pattern, NUM_STEP])
    for synapses, rate in ((slice(0, 639), 14.0), (slice(639, 1278), 8.0)):
        expected = factor * rate * 639 * NUM_STEP / 1000
        assert abs(np.sum(came["sums"][synapses]) - expected) <= 4 * np.sqrt(expected)
    assert not np.any(came["negative"][:639])
    assert came["negative"][639:] == came["sums"][639:]


def test_volleys_arrive_four_times_a_second_at_what_the_branch_excites(page: Any) -> None:
    steps = np.array(page.evaluate(DRIVE, ["volleys", NUM_STEP])["steps"])
    at = np.flatnonzero(steps > 45)
    assert at.tolist() == list(range(0, NUM_STEP, 250))


def test_what_is_pressed_arrives_once(page: Any) -> None:
    came = page.evaluate(DRIVE, ["silence", 10])
    assert came["pressed"] == [2, -1, 3]
    assert came["after"]


def test_each_synapse_is_drawn_once_in_the_square_at_a_branch_that_reads_it(page: Any) -> None:
    came = page.evaluate(PICTURE)
    assert sorted(i for own in came["own"] for i in own) == list(range(1278))
    for i, (synapse, readers) in enumerate(zip(came["synapses"], came["readers"], strict=True)):
        assert 0 < synapse["x"] < 1000, i
        assert 0 < synapse["y"] < 1000, i
        assert synapse["branch"] in readers, i
    assert came["missed"] == 0
