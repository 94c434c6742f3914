// The picture under a pointer and under the keys.

const RADIUS = { mouse: 7, pen: 9, touch: 15 }; // CSS pixels around the pointer

/** Spikes where a pointer presses or is drawn across the picture; the branch under it is chosen. */
export function pressWithPointer(live) {
  const { canvas, dendrite } = live.picture;
  let under = null; // synapses under the pointer, null while it is up
  const touch = (event) => {
    const inputs = live.picture.near(event.clientX, event.clientY, RADIUS[event.pointerType] ?? RADIUS.mouse);
    for (const input of inputs) if (!under.has(input)) live.press(input);
    if (inputs.length) live.choose(dendrite.synapses[inputs[0]].branch);
    under = new Set(inputs);
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    under = new Set();
    touch(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (under) touch(event);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
    canvas.addEventListener(end, () => {
      under = null;
    });
  }
}

/** Arrows choose a branch and a synapse on it, Enter and Space fire them, X cuts. Only while the picture has focus. */
export function pressWithKeys(live) {
  const { layout, chosen } = live;
  const numBranch = layout.branches.length;
  const chooseSynapse = (by) => {
    const own = layout.own[chosen.branch];
    const at = own.indexOf(chosen.synapse);
    const next = at < 0 ? (by > 0 ? 0 : own.length - 1) : (at + by + own.length) % own.length;
    live.choose(chosen.branch, own[next]);
  };
  const actions = {
    ArrowRight: () => live.choose((chosen.branch + 1) % numBranch),
    ArrowLeft: () => live.choose((chosen.branch + numBranch - 1) % numBranch),
    ArrowUp: () => chooseSynapse(1),
    ArrowDown: () => chooseSynapse(-1),
    Enter: () => live.pressBranch(),
    " ": () => live.press(chosen.synapse ?? layout.own[chosen.branch][0]),
    x: () => live.cut(),
  };
  live.picture.canvas.addEventListener("keydown", (event) => {
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
}
