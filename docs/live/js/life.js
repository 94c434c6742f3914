// The life of the neuron, step by step: what arrives, what it does, what is written down. In a thread of its own where
// the browser has one (remote.js), else in the page's.

import { Drive } from "./drive.js";
import { layoutOf } from "./layout.js";
import { Neuron } from "./neuron.js";
import { loadRuntime } from "./runtime.js";

export class Life {
  /** Load the neuron that `description` (neuron.json) tells of, for a provider, "wasm" or "webgpu". */
  static async load(provider, description) {
    const sizes = sizesOf(description);
    return new Life(await loadNeuron(provider, sizes), new Drive(layoutOf(description)), sizes);
  }

  constructor(neuron, drive, sizes) {
    Object.assign(this, { neuron, drive, sizes });
    this.remote = false;
    this.thread = "one thread, the page's";
    this.age = new Uint8Array(sizes.inputs);
    this.restart();
  }

  /** Take what a visitor set: any of {rates, pattern, branch, stretchSynapse, stretchMemory, cut}. */
  change({ stretchSynapse, stretchMemory, cut, ...arriving }) {
    const { neuron } = this;
    if (stretchSynapse !== undefined) neuron.stretchSynapse[0] = stretchSynapse;
    if (stretchMemory !== undefined) neuron.stretchMemory.fill(stretchMemory);
    if (cut !== undefined) neuron.cut.set(cut);
    Object.assign(this.drive, arriving);
  }

  /** A spike at an input in the next step. */
  press(input) {
    this.drive.press(input);
  }

  pressBranch(branch) {
    this.drive.pressBranch(branch);
  }

  restart() {
    this.neuron.restart();
    this.time = 0; // steps so far
    this.sinceFired = Infinity;
    this.age.fill(255);
  }

  /** Go on with a neuron that another provider computes. */
  async exchange(provider) {
    const neuron = await loadNeuron(provider, this.sizes);
    neuron.takeOver(this.neuron);
    this.neuron = neuron;
  }

  /** Do `steps` steps, fewer where they take longer than `budget` ms; the record, written. One call at a time. */
  async advance(steps, budget, record) {
    const start = performance.now();
    let step = 0;
    for (; step < steps && performance.now() - start < budget; step += 1) {
      const { neuron } = this;
      this.drive.fill(neuron.input, this.time);
      await neuron.step();
      const fired = Math.random() < neuron.probability;
      this.#grow(neuron.input, fired);
      record.soma[step] = neuron.soma;
      record.probability[step] = neuron.probability;
      record.fired[step] = fired ? 1 : 0;
    }
    record.steps = step;
    record.busy = performance.now() - start;
    record.sinceFired = this.sinceFired;
    record.branches.set(this.neuron.branches);
    record.memory.set(this.neuron.memory);
    record.age.set(this.age);
    return record;
  }

  #grow(input, fired) {
    const { age } = this;
    for (let i = 0; i < age.length; i += 1) age[i] = input[i] === 0 ? Math.min(age[i] + 1, 255) : 0;
    this.sinceFired = fired ? 0 : this.sinceFired + 1;
    this.time += 1;
  }
}

export function sizesOf(description) {
  return {
    inputs: description.num_inputs,
    branches: description.branches.length,
    memory: description.tau_m.length,
  };
}

async function loadNeuron(provider, sizes) {
  const neuron = await Neuron.load(await loadRuntime(provider), provider, sizes);
  await neuron.step(); // the first one also prepares the model
  neuron.restart();
  return neuron;
}
