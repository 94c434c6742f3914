// A canvas that is as sharp as the screen.

/** Fit the canvas to its box; {context, width, height} in CSS pixels, and whether its size changed. */
export function fitted(canvas) {
  const box = canvas.getBoundingClientRect();
  const ratio = Math.min(globalThis.devicePixelRatio || 1, 2); // beyond it nobody sees the difference, phones feel it
  const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  const changed = canvas.width !== width || canvas.height !== height;
  if (changed) [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width: box.width, height: box.height, ratio, changed };
}

export function polyline(context, points) {
  points.forEach(({ x, y }, i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
}
