// The memory units on an axis of their time constants: a stalk each, as high as its memory, coloured by how slow it is.

import { blank, fitted } from "./canvas.js";

const AXIS = { low: 0.1, high: 2000, marks: [[0.1, "0.1"], [1, "1"], [10, "10"], [100, "100 ms"], [1000, "1 s"]] };
const MARGIN = { left: 38, right: 14, top: 8, bottom: 20 };
const DOT = 4;

export class Memory {
  /** @param tau time constants as published, ms; @param largest value that the memory cannot pass */
  constructor(canvas, theme, tau, largest) {
    Object.assign(this, { canvas, theme, tau, largest });
  }

  draw(neuron) {
    const { context, width, height } = fitted(this.canvas);
    const { quiet, line } = this.theme.colours;
    const [left, right, bottom] = [MARGIN.left, width - MARGIN.right, height - MARGIN.bottom];
    const middle = (MARGIN.top + bottom) / 2;
    const half = (bottom - MARGIN.top) / 2 - DOT;
    const across = (tau) => left + ((right - left) * Math.log(tau / AXIS.low)) / Math.log(AXIS.high / AXIS.low);
    blank(context, width, height, this.theme.colours.paper);
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    context.lineWidth = 1;
    context.strokeStyle = line;
    stalk(context, left, middle, right, middle);
    context.fillStyle = quiet;
    for (const [tau, words] of AXIS.marks) context.fillText(words, across(tau), height - 5);
    this.tau.forEach((published, i) => {
      const tau = published * Math.exp(neuron.stretchMemory[i]);
      const y = middle - (half * neuron.memory[i]) / this.largest;
      context.strokeStyle = context.fillStyle = this.theme.ofTimeConstant(tau);
      context.lineWidth = 2;
      stalk(context, across(tau), middle, across(tau), y);
      context.beginPath();
      context.arc(across(tau), y, DOT, 0, 2 * Math.PI);
      context.fill();
    });
  }
}

function stalk(context, fromX, fromY, toX, toY) {
  context.beginPath();
  context.moveTo(fromX, fromY);
  context.lineTo(toX, toY);
  context.stroke();
}
