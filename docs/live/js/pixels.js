// Shapes as lists of the pixels that they cover: a frame mixes colours into pixels, and draws no paths.

export class Shapes {
  #covered; // of 255, by pixel, in the shape in the making
  #touched = [];
  #pixels = [];
  #covers = [];
  #starts = [0];

  constructor(width, height) {
    [this.width, this.height] = [width, height];
    this.#covered = new Uint8Array(width * height);
  }

  /** Add a disc to the shape in the making. */
  disc(x, y, radius) {
    const [left, right] = [Math.max(Math.floor(x - radius), 0), Math.min(Math.ceil(x + radius), this.width - 1)];
    const [top, foot] = [Math.max(Math.floor(y - radius), 0), Math.min(Math.ceil(y + radius), this.height - 1)];
    for (let row = top; row <= foot; row += 1) {
      for (let column = left; column <= right; column += 1) {
        const inside = radius + 0.5 - Math.sqrt((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2);
        const cover = Math.round(255 * Math.min(Math.max(inside, 0), 1));
        const pixel = row * this.width + column;
        if (cover <= this.#covered[pixel]) continue;
        if (this.#covered[pixel] === 0) this.#touched.push(pixel);
        this.#covered[pixel] = cover;
      }
    }
  }

  /** Add a line of points to the shape in the making, as discs that are closer together than they are wide. */
  line(points, radius) {
    for (let i = 1; i < points.length; i += 1) {
      const [from, to] = [points[i - 1], points[i]];
      const discs = Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / (radius / 2));
      for (let k = 0; k <= discs; k += 1) {
        this.disc(from.x + ((to.x - from.x) * k) / discs, from.y + ((to.y - from.y) * k) / discs, radius);
      }
    }
  }

  /** The shape is whole, the next one begins. They are numbered from 0. */
  close() {
    for (const pixel of this.#touched) {
      this.#pixels.push(pixel);
      this.#covers.push(this.#covered[pixel]);
      this.#covered[pixel] = 0;
    }
    this.#touched.length = 0;
    this.#starts.push(this.#pixels.length);
  }

  /** All shapes are there. */
  seal() {
    this.pixels = Uint32Array.from(this.#pixels);
    this.covers = Uint8Array.from(this.#covers);
    this.starts = Uint32Array.from(this.#starts);
    this.#pixels = this.#covers = this.#covered = null;
    return this;
  }

  get count() {
    return this.starts.length - 1;
  }

  /** Mix a colour [red, green, blue] into a shape, `share` (0 to 1) of it where the shape covers the pixel. */
  paint(data, shape, colour, share) {
    const { pixels, covers } = this;
    const [red, green, blue] = [colour[0], colour[1], colour[2]];
    const weight = Math.round(257 * share); // times 255 of a cover: of 65536
    const end = this.starts[shape + 1];
    for (let i = this.starts[shape]; i < end; i += 1) {
      const at = 4 * pixels[i];
      const part = weight * covers[i];
      data[at] += ((red - data[at]) * part) >> 16;
      data[at + 1] += ((green - data[at + 1]) * part) >> 16;
      data[at + 2] += ((blue - data[at + 2]) * part) >> 16;
    }
  }
}
