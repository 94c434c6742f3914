// How many steps are due in a frame, and how fast the page is.

const LONGEST_MS = 100; // of a pause that is made up for: a hidden page does not catch up
const FRAME_MS = 1000 / 60;
const SHARE = 0.65; // of a frame's time, for steps: what is left draws
const MEASURED_MS = 1000;

export class Clock {
  constructor() {
    this.speed = 1; // of real time
    this.owed = 0; // ms of the neuron's time
    this.last = Number.NaN;
    this.measured = { since: Number.NaN, frames: 0, steps: 0, busy: 0 };
  }

  /** Run the steps that are due at `now`, as many as fit into the frame; what does not fit is lost, not put off. */
  async run(now, step) {
    const passed = Math.min(Number.isNaN(this.last) ? 0 : now - this.last, LONGEST_MS);
    this.last = now;
    this.owed += passed * this.speed;
    const start = performance.now();
    const budget = SHARE * Math.max(passed, FRAME_MS);
    let steps = 0;
    for (; this.owed >= 1; this.owed -= 1, steps += 1) {
      if (performance.now() - start > budget) {
        this.owed %= 1;
        break;
      }
      await step();
    }
    this.measured.steps += steps;
    this.measured.busy += performance.now() - start;
  }

  /** Forget the time that passed, as after a pause. */
  restart() {
    this.owed = 0;
    this.last = Number.NaN;
    this.measured = { since: Number.NaN, frames: 0, steps: 0, busy: 0 };
  }

  /** Once a second {frames a second, ms a step, share of real time}, else null. Called each frame. */
  measure(now) {
    const { since, frames, steps, busy } = this.measured;
    this.measured.frames += 1;
    if (now - since < MEASURED_MS || (steps === 0 && !Number.isNaN(since))) return null;
    this.measured = { since: now, frames: 1, steps: 0, busy: 0 };
    if (Number.isNaN(since)) return null;
    return { frames: (1000 * frames) / (now - since), step: busy / steps, realTime: steps / (now - since) };
  }
}
