// How many steps are due in a frame, and how fast the page is.

import { MOST_STEPS } from "./record.js"; // also the longest pause, in ms, that is made up for

const FRAME_MS = 1000 / 60;
const MEASURED_MS = 1000;

export class Clock {
  constructor() {
    this.speed = 1; // of real time
    this.restart();
  }

  /** Forget the time that passed, as after a pause. */
  restart() {
    this.owed = 0; // ms of the neuron's time
    this.frameMs = FRAME_MS;
    this.last = Number.NaN;
    this.#measureFrom(Number.NaN);
  }

  #measureFrom(now) {
    this.since = now;
    this.frames = this.steps = this.busy = this.work = 0;
  }

  /** A frame begins. */
  tick(now) {
    const passed = Number.isNaN(this.last) ? 0 : now - this.last;
    this.last = now;
    this.frameMs = Math.max(passed, FRAME_MS);
    this.owed = Math.min(this.owed + passed * this.speed, MOST_STEPS);
    this.frames += 1;
  }

  /** Whole steps that are due; what is not done of them is lost, not put off. */
  take() {
    const steps = Math.floor(this.owed);
    this.owed -= steps;
    return steps;
  }

  /** Steps were done, in `busy` ms. */
  did({ steps, busy }) {
    this.steps += steps;
    this.busy += busy;
  }

  /**
   * Once a second what is worth telling, else null: frames a second, ms of the page's work a frame, ms a step, share of
   * real time.
   */
  measure(now) {
    if (Number.isNaN(this.since)) this.#measureFrom(now);
    const passed = now - this.since;
    if (passed < MEASURED_MS || this.steps === 0) return null;
    const { frames, steps, busy, work } = this;
    this.#measureFrom(now);
    return { frames: (1000 * frames) / passed, work: work / frames, step: busy / steps, realTime: steps / passed };
  }
}
