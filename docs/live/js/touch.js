// The picture under a pointer and under the keys.

const RADIUS = { mouse: 7, pen: 9, touch: 15 }; // CSS pixels around the pointer

/** Spikes where a pointer presses or is drawn across the picture; the branch under it is chosen. */
export function pressWithPointer(picture, { press, choose }) {
  const { canvas, dendrite } = picture;
  let under = null; // synapses under the pointer, null while it is up
  const touch = (event) => {
    const inputs = picture.near(event.clientX, event.clientY, RADIUS[event.pointerType] ?? RADIUS.mouse);
    for (const input of inputs) if (!under.has(input)) press(input);
    if (inputs.length) choose(dendrite.synapses[inputs[0]].branch);
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
export function pressWithKeys(picture, layout, chosen, { press, pressBranch, choose, cut }) {
  const actions = {
    ArrowRight: () => choose((chosen.branch + 1) % layout.branches.length),
    ArrowLeft: () => choose((chosen.branch + layout.branches.length - 1) % layout.branches.length),
    ArrowUp: () => chooseSynapse(1),
    ArrowDown: () => chooseSynapse(-1),
    Enter: () => pressBranch(),
    " ": () => press(chosen.synapse ?? layout.own[chosen.branch][0]),
    x: () => cut(),
  };
  const chooseSynapse = (by) => {
    const own = layout.own[chosen.branch];
    const at = own.indexOf(chosen.synapse);
    const next = at < 0 ? (by > 0 ? 0 : own.length - 1) : (at + by + own.length) % own.length;
    choose(chosen.branch, own[next]);
  };
  picture.canvas.addEventListener("keydown", (event) => {
    const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    action();
  });
}
