"""What a frame of the page costs, counted and not timed, and the thread that the neuron lives in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.live.pages import living
from tests.live.paper import Change, run, spikes

pytestmark = pytest.mark.slow

NUM_FRAME = 250
STEPS = 16  # of a frame
SILENT = 50  # frames in which nothing happens, after the others

# The page's own Live, with a life of waves and frames given by hand: counts what is asked of the canvases and of the
# layout.
FRAMES = """async ([numFrame, numSilent, steps]) => {
  const js = (name) => import(new URL(`js/${name}.js`, location.href).href);
  const [{ Live }, { layoutOf }, { Theme }] = await Promise.all(["live", "layout", "theme"].map(js));
  const description = await (await fetch("model/neuron.json")).json();
  const life = {
    sizes: { inputs: 1278, branches: 45, memory: 20 },
    remote: true,
    time: 0,
    change() {},
    press() {},
    async advance(due, budget, record) {
      for (let step = 0; step < steps; step += 1, this.time += 1) {
        record.soma[step] = -65 + 8 * Math.sin(this.time / 7);
        record.probability[step] = Math.sin(this.time / 50) ** 2;
        record.fired[step] = this.time % 300 === 0 ? 1 : 0;
      }
      record.steps = steps;
      record.sinceFired = this.time % 300;
      record.branches.forEach((_, i) => { record.branches[i] = 3 * Math.sin(this.time / 20 + i); });
      record.memory.forEach((_, i) => { record.memory[i] = 5 * Math.sin(this.time / 40 + i); });
      record.age.forEach((_, i) => { record.age[i] = (this.time + 31 * i) % 130; }); // nearly all alight
      return record;
    },
  };
  const canvases = Object.fromEntries(["picture", "traces", "memory"].map((id) => [id, document.getElementById(id)]));
  const theme = new Theme(document.createElement("button"));
  const live = new Live(life, "wasm", description, layoutOf(description), theme, canvases);
  const tick = () => new Promise((resolve) => setTimeout(resolve));
  let now = 1000;
  const frames = async (number) => {
    for (let i = 0; i < number; i += 1) {
      live.frame((now += 1000 / 60));
      await null; // for the steps
    }
  };
  live.run(true);
  await frames(5); // the first ones draw what stays
  await tick();

  const counted = { paints: 0, points: 0, copied: 0, layouts: 0 };
  const context = CanvasRenderingContext2D.prototype;
  const wrap = (owner, name, count) => {
    const own = owner[name];
    owner[name] = function (...values) {
      count(this, values);
      return own.apply(this, values);
    };
  };
  for (const name of ["fill", "stroke", "fillRect", "strokeRect", "clearRect", "fillText"]) {
    wrap(context, name, () => { counted.paints += 1; });
  }
  for (const name of ["lineTo", "arc", "rect"]) wrap(context, name, () => { counted.points += 1; });
  for (const name of ["drawImage", "putImageData"]) {
    wrap(context, name, ({ canvas }) => { counted.paints += 1; counted.copied += canvas.width * canvas.height; });
  }
  wrap(Element.prototype, "getBoundingClientRect", () => { counted.layouts += 1; });
  wrap(globalThis, "getComputedStyle", () => { counted.layouts += 1; });
  let words = 0;
  const written = new MutationObserver((changes) => { words += changes.length; });
  written.observe(document.querySelector(".numbers"), { subtree: true, childList: true, characterData: true });
  await frames(numFrame);
  await tick();
  const busy = { ...counted, words };
  live.run(false);
  await frames(1); // what came last
  const before = { ...counted };
  await frames(numSilent);
  const silent = { ...counted };
  const { shapes } = live.picture;
  return {
    busy, before, silent, time: live.traces.time,
    painted: shapes.pixels.length / (canvases.picture.width * canvases.picture.height),
    canvases: Object.values(canvases).map(({ width, height }) => width * height),
  };
}"""

# The page's own way to a neuron in a thread of its own, a step at a time: spikes pressed, changes set.
REMOTE = """async ([spikes, changes, numStep]) => {
  const { RemoteLife } = await import(new URL("js/remote.js", location.href).href);
  const { Record } = await import(new URL("js/record.js", location.href).href);
  const life = await RemoteLife.load("wasm", await (await fetch("model/neuron.json")).json());
  life.change({ pattern: "silence" });
  let record = new Record(life.sizes);
  const outputs = [];
  let next = 0;
  for (let step = 0; step < numStep; step += 1) {
    for (const [at, stretchSynapse, stretchMemory, cut] of changes) {
      if (at === step) life.change({ stretchSynapse, stretchMemory, cut });
    }
    for (; next < spikes.length && spikes[next][0] === step; next += 1) {
      for (let i = 0; i < Math.abs(spikes[next][2]); i += 1) life.press(spikes[next][1]);
    }
    record = await life.advance(1, 1000, record);
    outputs.push([record.steps, record.probability[0], record.soma[0]]);
  }
  const reached = await life.advance(100, 1000, record);
  const ages = [...reached.age];
  await life.restart();
  return { outputs, ages, thread: life.thread };
}"""


@pytest.mark.parametrize(("width", "ratio"), [(1280, 1), (390, 3)])
def test_a_frame_draws_little_asks_no_layout_and_writes_ten_times_a_second(
    browser: Any, site: str, width: int, ratio: int
) -> None:
    context = {"viewport": {"width": width, "height": 844}, "device_scale_factor": ratio}
    with living(browser, site, **context) as page:
        page.click("#run")
        page.mouse.move(0, 0)
        page.wait_for_timeout(300)
        came = page.evaluate(FRAMES, [NUM_FRAME, SILENT, STEPS])
    busy = {name: count / NUM_FRAME for name, count in came["busy"].items()}
    print(busy, f"{came['painted']:.3f} of the picture's pixels")
    assert came["time"] == STEPS * (4 + NUM_FRAME)  # at the first frame no time has passed
    assert busy["paints"] <= 60  # 22 of them the memory's dots
    assert busy["points"] <= 4 * STEPS + 40  # two curves of the new steps, and the dots
    assert busy["copied"] <= came["canvases"][0] + came["canvases"][1]  # each once
    assert busy["layouts"] == 0
    assert came["painted"] < 0.25
    assert 0 < busy["words"] <= 3 * (10 / 60 + 1 / NUM_FRAME)  # three numbers, ten times a second
    assert came["silent"] == came["before"]  # nothing is drawn where nothing happens
    assert max(came["canvases"]) <= (2 * width) ** 2  # no sharper than twice


def test_the_neuron_in_its_own_thread_is_the_papers(live: Path, page: Any) -> None:
    page.click("#run")
    num_step = 600
    changes = {200: Change(tau_s=2.5, stretch=5.0, cut=(7, 30)), 450: Change()}
    x = spikes(num_step, seed=3)
    probability, soma = run(live / "model" / "num_memory_20", x, changes)
    steps, inputs = np.nonzero(x)
    told = [
        [step, float(np.log(c.tau_s / 5.0)), float(np.log(c.stretch)), [float(b in c.cut) for b in range(45)]]
        for step, c in changes.items()
    ]
    pressed = [[int(s), int(i), float(x[s, i])] for s, i in zip(steps, inputs, strict=True)]
    came = page.evaluate(REMOTE, [pressed, told, num_step])
    outputs = np.array(came["outputs"])
    assert came["thread"] == "one thread of its own"
    np.testing.assert_array_equal(outputs[:, 0], 1)
    np.testing.assert_allclose(outputs[:, 1], probability, rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs[:, 2], soma, rtol=0, atol=1e-3)
    last = np.array([np.flatnonzero(column)[-1] if column.any() else -1000 for column in x.T])
    np.testing.assert_array_equal(came["ages"], np.minimum(num_step + 99 - last, 255))


def test_the_neuron_does_not_live_in_the_pages_thread_where_there_is_another(page: Any) -> None:
    assert [worker.url.rsplit("/", 1)[-1] for worker in page.workers] == ["worker.js"]
    page.wait_for_selector("#speed-words[data-frames]")
    assert "one thread of its own" in page.inner_text("#speed-words")
    assert float(page.get_attribute("#speed-words", "data-work")) > 0


@pytest.mark.parametrize(
    "script",
    [
        "delete globalThis.Worker",
        "globalThis.Worker = class { constructor() { throw new Error('no modules in workers'); } }",
        "globalThis.Worker = class extends Worker { constructor(url, how) { super(new URL('none.js', url), how); } }",
    ],
    ids=["none", "refused", "not loaded"],
)
def test_without_a_thread_of_its_own_it_lives_in_the_pages(browser: Any, site: str, script: str) -> None:
    with living(browser, site, script=script) as page:
        page.wait_for_selector("#speed-words[data-frames]")
        assert "WebAssembly, one thread, the page's" in page.inner_text("#speed-words")
        page.select_option("#pattern", "silence")
        page.click("#press-branch")
        before = page.inner_text("#soma")
        page.wait_for_function("(before) => document.getElementById('soma').innerText !== before", arg=before)


def test_a_state_set_to_zero_while_steps_are_on_their_way_stays_so(page: Any) -> None:
    page.wait_for_selector("#speed-words[data-frames]")
    page.evaluate("['restart', 'run'].forEach((id) => document.getElementById(id).click())")
    page.wait_for_timeout(500)
    assert page.inner_text("#soma") == "– mV"
    assert page.inner_text("#rate") == "0.0 Hz"
