// The page: loads the neuron, wires its parts, and lets it live.

import { showNotice, wire } from "./controls.js";
import { layoutOf } from "./layout.js";
import { Life } from "./life.js";
import { Live } from "./live.js";
import { RemoteLife } from "./remote.js";
import { hasGPU, NAMES, requireWebAssembly } from "./runtime.js";
import { Theme } from "./theme.js";
import { pressWithKeys, pressWithPointer } from "./touch.js";

const byId = (id) => document.getElementById(id);

async function start() {
  const theme = new Theme(byId("theme"));
  const description = await describe();
  const layout = layoutOf(description);
  showNotice("Loading the runtime, 14 MB once …");
  const life = await load("wasm", description);
  showNotice(null);
  const canvases = { picture: byId("picture"), traces: byId("traces"), memory: byId("memory") };
  const live = new Live(life, "wasm", description, layout, theme, canvases);
  wire(live);
  pressWithPointer(live);
  pressWithKeys(live);
  offerGPU(live);
  live.run(!live.calm.matches);
  document.documentElement.dataset.living = "yes";
  const frame = (now) => {
    try {
      live.frame(now);
    } catch (error) {
      showNotice(`The neuron stopped: ${error.message}`);
      return;
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

async function describe() {
  const answer = await fetch(new URL("../model/neuron.json", import.meta.url)).catch(() => null);
  if (!answer?.ok) {
    throw new Error("The neuron is not on this site: python docs/live/build.py FOLDER builds the whole page.");
  }
  return answer.json();
}

/** In a thread of its own; where the browser has none, or it cannot live there, in the page's. */
async function load(provider, description) {
  requireWebAssembly();
  try {
    return await RemoteLife.load(provider, description);
  } catch {
    return Life.load(provider, description);
  }
}

/** A choice of where to compute, where the browser lends a GPU. */
async function offerGPU(live) {
  if (!(await hasGPU())) return;
  byId("providers").hidden = false;
  for (const provider of Object.keys(NAMES)) {
    byId(`provider-${provider}`).addEventListener("change", async () => {
      const { running } = live;
      live.run(false);
      showNotice(`Loading ${NAMES[provider]} …`);
      try {
        await live.exchange(provider);
        showNotice(null);
      } catch (error) {
        byId(`provider-${live.provider}`).checked = true;
        showNotice(`${NAMES[provider]} does not run here: ${error.message}`);
      }
      live.run(running);
    });
  }
}

start().catch((error) => showNotice(error.message));
