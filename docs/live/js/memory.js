// The memory units on an axis of their time constants: a stalk each, as high as its memory, coloured by how slow it is.

import { blank, Surface } from "./canvas.js";

const AXIS = { low: 0.1, high: 2000, marks: [[0.1, "0.1"], [1, "1"], [10, "10"], [100, "100 ms"], [1000, "1 s"]] };
const MARGIN = { left: 38, right: 14, top: 8, bottom: 20 };
const DOT = 4;

export class Memory {
  #changed = -1; // of the theme
  #stretch = Number.NaN; // that the places and colours are for

  /** @param tau time constants as published, ms; @param largest value that the memory cannot pass */
  constructor(canvas, theme, tau, largest) {
    Object.assign(this, { theme, tau, largest });
    this.surface = new Surface(canvas);
    this.places = new Float32Array(tau.length);
    this.colours = new Array(tau.length);
  }

  /** Follow size and theme; whether all has to be drawn again. */
  fit() {
    const resized = this.surface.fit();
    if (!resized && this.#changed === this.theme.changed) return false;
    this.#changed = this.theme.changed;
    this.#stretch = Number.NaN;
    this.#drawLabels();
    return true;
  }

  /** @param stretch logarithm of a factor on all time constants */
  draw(memory, stretch) {
    this.#place(stretch);
    const { context, width, height } = this.surface;
    const bottom = height - MARGIN.bottom;
    const middle = (MARGIN.top + bottom) / 2;
    const half = (bottom - MARGIN.top) / 2 - DOT;
    blank(context, width, bottom + 2, this.theme.colours.paper);
    context.fillStyle = this.theme.colours.line;
    context.fillRect(MARGIN.left, middle - 0.5, width - MARGIN.left - MARGIN.right, 1);
    for (let i = 0; i < memory.length; i += 1) {
      const x = this.places[i];
      const y = middle - (half * memory[i]) / this.largest;
      context.fillStyle = this.colours[i];
      context.fillRect(x - 1, middle, 2, y - middle);
      context.beginPath();
      context.arc(x, y, DOT, 0, 2 * Math.PI);
      context.fill();
    }
  }

  #place(stretch) {
    if (stretch === this.#stretch) return;
    this.#stretch = stretch;
    this.tau.forEach((published, i) => {
      const tau = published * Math.exp(stretch);
      this.places[i] = this.#across(tau);
      this.colours[i] = this.theme.ofTimeConstant(tau);
    });
  }

  #across(tau) {
    const [left, right] = [MARGIN.left, this.surface.width - MARGIN.right];
    return left + ((right - left) * Math.log(tau / AXIS.low)) / Math.log(AXIS.high / AXIS.low);
  }

  #drawLabels() {
    const { context, width, height } = this.surface;
    this.surface.scale();
    blank(context, width, height, this.theme.colours.paper);
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.fillStyle = this.theme.colours.quiet;
    for (const [tau, words] of AXIS.marks) context.fillText(words, this.#across(tau), height - 5);
  }
}
