// A canvas that is as sharp as the screen. Its size is told when it changes: asking each frame would lay the page out.

const SHARPEST = 2; // of the screen's pixels to CSS ones: beyond it nobody sees the difference, phones feel it
const MOST_PIXELS = 1e6; // of a canvas: the browser copies all of them each frame

export class Surface {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false }); // spares the browser a blending each frame
    this.#note(canvas.getBoundingClientRect());
    new ResizeObserver(([entry]) => this.#note(entry.contentRect)).observe(canvas);
  }

  #note({ width, height }) {
    [this.width, this.height] = [width, height]; // CSS pixels
  }

  /** Give the canvas the size of its box; whether it had another one, and so is empty now. */
  fit() {
    const spared = Math.sqrt(MOST_PIXELS / Math.max(this.width * this.height, 1));
    const ratio = Math.min(globalThis.devicePixelRatio || 1, SHARPEST, spared);
    const [width, height] = [this.width, this.height].map((side) => Math.max(Math.round(side * ratio), 1));
    if (this.canvas.width === width && this.canvas.height === height && this.ratio === ratio) return false;
    [this.canvas.width, this.canvas.height, this.ratio] = [width, height, ratio];
    return true;
  }

  /** Draw in CSS pixels from now on. */
  scale() {
    this.context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
  }
}

/** Paint all of it in one colour. */
export function blank(context, width, height, colour) {
  context.fillStyle = colour;
  context.fillRect(0, 0, Math.ceil(width), Math.ceil(height)); // no pixel by halves
}

export function polyline(context, points) {
  points.forEach(({ x, y }, i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
}
