// A canvas that is as sharp as the screen.

export const OPAQUE = { alpha: false }; // spares the browser a blending each frame

/** Fit the canvas to its box; {context, width, height} in CSS pixels, and `ratio` of the canvas's own to them. */
export function fitted(canvas) {
  const box = canvas.getBoundingClientRect();
  const ratio = Math.min(globalThis.devicePixelRatio || 1, 2); // beyond it nobody sees the difference, phones feel it
  const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", OPAQUE);
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width: box.width, height: box.height, ratio };
}

/** Paint all of it in one colour. */
export function blank(context, width, height, colour) {
  context.fillStyle = colour;
  context.fillRect(0, 0, width, height);
}

export function polyline(context, points) {
  points.forEach(({ x, y }, i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
}
