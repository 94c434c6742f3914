// Somatic voltage and spike probability of the last seconds, a value a millisecond.

import { blank, fitted } from "./canvas.js";

const SHOWN_MS = 2000;
const VOLTAGE = { low: -84, high: -54, marks: [-80, -70, -60] };
const PROBABILITY_MARKS = [0, 0.1, 0.5, 1];
const MARGIN = { left: 38, right: 8, top: 8, bottom: 18, between: 16 };
const VOLTAGE_SHARE = 0.6;

export class Traces {
  constructor(canvas, theme) {
    this.canvas = canvas;
    this.theme = theme;
    this.clear();
  }

  clear() {
    this.soma = new Float32Array(SHOWN_MS).fill(Number.NaN);
    this.probability = new Float32Array(SHOWN_MS).fill(Number.NaN);
    this.spikes = new Uint8Array(SHOWN_MS);
    this.time = 0; // steps so far
  }

  push(soma, probability, spike) {
    const i = this.time % SHOWN_MS;
    [this.soma[i], this.probability[i], this.spikes[i]] = [soma, probability, spike ? 1 : 0];
    this.time += 1;
  }

  /** Spikes a second over what is shown. */
  get rate() {
    const steps = Math.min(this.time, SHOWN_MS);
    return steps ? (1000 * this.spikes.reduce((sum, spike) => sum + spike, 0)) / steps : 0;
  }

  draw() {
    const { context, width, height } = fitted(this.canvas);
    const { paper, ink, accent } = this.theme.colours;
    const [left, right] = [MARGIN.left, width - MARGIN.right];
    const inner = height - MARGIN.top - MARGIN.bottom - MARGIN.between;
    const foot = MARGIN.top + VOLTAGE_SHARE * inner; // of the voltage
    const ofVoltage = scale(VOLTAGE.low, VOLTAGE.high, foot, MARGIN.top);
    const linear = scale(0, 1, height - MARGIN.bottom, foot + MARGIN.between);
    const ofProbability = (probability) => linear(Math.sqrt(probability)); // small ones are the common ones
    const across = (i) => left + ((right - left) * i) / (SHOWN_MS - 1);
    blank(context, width, height, paper);
    this.#axis(context, VOLTAGE.marks, ofVoltage, left, right);
    this.#axis(context, PROBABILITY_MARKS, ofProbability, left, right);
    context.textBaseline = "alphabetic";
    context.fillText("now", right, height - 4);
    context.textAlign = "left";
    context.fillText("−2 s", left, height - 4);
    context.lineJoin = "round";
    context.lineWidth = 1.4;
    context.strokeStyle = ink;
    this.#curve(context, this.soma, across, ofVoltage);
    context.strokeStyle = accent;
    this.#curve(context, this.probability, across, ofProbability);
    for (let i = 0; i < SHOWN_MS; i += 1) {
      if (!this.spikes[(this.time + i) % SHOWN_MS]) continue;
      stroke(context, [[across(i), MARGIN.top], [across(i), ofVoltage(-57)]]);
    }
  }

  /** Lines at some values, with the values at their left. */
  #axis(context, marks, y, left, right) {
    const { quiet, line } = this.theme.colours;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    context.textAlign = "right";
    context.lineWidth = 1;
    context.strokeStyle = line;
    context.fillStyle = quiet;
    for (const mark of marks) {
      stroke(context, [[left, y(mark)], [right, y(mark)]]);
      context.fillText(String(mark).replace("-", "−"), left - 6, y(mark));
    }
  }

  #curve(context, values, across, y) {
    context.beginPath();
    let drawing = false;
    for (let i = 0; i < SHOWN_MS; i += 1) {
      const value = values[(this.time + i) % SHOWN_MS]; // the oldest first
      if (Number.isNaN(value)) continue;
      if (drawing) context.lineTo(across(i), y(value));
      else context.moveTo(across(i), y(value));
      drawing = true;
    }
    context.stroke();
  }
}

function scale(low, high, from, to) {
  return (value) => from + ((to - from) * (Math.min(Math.max(value, low), high) - low)) / (high - low);
}

function stroke(context, points) {
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
}
