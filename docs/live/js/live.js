// What a visitor can do to the neuron, and what happens in a frame of the page.

import { Clock } from "./clock.js";
import { announce, showNumbers, showSpeed, showState } from "./controls.js";
import { Memory } from "./memory.js";
import { Picture } from "./picture.js";
import { Record } from "./record.js";
import { NAMES } from "./runtime.js";
import { Traces } from "./traces.js";

const CALM_MS = 250; // between two drawings where the visitor wants little motion
const WORDS_MS = 100; // between two changes of the numbers
const SHARE = 0.65; // of a frame's time, for steps in the page's own thread: what is left draws
const SHARE_OF_OWN = 0.9; // in a thread of its own
const FIRST_CHOSEN = 12;

export class Live {
  #spare; // the record that the next steps are written to
  #advancing = false;
  #restarts = 0;
  #drawn = -Infinity;
  #written = -Infinity;

  /**
   * @param life in this thread or another
   * @param canvases {picture, traces, memory}
   */
  constructor(life, provider, description, layout, theme, canvases) {
    Object.assign(this, { life, provider, description, layout, theme });
    this.running = false;
    this.chosen = { branch: FIRST_CHOSEN, synapse: null }; // the synapse as its input
    this.settings = {
      rates: { excitatory: 14, inhibitory: 8 }, // a second, of each synapse
      pattern: "steady",
      branch: FIRST_CHOSEN, // that volleys arrive at
      stretchSynapse: 0, // logarithm of a factor on tau_s
      stretchMemory: 0, // on each tau_m
      cut: new Float32Array(layout.branches.length), // 1 where the memory does not read the branch
    };
    life.change(this.settings);
    this.clock = new Clock();
    this.picture = new Picture(canvases.picture, layout, theme);
    this.traces = new Traces(canvases.traces, theme);
    this.memory = new Memory(canvases.memory, theme, description.tau_m, description.largest_memory);
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    this.record = new Record(life.sizes).clear(); // what is shown
    this.#spare = new Record(life.sizes);
    this.changed = true; // since it was drawn
  }

  change(settings) {
    Object.assign(this.settings, settings);
    this.life.change(settings);
    this.changed = true;
  }

  choose(branch, synapse = null) {
    const moved = branch !== this.chosen.branch;
    Object.assign(this.chosen, { branch, synapse });
    this.change({ branch });
    showState(this);
    if (synapse !== null) {
      const kind = this.layout.excitatory[synapse] ? "Excitatory" : "Inhibitory";
      announce(`${kind} synapse ${synapse + 1}, branch ${branch + 1}`);
    } else if (moved) {
      const state = this.settings.cut[branch] ? "cut" : "whole";
      announce(`Branch ${branch + 1}, reads ${this.layout.branches[branch].length} synapses, ${state}`);
    }
  }

  press(input) {
    this.life.press(input);
    if (this.running) return; // the next steps show it
    this.record.age[input] = 0; // while the neuron pauses it waits there
    this.changed = true;
  }

  pressBranch() {
    this.life.pressBranch(this.chosen.branch);
    announce(`Spikes at branch ${this.chosen.branch + 1}`);
  }

  /** Cut the chosen branch, or join it again. */
  cut() {
    const { branch } = this.chosen;
    const { cut } = this.settings;
    cut[branch] = 1 - cut[branch];
    this.change({ cut });
    showState(this);
    announce(`Branch ${branch + 1} ${cut[branch] ? "cut" : "joined"}`);
  }

  joinAll() {
    this.change({ cut: this.settings.cut.fill(0) });
    showState(this);
    announce("All branches joined");
  }

  restart() {
    this.life.restart();
    this.#restarts += 1; // steps that are on their way belong to the state before
    this.record.clear();
    this.traces.clear();
    this.changed = true;
    announce("State set to zero");
  }

  run(on) {
    this.running = on;
    this.clock.restart();
    showState(this);
  }

  /** Go on with a neuron that another provider computes. */
  async exchange(provider) {
    await this.life.exchange(provider);
    this.provider = provider;
  }

  /** Throws what stopped the neuron, if something did. */
  frame(now) {
    const start = performance.now();
    if (this.stopped) throw this.stopped;
    if (this.running) {
      this.clock.tick(now);
      if (!this.#advancing) this.#advance();
      const measured = this.clock.measure(now);
      if (measured) showSpeed(measured, NAMES[this.provider], this.life.thread);
    }
    this.#draw(now);
    this.clock.work += performance.now() - start;
  }

  /** Ask for the steps that are due; they are drawn in the frame after they came. */
  async #advance() {
    const steps = this.clock.take();
    if (steps === 0) return;
    this.#advancing = true;
    const restarts = this.#restarts;
    const share = this.life.remote ? SHARE_OF_OWN : SHARE;
    try {
      const record = await this.life.advance(steps, share * this.clock.frameMs, this.#spare);
      this.#spare = record;
      if (restarts === this.#restarts) this.#take(record);
    } catch (error) {
      this.stopped = error;
    }
    this.#advancing = false;
  }

  #take(record) {
    [this.record, this.#spare] = [record, this.record];
    this.clock.did(record);
    this.traces.push(record);
    this.changed = true;
  }

  #draw(now) {
    const { record, settings, picture, traces, memory } = this;
    const moved = [picture, traces, memory].map((part) => part.fit()).includes(true);
    const calm = this.calm.matches;
    if (!moved && (!this.changed || (calm && now - this.#drawn < CALM_MS))) return;
    this.changed = false;
    this.#drawn = now;
    picture.draw(record, traces.soma, settings.cut, this.chosen, calm);
    traces.draw();
    memory.draw(record.memory, settings.stretchMemory);
    if (now - this.#written < WORDS_MS && this.running) return;
    this.#written = now;
    showNumbers(traces);
  }
}
