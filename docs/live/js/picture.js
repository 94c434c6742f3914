// The dendrite: branches tinted by their traces, synapses that light up as spikes arrive, the soma by its voltage.

import { blank, polyline, Surface } from "./canvas.js";
import { drawDendrite } from "./dendrite.js";
import { Shapes } from "./pixels.js";

const EXTENT = 1000; // side of the square that the dendrite is drawn in
const GLOW_MS = 38; // that a synapse's light fades with
const GLOW = Float32Array.from({ length: 256 }, (_, age) => (age < 3 * GLOW_MS ? Math.exp(-age / GLOW_MS) : 0));
const FIRED_MS = 220;
const DOT = 2.2; // radius of a synapse
const LIT = 1.6; // as large where it is lit
const STRONG_TRACE = 3; // a branch trace that is drawn in full colour
const REST_MV = -76;
const TOP_MV = -55; // where the training data cut spikes off

export class Picture {
  #changed = -1; // of the theme
  #still; // pixels of what does not move, and what it shows
  #stillOf = { chosen: -1, cut: "" };

  constructor(canvas, layout, theme) {
    this.surface = new Surface(canvas);
    this.canvas = canvas;
    this.layout = layout;
    this.theme = theme;
    this.dendrite = drawDendrite(layout);
  }

  /** Inputs whose synapses lie within `radius` CSS pixels of a point of the page, nearest first. */
  near(clientX, clientY, radius) {
    const box = this.canvas.getBoundingClientRect();
    const { scale, left, top } = frameIn(box.width, box.height);
    const x = (clientX - box.left - left) / scale;
    const y = (clientY - box.top - top) / scale;
    return this.dendrite.synapses
      .map((synapse, input) => ({ input, distance: Math.hypot(synapse.x - x, synapse.y - y) * scale }))
      .filter(({ distance }) => distance <= radius)
      .sort((a, b) => a.distance - b.distance)
      .map(({ input }) => input);
  }

  /** Follow size and theme; whether all has to be drawn again. */
  fit() {
    const resized = this.surface.fit();
    if (!resized && this.#changed === this.theme.changed) return false;
    this.#changed = this.theme.changed;
    this.#still = null;
    if (!resized && this.shapes) return true;
    const { canvas } = this;
    const frame = frameIn(canvas.width, canvas.height);
    this.frame = frame; // of the square, in the canvas's own pixels
    this.shapes = shapesOf(this.dendrite, canvas.width, canvas.height, frame);
    this.image = new ImageData(canvas.width, canvas.height);
    return true;
  }

  /**
   * @param record with traces of the branches, ages of the spikes and time since the neuron fired
   * @param soma in mV
   * @param cut 1 where a branch is
   * @param chosen {branch, synapse: an input or null}
   */
  draw(record, soma, cut, chosen, calm) {
    this.#drawStill(cut, chosen.branch);
    const { data } = this.image;
    data.set(this.#still);
    this.#mixTraces(data, record.branches, cut);
    this.#mixGlow(data, record.age);
    const level = (soma - REST_MV) / (TOP_MV - REST_MV);
    this.shapes.paint(data, this.shapes.count - 1, this.theme.rgb.accent, Math.min(Math.max(level || 0, 0), 1));
    const { context } = this.surface;
    context.putImageData(this.image, 0, 0);
    const fired = Math.exp(-record.sinceFired / FIRED_MS);
    if (fired > 0.02) this.#drawFired(context, fired, calm);
    if (chosen.synapse !== null) this.#drawRing(context, chosen.synapse);
  }

  #drawStill(cut, chosen) {
    const of = cut.join();
    if (this.#still && of === this.#stillOf.cut && chosen === this.#stillOf.chosen) return;
    this.#stillOf = { cut: of, chosen };
    const { width, height } = this.canvas;
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
    blank(context, width, height, this.theme.colours.paper);
    this.#scale(context);
    this.#strokeTree(context, cut, chosen);
    const reads = new Set(this.layout.branches[chosen]);
    const { excitatory, inhibitory } = this.theme.colours;
    const radius = Math.max(DOT, (0.9 * this.surface.ratio) / this.frame.scale);
    this.dendrite.synapses.forEach(({ x, y }, input) => {
      context.fillStyle = this.layout.excitatory[input] ? excitatory : inhibitory;
      context.globalAlpha = reads.has(input) ? 0.75 : 0.25;
      dot(context, x, y, radius);
    });
    context.globalAlpha = 1;
    context.fillStyle = this.theme.colours.line;
    dot(context, this.dendrite.soma.x, this.dendrite.soma.y, 30);
    this.#still = context.getImageData(0, 0, width, height).data;
  }

  #strokeTree(context, cut, chosen) {
    const { line, quiet, accent, paper } = this.theme.colours;
    const { branches, trunk } = this.dendrite;
    context.lineCap = context.lineJoin = "round";
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
  }

  #mixTraces(data, traces, cut) {
    const { excitatory, inhibitory } = this.theme.rgb;
    for (let branch = 0; branch < traces.length; branch += 1) {
      const trace = traces[branch];
      const share = Math.min(Math.abs(trace) / STRONG_TRACE, 1) * (cut[branch] ? 0.25 : 0.8);
      this.shapes.paint(data, branch, trace > 0 ? excitatory : inhibitory, share);
    }
  }

  #mixGlow(data, age) {
    const { excitatory, inhibitory } = this.theme.rgb;
    const first = this.dendrite.branches.length;
    for (let input = 0; input < age.length; input += 1) {
      const glow = GLOW[age[input]];
      if (glow === 0) continue;
      this.shapes.paint(data, first + input, this.layout.excitatory[input] ? excitatory : inhibitory, glow);
    }
  }

  #drawFired(context, fired, calm) {
    context.save();
    this.#scale(context);
    context.globalAlpha = fired;
    const { x, y } = this.dendrite.soma;
    circle(context, x, y, calm ? 38 : 38 + 40 * (1 - fired), 5, this.theme.colours.accent);
    context.restore();
  }

  #drawRing(context, input) {
    context.save();
    this.#scale(context);
    const { x, y } = this.dendrite.synapses[input];
    const pixel = this.surface.ratio / this.frame.scale;
    circle(context, x, y, 7 * pixel, 1.5 * pixel, this.theme.colours.ink);
    context.restore();
  }

  #scale(context) {
    const { scale, left, top } = this.frame;
    context.setTransform(scale, 0, 0, scale, left, top);
  }
}

/** Where the square lies in a box. */
function frameIn(width, height) {
  const scale = Math.min(width, height) / EXTENT;
  return { scale, left: (width - EXTENT * scale) / 2, top: (height - EXTENT * scale) / 2 };
}

/** What changes from frame to frame: the branches, then the synapses by input, then the soma. */
function shapesOf({ branches, synapses, soma }, width, height, { scale, left, top }) {
  const shapes = new Shapes(width, height);
  const placed = ({ x, y }) => ({ x: left + scale * x, y: top + scale * y });
  for (const { line } of branches) {
    shapes.line(line.map(placed), 1.5 * scale);
    shapes.close();
  }
  for (const point of [...synapses, soma]) {
    const { x, y } = placed(point);
    shapes.disc(x, y, scale * (point === soma ? 26 : LIT * DOT));
    shapes.close();
  }
  return shapes.seal();
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

function dot(context, x, y, radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}

function circle(context, x, y, radius, width, colour) {
  context.lineWidth = width;
  context.strokeStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.stroke();
}
