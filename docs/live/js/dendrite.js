// Where the branches and their synapses are drawn, in a square of 1000. The tree is a schema of ours; the order of the
// branches along it, and which synapse belongs to which, are the neuron's.

const SOMA = { x: 500, y: 632 };
const TRUNK_TOP = { x: 494, y: 322 };
const WIDE = 1.22; // how much more it spreads to the sides than up and down
const SIDE = 5.2; // of a synapse from its branch: excitatory ones on one side, inhibitory ones on the other
const FIRST = 0.14; // where on a branch its synapses begin
const SAMPLES = 24;

/** Branches as {stem, line: points} and synapses as {x, y, branch}, by input. */
export function drawDendrite(layout) {
  const lines = [...basal(), ...oblique(), ...tuft()].slice(0, layout.branches.length);
  const synapses = new Array(layout.excitatory.length);
  layout.own.forEach((inputs, branch) => {
    inputs.forEach((input, i) => {
      const along = FIRST + ((1 - FIRST) * (i + 0.5)) / layout.perBranch;
      const { x, y, nx, ny } = at(lines[branch].line, along);
      const side = layout.excitatory[input] ? SIDE : -SIDE;
      synapses[input] = { x: x + side * nx, y: y + side * ny, branch };
    });
  });
  return { soma: SOMA, trunk: curve(SOMA, TRUNK_TOP, 10), branches: lines, synapses };
}

/** Below the soma: six stems of three. */
function basal() {
  return fan(SOMA, { stems: 6, from: 172, to: 8, stem: 92, length: 250, spread: 12, bend: 16, seed: 1 });
}

/** Twelve on both sides of the trunk, from its foot upwards. */
function oblique() {
  return Array.from({ length: 12 }, (_, i) => {
    const from = between(SOMA, TRUNK_TOP, 0.24 + (0.6 * i) / 11);
    const left = i % 2 === 0;
    const angle = (left ? 180 : 0) + (left ? 1 : -1) * (3 + 2.5 * wobble(i, 2));
    return { stem: [], line: curve(from, toward(from, angle, 318 + 30 * wobble(i, 3)), left ? 13 : -13) };
  });
}

/** Above the trunk: five stems of three. */
function tuft() {
  return fan(TRUNK_TOP, { stems: 5, from: 198, to: 342, stem: 84, length: 214, spread: 13, bend: 14, seed: 5 });
}

/** Stems around a root, each with three branches that bend away from its middle. */
function fan(root, { stems, from, to, stem, length, spread, bend, seed }) {
  const turn = Math.sign(to - from);
  return Array.from({ length: stems }, (_, s) => {
    const angle = from + ((to - from) * s) / (stems - 1);
    const fork = toward(root, angle, stem);
    return [-1, 0, 1].map((side) => {
      const end = toward(fork, angle + turn * side * spread, length + 24 * wobble(3 * s + side, seed));
      return { stem: [root, fork], line: curve(fork, end, turn * side * bend + 5 * wobble(3 * s + side, seed + 1)) };
    });
  }).flat();
}

/** Points of a curve from one point to another that leaves the straight line by `bend`. */
function curve(from, to, bend) {
  const length = Math.hypot(to.x - from.x, to.y - from.y);
  const nx = -(to.y - from.y) / length;
  const ny = (to.x - from.x) / length;
  return Array.from({ length: SAMPLES + 1 }, (_, i) => {
    const s = i / SAMPLES;
    const off = bend * Math.sin(Math.PI * s) + 0.4 * bend * Math.sin(2 * Math.PI * s);
    return { x: from.x + s * (to.x - from.x) + off * nx, y: from.y + s * (to.y - from.y) + off * ny };
  });
}

/** A point on a line of points, and the normal there. */
function at(line, share) {
  const i = Math.min(Math.floor(share * SAMPLES), SAMPLES - 1);
  const [a, b] = [line[i], line[i + 1]];
  const length = Math.hypot(b.x - a.x, b.y - a.y);
  const { x, y } = between(a, b, share * SAMPLES - i);
  return { x, y, nx: -(b.y - a.y) / length, ny: (b.x - a.x) / length };
}

function between(a, b, share) {
  return { x: a.x + share * (b.x - a.x), y: a.y + share * (b.y - a.y) };
}

function toward(from, degrees, length) {
  const angle = (degrees * Math.PI) / 180;
  return { x: from.x + WIDE * length * Math.cos(angle), y: from.y + length * Math.sin(angle) };
}

/** A number in [-1, 1] that looks drawn and is always the same. */
function wobble(i, seed) {
  const s = Math.sin(12.9898 * (i + 1) + 78.233 * seed) * 43758.5453;
  return 2 * (s - Math.floor(s)) - 1;
}
