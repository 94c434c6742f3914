// The page: loads the neuron, wires its parts, and lets it live.

import { Clock } from "./clock.js";
import { announce, showNotice, showNumbers, showSpeed, showState, wire } from "./controls.js";
import { Drive } from "./drive.js";
import { layoutOf } from "./layout.js";
import { Memory } from "./memory.js";
import { Neuron } from "./neuron.js";
import { Picture } from "./picture.js";
import { hasGPU, loadRuntime, NAMES } from "./runtime.js";
import { Theme } from "./theme.js";
import { pressWithKeys, pressWithPointer } from "./touch.js";
import { Traces } from "./traces.js";

const CALM_MS = 250; // between two drawings where the visitor wants little motion
const PROVIDERS = ["wasm", "webgpu"];

const byId = (id) => document.getElementById(id);

async function describe() {
  const answer = await fetch(new URL("../model/neuron.json", import.meta.url)).catch(() => null);
  if (!answer?.ok) {
    throw new Error("The neuron is not on this site: python docs/live/build.py FOLDER builds the whole page.");
  }
  return answer.json();
}

async function start() {
  const theme = new Theme(byId("theme"));
  const description = await describe();
  const layout = layoutOf(description);
  const sizes = {
    inputs: description.num_inputs,
    branches: description.branches.length,
    memory: description.tau_m.length,
  };
  showNotice("Loading the runtime, 14 MB once …");
  let provider = "wasm";
  let neuron = await Neuron.load(await loadRuntime(provider), provider, sizes);
  await neuron.step(); // the first one also prepares the model
  neuron.restart();
  showNotice(null);

  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const chosen = { branch: 12, synapse: null };
  const [drive, clock] = [new Drive(layout), new Clock()];
  const picture = new Picture(byId("picture"), layout, theme);
  const traces = new Traces(byId("traces"), theme);
  const memory = new Memory(byId("memory"), theme, description.tau_m, description.largest_memory);
  let running = false;
  drive.branch = chosen.branch;

  const live = {
    neuron: () => neuron,
    running: () => running,
    description,
    layout,
    drive,
    clock,
    chosen,
    choose(branch, synapse = null) {
      const before = chosen.branch;
      Object.assign(chosen, { branch, synapse });
      drive.branch = branch;
      showState(live, controls);
      if (synapse !== null) {
        announce(`${layout.excitatory[synapse] ? "Excitatory" : "Inhibitory"} synapse ${synapse + 1}, branch ${branch + 1}`);
      } else if (branch !== before) {
        const state = neuron.cut[branch] ? "cut" : "whole";
        announce(`Branch ${branch + 1}, reads ${layout.branches[branch].length} synapses, ${state}`);
      }
    },
    press(input) {
      drive.press(input);
      picture.glow[input] = 1; // at once, also while the neuron pauses
    },
    pressBranch() {
      drive.pressBranch(chosen.branch);
      announce(`Spikes at branch ${chosen.branch + 1}`);
    },
    cut() {
      const { branch } = chosen;
      neuron.cut[branch] = 1 - neuron.cut[branch];
      showState(live, controls);
      announce(`Branch ${branch + 1} ${neuron.cut[branch] ? "cut" : "joined"}`);
    },
    joinAll() {
      neuron.cut.fill(0);
      showState(live, controls);
      announce("All branches joined");
    },
    restart() {
      neuron.restart();
      traces.clear();
      announce("State set to zero");
    },
    frame: (now) => frame(now).catch((error) => showNotice(`The neuron stopped: ${error.message}`)),
    run(on) {
      running = on;
      clock.restart();
      showState(live, controls);
    },
  };
  const controls = wire(live);
  pressWithPointer(picture, live);
  pressWithKeys(picture, layout, chosen, live);
  offerProviders();

  async function step() {
    drive.fill(neuron.input, traces.time);
    await neuron.step();
    const fired = Math.random() < neuron.probability;
    if (fired) picture.fired = 1;
    picture.arrive(neuron.input);
    traces.push(neuron.soma, neuron.probability, fired);
  }

  let before = performance.now();
  let drawn = -Infinity;
  async function frame(now) {
    picture.fade(Math.max(now - before, 0)); // what arrives in this frame is seen in full
    before = now;
    if (running) {
      await clock.run(now, step);
      const measured = clock.measure(now);
      if (measured) showSpeed(measured, NAMES[provider]);
    }
    if (!calm.matches || now - drawn >= CALM_MS) {
      picture.draw(neuron, chosen, calm.matches);
      traces.draw();
      memory.draw(neuron);
      showNumbers(neuron, traces.rate);
      drawn = now;
    }
    requestAnimationFrame(live.frame);
  }

  /** A choice of where to compute, where the browser lends a GPU. */
  async function offerProviders() {
    if (!(await hasGPU())) return;
    byId("providers").hidden = false;
    for (const one of PROVIDERS) {
      byId(`provider-${one}`).addEventListener("change", async () => {
        const before = running;
        live.run(false);
        showNotice(`Loading ${NAMES[one]} …`);
        try {
          const next = await Neuron.load(await loadRuntime(one), one, sizes);
          next.takeOver(neuron);
          [neuron, provider] = [next, one];
          showNotice(null);
        } catch (error) {
          byId(`provider-${provider}`).checked = true;
          showNotice(`${NAMES[one]} does not run here: ${error.message}`);
        }
        live.run(before);
      });
    }
  }

  live.run(!calm.matches);
  document.documentElement.dataset.living = "yes";
  requestAnimationFrame(live.frame);
}

start().catch((error) => showNotice(error.message));
