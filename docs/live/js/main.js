// The page: loads the neuron, wires its parts, and lets it live.

import { showNotice, wire } from "./controls.js";
import { layoutOf } from "./layout.js";
import { Live } from "./live.js";
import { Neuron } from "./neuron.js";
import { hasGPU, loadRuntime, NAMES } from "./runtime.js";
import { Theme } from "./theme.js";
import { pressWithKeys, pressWithPointer } from "./touch.js";

const byId = (id) => document.getElementById(id);

async function start() {
  const theme = new Theme(byId("theme"));
  const description = await describe();
  const layout = layoutOf(description);
  showNotice("Loading the runtime, 14 MB once …");
  const neuron = await load("wasm", description);
  showNotice(null);
  const canvases = { picture: byId("picture"), traces: byId("traces"), memory: byId("memory") };
  const live = new Live(neuron, "wasm", description, layout, theme, canvases);
  wire(live);
  pressWithPointer(live);
  pressWithKeys(live);
  offerGPU(live);
  live.run(!live.calm.matches);
  document.documentElement.dataset.living = "yes";
  const frame = async (now) => {
    try {
      await live.frame(now);
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

async function load(provider, description) {
  const sizes = {
    inputs: description.num_inputs,
    branches: description.branches.length,
    memory: description.tau_m.length,
  };
  const neuron = await Neuron.load(await loadRuntime(provider), provider, sizes);
  await neuron.step(); // the first one also prepares the model
  neuron.restart();
  return neuron;
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
        live.exchange(await load(provider, live.description), provider);
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
