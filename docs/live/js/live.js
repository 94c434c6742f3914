// The life of the neuron: what a visitor can do to it, and what happens in a frame.

import { Clock } from "./clock.js";
import { announce, showNumbers, showSpeed, showState } from "./controls.js";
import { Drive } from "./drive.js";
import { Memory } from "./memory.js";
import { Picture } from "./picture.js";
import { NAMES } from "./runtime.js";
import { Traces } from "./traces.js";

const CALM_MS = 250; // between two drawings where the visitor wants little motion
const FIRST_CHOSEN = 12;

export class Live {
  /** @param canvases {picture, traces, memory} */
  constructor(neuron, provider, description, layout, theme, canvases) {
    Object.assign(this, { neuron, provider, description, layout });
    this.running = false;
    this.chosen = { branch: FIRST_CHOSEN, synapse: null }; // the synapse as its input
    this.drive = new Drive(layout);
    this.drive.branch = FIRST_CHOSEN;
    this.clock = new Clock();
    this.picture = new Picture(canvases.picture, layout, theme);
    this.traces = new Traces(canvases.traces, theme);
    this.memory = new Memory(canvases.memory, theme, description.tau_m, description.largest_memory);
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.drawn = -Infinity;
  }

  choose(branch, synapse = null) {
    const moved = branch !== this.chosen.branch;
    Object.assign(this.chosen, { branch, synapse });
    this.drive.branch = branch;
    showState(this);
    if (synapse !== null) {
      const kind = this.layout.excitatory[synapse] ? "Excitatory" : "Inhibitory";
      announce(`${kind} synapse ${synapse + 1}, branch ${branch + 1}`);
    } else if (moved) {
      const state = this.neuron.cut[branch] ? "cut" : "whole";
      announce(`Branch ${branch + 1}, reads ${this.layout.branches[branch].length} synapses, ${state}`);
    }
  }

  press(input) {
    this.drive.press(input);
    this.picture.glow[input] = 1; // at once; while the neuron pauses it waits there
  }

  pressBranch() {
    this.drive.pressBranch(this.chosen.branch);
    announce(`Spikes at branch ${this.chosen.branch + 1}`);
  }

  /** Cut the chosen branch, or join it again. */
  cut() {
    const { branch } = this.chosen;
    this.neuron.cut[branch] = 1 - this.neuron.cut[branch];
    showState(this);
    announce(`Branch ${branch + 1} ${this.neuron.cut[branch] ? "cut" : "joined"}`);
  }

  joinAll() {
    this.neuron.cut.fill(0);
    showState(this);
    announce("All branches joined");
  }

  restart() {
    this.neuron.restart();
    this.traces.clear();
    announce("State set to zero");
  }

  run(on) {
    this.running = on;
    this.clock.restart();
    showState(this);
  }

  /** Go on with a neuron that another provider computes. */
  exchange(neuron, provider) {
    neuron.takeOver(this.neuron);
    Object.assign(this, { neuron, provider });
  }

  async step() {
    const { neuron, drive, traces, picture } = this;
    drive.fill(neuron.input, traces.time);
    await neuron.step();
    const fired = Math.random() < neuron.probability;
    picture.pass(neuron.input, fired);
    traces.push(neuron.soma, neuron.probability, fired);
  }

  async frame(now) {
    if (this.running) {
      await this.clock.run(now, () => this.step());
      const measured = this.clock.measure(now);
      if (measured) showSpeed(measured, NAMES[this.provider]);
    }
    if (this.calm.matches && now - this.drawn < CALM_MS) return;
    this.drawn = now;
    this.picture.draw(this.neuron, this.chosen, this.calm.matches);
    this.traces.draw();
    this.memory.draw(this.neuron);
    showNumbers(this.neuron, this.traces.rate);
  }
}
