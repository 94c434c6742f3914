// Somatic voltage and spike probability of the last seconds, a value a millisecond. What was drawn moves to the left, and
// only the columns of pixels that are new are painted.

import { blank, Surface } from "./canvas.js";
import { mix } from "./pixels.js";

const SHOWN_MS = 2000;
const VOLTAGE = { low: -84, high: -54, marks: [-80, -70, -60], spikesTo: -57 };
const PROBABILITY_MARKS = [0, 0.1, 0.5, 1];
const MARGIN = { left: 38, right: 8, top: 8, bottom: 18, between: 16 };
const VOLTAGE_SHARE = 0.6;
const THICK = 1.4; // CSS pixels of a curve

export class Traces {
  #changed = -1; // of the theme
  #plot; // the pixels that move, see plotIn
  #drawn = null; // the last column that is drawn, counted from the first step; null where none is

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
    const { image, x, pixels } = this.#plot;
    const { width } = image;
    const last = Math.floor((this.time * width) / SHOWN_MS) - 1;
    const fresh = this.#drawn === null ? width : Math.min(last - this.#drawn, width);
    if (fresh === 0) return;
    pixels.copyWithin(0, fresh); // the ends of the rows are painted anew
    for (let column = width - fresh; column < width; column += 1) this.#paint(column, last - width + 1 + column);
    this.#drawn = last;
    this.surface.context.putImageData(image, x, 0);
  }

  /** Paint one column of pixels: the `nth` since the first step. */
  #paint(column, nth) {
    const { image, voltage, probability, lines, thick } = this.#plot;
    const { width, height, data } = image;
    const { paper, line, ink, accent } = this.theme.rgb;
    for (let row = 0; row < height; row += 1) {
      const at = 4 * (row * width + column);
      const colour = lines[row] ? line : paper;
      [data[at], data[at + 1], data[at + 2], data[at + 3]] = [colour[0], colour[1], colour[2], 255];
    }
    const oldest = Math.max(this.time - SHOWN_MS, 0);
    const end = Math.min(Math.ceil(((nth + 1) * SHOWN_MS) / width), this.time);
    const from = Math.max(Math.ceil(((nth - 1) * SHOWN_MS) / width), oldest); // two columns: curves have a width
    if (end <= from) return;
    for (let time = from; time < end; time += 1) {
      if (!this.spikes[time % SHOWN_MS]) continue;
      const foot = Math.round(voltage(VOLTAGE.spikesTo));
      for (let row = Math.round(voltage(VOLTAGE.high)); row < foot; row += 1) mix(data, row * width + column, accent, 65535);
    }
    this.#curve(column, this.voltages, from, end, voltage, thick, ink);
    this.#curve(column, this.probabilities, from, end, probability, thick, accent);
  }

  /** What the curve covers of each pixel of the column, its steps together; then the colour. */
  #curve(column, values, from, end, y, thick, colour) {
    const { image, cover } = this.#plot;
    const share = 2 / Math.max(end - 1 - from, 1); // one of the two columns covers it
    let [top, foot] = [cover.length, 0];
    let last = y(values[from % SHOWN_MS]);
    for (let time = Math.min(from + 1, end - 1); time < end; time += 1) {
      const next = y(values[time % SHOWN_MS]);
      const [high, low] = [Math.min(last, next) - thick / 2, Math.max(last, next) + thick / 2];
      const stop = Math.min(Math.ceil(low), cover.length);
      for (let row = Math.max(Math.floor(high), 0); row < stop; row += 1) {
        cover[row] += share * (Math.min(row + 1, low) - Math.max(row, high));
      }
      top = Math.min(top, Math.max(Math.floor(high), 0));
      foot = Math.max(foot, stop);
      last = next;
    }
    for (let row = top; row < foot; row += 1) {
      mix(image.data, row * image.width + column, colour, Math.round(65535 * Math.min(cover[row], 1)));
      cover[row] = 0;
    }
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

/** Pixels between the margins from the canvas's top, with the heights of values in them. */
function plotIn({ width, height, ratio }) {
  const inner = height - MARGIN.top - MARGIN.bottom - MARGIN.between;
  const foot = MARGIN.top + VOLTAGE_SHARE * inner; // of the voltage
  const voltage = heights(VOLTAGE.low, VOLTAGE.high, ratio * foot, ratio * MARGIN.top);
  const linear = heights(0, 1, ratio * (height - MARGIN.bottom), ratio * (foot + MARGIN.between));
  const probability = (value) => linear(Math.sqrt(value)); // small ones are the common ones
  const columns = Math.max(Math.round(ratio * (width - MARGIN.left - MARGIN.right)), 1);
  const rows = Math.max(Math.ceil(ratio * (height - MARGIN.bottom + 2)), 1);
  const image = new ImageData(columns, rows);
  const lines = new Uint8Array(rows); // 1 in the rows of a marked value
  const marked = [...VOLTAGE.marks.map(voltage), ...PROBABILITY_MARKS.map(probability)];
  for (const y of marked) lines.fill(1, Math.floor(y), Math.floor(y) + Math.round(ratio));
  const pixels = new Uint32Array(image.data.buffer);
  const cover = new Float32Array(rows);
  return { image, pixels, cover, lines, voltage, probability, thick: THICK * ratio, x: Math.round(ratio * MARGIN.left) };
}

function heights(low, high, foot, top) {
  return (value) => foot + ((top - foot) * (Math.min(Math.max(value, low), high) - low)) / (high - low);
}
