// Sliders, switches and buttons, and the words beside them.

import { PATTERNS } from "./drive.js";

const byId = (id) => document.getElementById(id);

/** Call `change` with a slider's value, now and when it moves, and write what it returns beside it. */
function slider(id, change) {
  const input = byId(id);
  const words = byId(`${id}-value`);
  const update = () => {
    words.textContent = change(input.valueAsNumber);
    input.setAttribute("aria-valuetext", words.textContent);
  };
  input.addEventListener("input", update);
  update();
  return (value) => {
    input.value = value;
    update();
  };
}

/** Wire the controls of the page to the life of the neuron. */
export function wire(live) {
  wireBackground(live);
  wireTimeConstants(live);
  slider("branch", (number) => {
    if (number - 1 !== live.chosen.branch) live.choose(number - 1);
    return `${number} of ${live.layout.branches.length}`;
  });
  byId("press-branch").addEventListener("click", () => live.pressBranch());
  byId("cut-branch").addEventListener("change", () => live.cut());
  byId("join-all").addEventListener("click", () => live.joinAll());
  byId("run").addEventListener("click", () => live.run(!live.running));
  byId("restart").addEventListener("click", () => live.restart());
  const speed = byId("speed");
  const setSpeed = () => {
    live.clock.speed = Number(speed.value);
    live.clock.restart();
  };
  speed.addEventListener("change", setSpeed);
  setSpeed(); // a browser may remember what was chosen before
}

function wireBackground(live) {
  for (const kind of ["excitatory", "inhibitory"]) {
    slider(`rate-${kind}`, (rate) => {
      live.change({ rates: { ...live.settings.rates, [kind]: rate } });
      return `${rate} Hz`;
    });
  }
  const pattern = byId("pattern");
  for (const [name, { label }] of Object.entries(PATTERNS)) pattern.add(new Option(label, name));
  pattern.value = live.settings.pattern;
  pattern.addEventListener("change", () => live.change({ pattern: pattern.value }));
}

/** Sliders of powers of ten by which time constants are longer than published. */
function wireTimeConstants(live) {
  const sliders = [
    slider("tau-synapse", (power) => {
      const tau = live.description.tau_s * 10 ** power;
      live.change({ stretchSynapse: power * Math.LN10 });
      return `${tau.toPrecision(tau < 10 ? 2 : 3)} ms`;
    }),
    slider("tau-memory", (power) => {
      live.change({ stretchMemory: power * Math.LN10 });
      return `× ${(10 ** power).toPrecision(2)}`;
    }),
  ];
  byId("tau-published").addEventListener("click", () => sliders.forEach((set) => set(0)));
}

/** Show what is chosen, cut and running. */
export function showState(live) {
  const { branch } = live.chosen;
  const chosen = byId("branch");
  if (chosen.valueAsNumber !== branch + 1) {
    chosen.value = branch + 1;
    chosen.dispatchEvent(new Event("input")); // writes its words
  }
  const { cut } = live.settings;
  const numCut = cut.reduce((sum, one) => sum + one, 0);
  byId("cut-branch").checked = cut[branch] === 1;
  byId("join-all").disabled = numCut === 0;
  byId("num-cut").textContent = numCut ? `${numCut} cut` : "none cut";
  byId("run").textContent = live.running ? "Pause" : "Run";
}

/** Numbers of the moment; not announced, they change all the time. */
export function showNumbers({ soma, probability, rate }) {
  byId("soma").textContent = `${Number.isNaN(soma) ? "–" : soma.toFixed(1).replace("-", "−")} mV`;
  byId("probability").textContent = probability.toFixed(3);
  byId("rate").textContent = `${rate.toFixed(1)} Hz`;
}

/** @param thread the words for the one that steps are done in */
export function showSpeed({ frames, work, step, realTime }, name, thread) {
  const place = byId("speed-words");
  const times = realTime < 0.1 ? realTime.toPrecision(1) : realTime.toFixed(2);
  place.textContent =
    `${times} × real time · ${Math.round(frames)} frames/s, ${work.toFixed(1)} ms of work each · ` +
    `${step.toFixed(3)} ms a step · ${name}, ${thread}`;
  Object.assign(place.dataset, {
    frames: frames.toFixed(1),
    work: work.toFixed(3),
    step: step.toFixed(4),
    realTime: realTime.toFixed(3),
  });
}

/** Say something to everybody, screen readers too. */
export function announce(words) {
  byId("announced").textContent = words;
}

/** What keeps the page from living, or null. */
export function showNotice(words) {
  byId("notice").textContent = words ?? "";
  byId("notice").hidden = words === null;
}
