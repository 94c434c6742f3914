"""The page in headless Chromium: its own modules against the paper's equations, its speed, its controls."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.live.pages import living, served
from tests.live.paper import Change, run, spikes

pytestmark = pytest.mark.slow

NUM_STEP = 1200
STRETCH = np.geomspace(0.2, 8.0, 20)
CHANGES = {
    "published": {},
    "time constants": {0: Change(tau_s=12.0, stretch=STRETCH)},
    "branches cut": {0: Change(cut=(1, 13, 40))},
    "changed while it lives": {300: Change(tau_s=2.5, stretch=5.0, cut=(7,)), 900: Change()},
}
# Runs the page's own neuron: spikes as [step, input, count], changes as [step, stretch_b, stretch_m[], cut[]].
LIVE = """async ([spikes, changes, numStep, provider]) => {
  const { Neuron } = await import(new URL("js/neuron.js", location.href).href);
  const { loadRuntime } = await import(new URL("js/runtime.js", location.href).href);
  const sizes = { inputs: 1278, branches: 45, memory: 20 };
  const neuron = await Neuron.load(await loadRuntime(provider), provider, sizes);
  const outputs = [];
  const start = performance.now();
  let next = 0;
  for (let step = 0; step < numStep; step += 1) {
    for (const [at, synapse, memory, cut] of changes) {
      if (at !== step) continue;
      neuron.stretchSynapse[0] = synapse;
      neuron.stretchMemory.set(memory);
      neuron.cut.set(cut);
    }
    neuron.input.fill(0);
    for (; next < spikes.length && spikes[next][0] === step; next += 1) neuron.input[spikes[next][1]] = spikes[next][2];
    await neuron.step();
    outputs.push([neuron.probability, neuron.soma]);
  }
  return { outputs, milliseconds: (performance.now() - start) / numStep };
}"""


def wait_for_notice(page: Any, words: str) -> None:
    page.wait_for_function("(words) => document.getElementById('notice').textContent.includes(words)", arg=words)


def wait_for_soma(page: Any, condition: str) -> None:
    soma = "parseFloat(document.getElementById('soma').innerText.replace('\N{MINUS SIGN}', '-'))"
    page.wait_for_function(f"() => {soma} {condition}", timeout=20_000)


def arguments(x: np.ndarray, changes: dict[int, Change], provider: str) -> list[Any]:
    steps, inputs = np.nonzero(x)
    told = []
    for step, change in changes.items():
        cut = [float(branch in change.cut) for branch in range(45)]
        stretch_m = np.log(np.ones(20) * change.stretch).tolist()
        told.append([step, float(np.log(change.tau_s / 5.0)), stretch_m, cut])
    return [[[int(s), int(i), float(x[s, i])] for s, i in zip(steps, inputs, strict=True)], told, len(x), provider]


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_pages_own_neuron_is_the_papers(live: Path, page: Any, changes: dict[int, Change]) -> None:
    page.click("#run")  # nothing else at the same time
    x = spikes(NUM_STEP, seed=10 + len(changes))
    probability, soma = run(live / "model" / "num_memory_20", x, changes)
    came = page.evaluate(LIVE, arguments(x, changes, "wasm"))
    print(f"{came['milliseconds']:.3f} ms a step")
    outputs = np.array(came["outputs"])
    np.testing.assert_allclose(outputs[:, 0], probability, rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs[:, 1], soma, rtol=0, atol=1e-3)


def test_it_lives_in_real_time_without_threads_and_without_a_gpu_and_says_how_fast(browser: Any, site: str) -> None:
    with living(browser, site, script="Object.defineProperty(navigator, 'gpu', {value: undefined})") as page:
        assert not page.evaluate("crossOriginIsolated")
        page.wait_for_selector("#speed-words[data-frames]")
        page.wait_for_timeout(2500)
        words = page.inner_text("#speed-words")
        told = page.evaluate("({...document.getElementById('speed-words').dataset})")
        print(words)
        assert "WebAssembly, one thread" in words
        assert float(told["frames"]) > 2  # 60 on a machine that has nothing else to do
        assert 0.02 < float(told["realTime"]) < 1.1
        assert not page.is_visible("#providers")
        assert page.inner_text("#soma").endswith(" mV")


def test_a_browser_with_a_gpu_gets_the_choice_and_falls_back_in_words(browser: Any, site: str) -> None:
    pretends = "Object.defineProperty(navigator, 'gpu', {value: {requestAdapter: async () => ({})}})"
    with living(browser, site, script=pretends) as page:
        page.wait_for_selector("#providers", state="visible")
        page.check("#provider-webgpu")
        wait_for_notice(page, "does not run here")
        assert page.is_checked("#provider-wasm")
        before = page.inner_text("#soma")
        page.wait_for_function("(before) => document.getElementById('soma').innerText !== before", arg=before)


def test_without_webassembly_the_page_says_so(browser: Any, site: str) -> None:
    page = browser.new_page()
    page.add_init_script("delete globalThis.WebAssembly")
    page.goto(site)
    wait_for_notice(page, "no WebAssembly")
    page.close()


def test_without_its_runtime_or_model_the_page_says_so(browser: Any, live: Path, tmp_path: Path) -> None:
    for name in ("js", "style.css", "index.html"):
        (shutil.copytree if (live / name).is_dir() else shutil.copy)(live / name, tmp_path / name)
    with served(tmp_path) as address:
        page = browser.new_page()
        page.goto(address)
        wait_for_notice(page, "The neuron is not on this site")
        (tmp_path / "model").mkdir()
        empty = '{"num_inputs": 2, "num_excitatory": 1, "tau_m": [], "branches": []}'
        (tmp_path / "model" / "neuron.json").write_text(empty)
        page.reload()
        wait_for_notice(page, "is not on this site: it was built")
        page.close()


def test_keys_choose_fire_and_cut(page: Any) -> None:
    page.focus("#picture")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#branch-value") == "14 of 45"
    page.keyboard.press("x")
    assert page.is_checked("#cut-branch")
    assert page.inner_text("#num-cut") == "1 cut"
    page.keyboard.press("ArrowLeft")
    assert not page.is_checked("#cut-branch")
    page.keyboard.press("ArrowUp")
    assert "synapse" in page.inner_text("#announced")
    page.keyboard.press("Enter")
    assert page.inner_text("#announced") == "Spikes at branch 13"
    page.click("#join-all")
    assert page.inner_text("#num-cut") == "none cut"


def test_a_press_at_a_branch_is_felt_by_the_soma(page: Any) -> None:
    page.select_option("#pattern", "silence")
    wait_for_soma(page, "< -78")
    page.select_option("#speed", "0.05")
    page.click("#press-branch")
    wait_for_soma(page, "> -78")


def test_sliders_move_the_time_constants_and_one_button_moves_them_back(page: Any) -> None:
    page.locator("#tau-memory").fill("0.5")
    assert page.inner_text("#tau-memory-value") == "× 3.2"
    page.locator("#tau-synapse").fill("1")
    assert page.inner_text("#tau-synapse-value") == "50.0 ms"
    page.click("#tau-published")
    assert (page.inner_text("#tau-memory-value"), page.inner_text("#tau-synapse-value")) == ("× 1.0", "5.0 ms")


def test_who_wants_little_motion_starts_with_a_pause(browser: Any, site: str) -> None:
    with living(browser, site, reduced_motion="reduce") as page:
        assert page.inner_text("#run") == "Run"
        page.click("#run")
        page.wait_for_selector("#speed-words[data-frames]")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_screen_or_lies_over_the_text(browser: Any, site: str, width: int) -> None:
    with living(browser, site, viewport={"width": width, "height": 844}, has_touch=width < 500) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.getElementById('picture').getBoundingClientRect().width") > 0.4 * width
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        parts = "['.cell', '.side', 'article'].map((part) => document.querySelector(part).getBoundingClientRect())"
        cell, side, article = page.evaluate(parts + ".map(({top, bottom}) => [top, bottom])")
        assert article[0] >= max(cell[1], side[1])


def test_a_finger_presses_the_branch_under_it(browser: Any, site: str) -> None:
    with living(browser, site, viewport={"width": 390, "height": 844}, has_touch=True) as page:
        box = page.locator("#picture").bounding_box()
        before = page.inner_text("#branch-value")
        page.touchscreen.tap(box["x"] + 0.75 * box["width"], box["y"] + 0.36 * box["height"])
        page.wait_for_function("(before) => document.getElementById('branch-value').innerText !== before", arg=before)
