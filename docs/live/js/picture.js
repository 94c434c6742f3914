// The dendrite: branches tinted by their traces, synapses that light up as spikes arrive, the soma by its voltage.

import { blank, fitted, OPAQUE, polyline } from "./canvas.js";
import { drawDendrite } from "./dendrite.js";

const EXTENT = 1000; // side of the square that the dendrite is drawn in
const GLOW_LEFT = Math.exp(-1 / 45); // of a synapse's light after a millisecond
const FIRED_LEFT = Math.exp(-1 / 220);
const LEVELS = 4; // of brightness
const DOT = 2.2; // radius of a synapse
const STRONG_TRACE = 3; // a branch trace that is drawn in full colour
const REST_MV = -76;
const TOP_MV = -55; // where the training data cut spikes off

export class Picture {
  constructor(canvas, layout, theme) {
    this.canvas = canvas;
    this.layout = layout;
    this.theme = theme;
    this.dendrite = drawDendrite(layout);
    this.glow = new Float32Array(layout.excitatory.length); // 1 when a spike arrives
    this.fired = 0; // 1 when the neuron fires
    this.still = document.createElement("canvas"); // what does not move
    this.stillOf = "";
  }

  /** A millisecond passes: lights fade in the neuron's time, and synapses at which spikes arrive light up. */
  pass(input, fired) {
    for (let i = 0; i < input.length; i += 1) this.glow[i] = input[i] === 0 ? GLOW_LEFT * this.glow[i] : 1;
    this.fired = fired ? 1 : FIRED_LEFT * this.fired;
  }

  /** Inputs whose synapses lie within `radius` CSS pixels of a point of the page, nearest first. */
  near(clientX, clientY, radius) {
    const box = this.canvas.getBoundingClientRect();
    const { scale, left, top } = this.#frame(box.width, box.height);
    const x = (clientX - box.left - left) / scale;
    const y = (clientY - box.top - top) / scale;
    return this.dendrite.synapses
      .map((synapse, input) => ({ input, distance: Math.hypot(synapse.x - x, synapse.y - y) * scale }))
      .filter(({ distance }) => distance <= radius)
      .sort((a, b) => a.distance - b.distance)
      .map(({ input }) => input);
  }

  /** @param neuron with its traces, soma and cut branches; @param chosen {branch, synapse: an input or null} */
  draw(neuron, chosen, calm) {
    const { context, width, height, ratio } = fitted(this.canvas);
    const frame = this.#frame(width, height);
    this.#drawStill(neuron.cut, chosen.branch, width, height, ratio, frame);
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.drawImage(this.still, 0, 0);
    context.restore();
    context.save();
    context.translate(frame.left, frame.top);
    context.scale(frame.scale, frame.scale);
    this.#drawTraces(context, neuron);
    this.#drawGlow(context, frame.scale);
    this.#drawSoma(context, neuron, calm);
    if (chosen.synapse !== null) this.#drawRing(context, chosen.synapse, frame.scale);
    context.restore();
  }

  #frame(width, height) {
    const scale = Math.min(width, height) / EXTENT;
    return { scale, left: (width - EXTENT * scale) / 2, top: (height - EXTENT * scale) / 2 };
  }

  #drawStill(cut, chosen, width, height, ratio, frame) {
    const of = [cut.join(), chosen, width, height, ratio, this.theme.changed].join("|");
    if (of === this.stillOf) return;
    this.stillOf = of;
    [this.still.width, this.still.height] = [this.canvas.width, this.canvas.height];
    const context = this.still.getContext("2d", OPAQUE);
    blank(context, this.still.width, this.still.height, this.theme.colours.paper);
    context.setTransform(ratio * frame.scale, 0, 0, ratio * frame.scale, ratio * frame.left, ratio * frame.top);
    context.lineCap = context.lineJoin = "round";
    const { line, quiet, accent, paper } = this.theme.colours;
    const { branches, trunk, soma } = this.dendrite;
    context.strokeStyle = line;
    stroke(context, trunk, 9);
    for (const { stem } of branches) if (stem.length) stroke(context, stem, 5.5);
    branches.forEach(({ line: points }, branch) => {
      context.strokeStyle = branch === chosen ? accent : line;
      context.setLineDash(cut[branch] ? [3, 8] : []);
      stroke(context, points, branch === chosen ? 4.5 : 3);
      context.setLineDash([]);
      if (cut[branch]) {
        context.strokeStyle = paper; // a gap where it was cut
        stroke(context, points.slice(1, 3), 12);
        context.strokeStyle = quiet;
        crossAt(context, points[2]);
      }
    });
    const reads = new Set(this.layout.branches[chosen]);
    this.#drawSynapses(context, frame.scale, (input) => (reads.has(input) ? LEVELS - 1 : 1), false);
    context.fillStyle = line;
    context.beginPath();
    context.arc(soma.x, soma.y, 30, 0, 2 * Math.PI);
    context.fill();
  }

  #drawTraces(context, neuron) {
    const { excitatory, inhibitory } = this.theme.colours;
    context.lineCap = "round";
    this.dendrite.branches.forEach(({ line }, branch) => {
      const trace = neuron.branches[branch];
      context.globalAlpha = Math.min(Math.abs(trace) / STRONG_TRACE, 1) * (neuron.cut[branch] ? 0.25 : 0.8);
      context.strokeStyle = trace > 0 ? excitatory : inhibitory;
      stroke(context, line, 3);
    });
    context.globalAlpha = 1;
  }

  #drawGlow(context, scale) {
    this.#drawSynapses(context, scale, (input) => Math.min(Math.round(LEVELS * this.glow[input]), LEVELS), true);
  }

  /** Dots by their level, 0 for none to LEVELS; those of one colour and level are one path. */
  #drawSynapses(context, scale, levelOf, lit) {
    const { excitatory } = this.layout;
    const paths = Array.from({ length: 2 * (LEVELS + 1) }, () => null);
    const { synapses } = this.dendrite;
    for (let input = 0; input < synapses.length; input += 1) {
      const level = levelOf(input);
      if (!level) continue;
      const { x, y } = synapses[input];
      const radius = Math.max(DOT, 0.9 / scale) * (lit ? 0.8 + (0.9 * level) / LEVELS : 1);
      const path = (paths[2 * level + (excitatory[input] ? 1 : 0)] ??= new Path2D());
      path.moveTo(x + radius, y);
      path.arc(x, y, radius, 0, 2 * Math.PI);
    }
    paths.forEach((path, i) => {
      if (!path) return;
      context.globalAlpha = Math.floor(i / 2) / LEVELS;
      context.fillStyle = i % 2 ? this.theme.colours.excitatory : this.theme.colours.inhibitory;
      context.fill(path);
    });
    context.globalAlpha = 1;
  }

  #drawSoma(context, neuron, calm) {
    const { x, y } = this.dendrite.soma;
    const { accent } = this.theme.colours;
    const level = (neuron.soma - REST_MV) / (TOP_MV - REST_MV);
    context.fillStyle = context.strokeStyle = accent;
    context.globalAlpha = Math.min(Math.max(level || 0, 0), 1);
    context.beginPath();
    context.arc(x, y, 26, 0, 2 * Math.PI);
    context.fill();
    if (this.fired > 0.02) {
      context.globalAlpha = this.fired;
      context.lineWidth = 5;
      context.beginPath();
      context.arc(x, y, calm ? 38 : 38 + 40 * (1 - this.fired), 0, 2 * Math.PI);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  #drawRing(context, input, scale) {
    const { x, y } = this.dendrite.synapses[input];
    context.strokeStyle = this.theme.colours.ink;
    context.lineWidth = 1.5 / scale;
    context.beginPath();
    context.arc(x, y, 7 / scale, 0, 2 * Math.PI);
    context.stroke();
  }
}

function stroke(context, points, width) {
  context.lineWidth = width;
  context.beginPath();
  polyline(context, points);
  context.stroke();
}

function crossAt(context, { x, y }) {
  context.lineWidth = 2.5;
  context.beginPath();
  for (const side of [-1, 1]) {
    context.moveTo(x - 7, y - 7 * side);
    context.lineTo(x + 7, y + 7 * side);
  }
  context.stroke();
}
