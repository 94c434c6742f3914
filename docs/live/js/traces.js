// Somatic voltage and spike probability of the last seconds, a value a millisecond. What was drawn moves to the left,
// and only the columns of pixels that are new are drawn.

import { blank, Surface } from "./canvas.js";

const SHOWN_MS = 2000;
const VOLTAGE = { low: -84, high: -54, marks: [-80, -70, -60], spikesTo: -57 };
const PROBABILITY_MARKS = [0, 0.1, 0.5, 1];
const MARGIN = { left: 38, right: 8, top: 8, bottom: 18, between: 16 };
const VOLTAGE_SHARE = 0.6;
const THICK = 1.4; // CSS pixels of a curve

export class Traces {
  #changed = -1; // of the theme
  #plot; // see plotIn
  #drawn = null; // columns of pixels that are drawn, counted from the first step; null where all are to be

  constructor(canvas, theme) {
    this.surface = new Surface(canvas);
    this.theme = theme;
    this.voltages = new Float32Array(SHOWN_MS); // by time, round and round
    this.probabilities = new Float32Array(SHOWN_MS);
    this.spikes = new Uint8Array(SHOWN_MS);
    this.clear();
  }

  clear() {
    this.time = 0; // steps so far
    this.numSpikes = 0; // in what is shown
    this.spikes.fill(0);
    this.soma = Number.NaN; // mV, the last
    this.probability = 0;
    this.#drawn = null;
  }

  /** @param record of some steps */
  push({ steps, soma, probability, fired }) {
    for (let step = 0; step < steps; step += 1) {
      const i = this.time % SHOWN_MS;
      this.numSpikes += fired[step] - this.spikes[i];
      this.voltages[i] = this.soma = soma[step];
      this.probabilities[i] = this.probability = probability[step];
      this.spikes[i] = fired[step];
      this.time += 1;
    }
  }

  /** Spikes a second over what is shown. */
  get rate() {
    return this.time ? (1000 * this.numSpikes) / Math.min(this.time, SHOWN_MS) : 0;
  }

  /** Follow size and theme; whether all has to be drawn again. */
  fit() {
    const resized = this.surface.fit();
    if (!resized && this.#changed === this.theme.changed) return false;
    this.#changed = this.theme.changed;
    this.#plot = plotIn(this.surface);
    this.#drawn = null;
    this.#drawLabels();
    return true;
  }

  draw() {
    const { left, columns, rows } = this.#plot;
    const { canvas, context } = this.surface;
    const end = Math.floor((this.time * columns) / SHOWN_MS); // of the columns that are whole
    const fresh = this.#drawn === null ? columns : Math.min(end - this.#drawn, columns);
    if (fresh === 0) return;
    this.#drawn = end;
    const still = columns - fresh;
    context.save();
    context.resetTransform();
    if (still > 0) context.drawImage(canvas, left + fresh, 0, still, rows, left, 0, still, rows);
    context.beginPath();
    context.rect(left + still, 0, fresh, rows);
    context.clip();
    this.#drawGround(context, left + still, fresh);
    const first = end - fresh - 2; // whose line reaches into the fresh columns
    const from = Math.max(Math.floor((first * SHOWN_MS) / columns), this.time - SHOWN_MS, 0);
    this.#drawCurves(context, from, (time) => left + columns - end + (time * columns) / SHOWN_MS);
    context.restore();
  }

  #drawGround(context, left, width) {
    const { rows, marked } = this.#plot;
    const { paper, line } = this.theme.colours;
    context.fillStyle = paper;
    context.fillRect(left, 0, width, rows);
    context.fillStyle = line;
    for (const y of marked) context.fillRect(left, Math.floor(y), width, Math.round(this.surface.ratio));
  }

  /** Both curves and the spikes from a time to now. */
  #drawCurves(context, from, across) {
    const { voltage, probability } = this.#plot;
    const { ink, accent } = this.theme.colours;
    context.lineJoin = "round";
    context.lineWidth = THICK * this.surface.ratio;
    context.strokeStyle = ink;
    this.#curve(context, this.voltages, from, across, voltage);
    context.strokeStyle = accent;
    this.#curve(context, this.probabilities, from, across, probability);
    context.beginPath();
    for (let time = from; time < this.time; time += 1) {
      if (!this.spikes[time % SHOWN_MS]) continue;
      context.moveTo(across(time), voltage(VOLTAGE.high));
      context.lineTo(across(time), voltage(VOLTAGE.spikesTo));
    }
    context.stroke();
  }

  #curve(context, values, from, across, y) {
    context.beginPath();
    for (let time = from; time < this.time; time += 1) context.lineTo(across(time), y(values[time % SHOWN_MS]));
    context.stroke();
  }

  /** The words around the plot. */
  #drawLabels() {
    const { context, width, height, ratio } = this.surface;
    const { paper, quiet } = this.theme.colours;
    const { voltage, probability } = this.#plot;
    this.surface.scale();
    blank(context, width, height, paper);
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = quiet;
    context.textAlign = "right";
    context.textBaseline = "middle";
    const label = (mark, y) => context.fillText(String(mark).replace("-", "−"), MARGIN.left - 6, y / ratio);
    for (const mark of VOLTAGE.marks) label(mark, voltage(mark));
    for (const mark of PROBABILITY_MARKS) label(mark, probability(mark));
    context.textBaseline = "alphabetic";
    context.fillText("now", width - MARGIN.right, height - 4);
    context.textAlign = "left";
    context.fillText("−2 s", MARGIN.left, height - 4);
  }
}

/** The part that moves, from the canvas's top and in its own pixels, with the heights of values in it. */
function plotIn({ width, height, ratio }) {
  const inner = height - MARGIN.top - MARGIN.bottom - MARGIN.between;
  const foot = MARGIN.top + VOLTAGE_SHARE * inner; // of the voltage
  const voltage = heights(VOLTAGE.low, VOLTAGE.high, ratio * foot, ratio * MARGIN.top);
  const linear = heights(0, 1, ratio * (height - MARGIN.bottom), ratio * (foot + MARGIN.between));
  const probability = (value) => linear(Math.sqrt(value)); // small ones are the common ones
  return {
    left: Math.round(ratio * MARGIN.left),
    columns: Math.max(Math.round(ratio * (width - MARGIN.left - MARGIN.right)), 1),
    rows: Math.max(Math.ceil(ratio * (height - MARGIN.bottom + 2)), 1),
    marked: [...VOLTAGE.marks.map(voltage), ...PROBABILITY_MARKS.map(probability)],
    voltage,
    probability,
  };
}

function heights(low, high, foot, top) {
  return (value) => foot + ((top - foot) * (Math.min(Math.max(value, low), high) - low)) / (high - low);
}
