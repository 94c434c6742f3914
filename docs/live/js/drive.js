// What arrives at the synapses: background spikes at given rates, in a pattern, and what the visitor presses.

const VOLLEY_MS = 250;
const LARGEST_FACTOR = 3; // no pattern has a larger one

// Factor on the rates at a time (ms) and a place along the dendrite (0 to 1), 1 on average.
export const PATTERNS = {
  steady: { label: "Steady", factor: () => 1 },
  rhythm: { label: "Rhythm, 4 a second", factor: (t) => 1 + Math.sin((2 * Math.PI * 4 * t) / 1000) },
  wave: {
    label: "Wave along the dendrite",
    factor: (t, place) => {
      const distance = Math.abs(place - ((t / 1500) % 1));
      return 0.6 + 2.26 * Math.exp(-((Math.min(distance, 1 - distance) / 0.1) ** 2));
    },
  },
  volleys: { label: "Volleys at the chosen branch", factor: () => 1 },
  silence: { label: "Silence", factor: () => 0 },
};

export class Drive {
  /**
   * @param layout of the synapses: {numExcitatory, excitatory: bool[], place: 0 to 1[], branches: input[][]}
   * @param random numbers in [0, 1)
   */
  constructor(layout, random = Math.random) {
    this.layout = layout;
    this.random = random;
    this.rates = { excitatory: 14, inhibitory: 8 }; // a second, of each synapse
    this.pattern = "steady";
    this.branch = 0; // that volleys arrive at
    this.pressed = new Map(); // input -> spikes of the next step
  }

  /** A spike at an input in the next step. */
  press(input) {
    this.pressed.set(input, (this.pressed.get(input) ?? 0) + 1);
  }

  /** A spike at each excitatory synapse that a branch reads, in the next step. */
  pressBranch(branch) {
    for (const input of this.layout.branches[branch]) if (this.layout.excitatory[input]) this.press(input);
  }

  /** Write the spikes of the step at `time` (ms) into `input`, negative where inhibitory. */
  fill(input, time) {
    const { excitatory, numExcitatory } = this.layout;
    if (this.pattern === "volleys" && time % VOLLEY_MS === 0) this.pressBranch(this.branch);
    input.fill(0);
    this.#scatter(input, time, 0, numExcitatory, this.rates.excitatory, 1);
    this.#scatter(input, time, numExcitatory, input.length, this.rates.inhibitory, -1);
    for (const [i, spikes] of this.pressed) input[i] += excitatory[i] ? spikes : -spikes;
    this.pressed.clear();
  }

  /** Spikes at the inputs from `from` to `to`: most are silent, so it goes from one that may have one to the next. */
  #scatter(input, time, from, to, rate, spike) {
    const { factor } = PATTERNS[this.pattern];
    const { place } = this.layout;
    const may = Math.min((LARGEST_FACTOR * rate) / 1000, 1);
    for (let i = from + this.#gap(may); i < to; i += 1 + this.#gap(may)) {
      if (LARGEST_FACTOR * this.random() < factor(time, place[i])) input[i] = spike;
    }
  }

  /** Failures before the next success, where each try succeeds with a probability. */
  #gap(probability) {
    return probability > 0 ? Math.floor(Math.log(1 - this.random()) / Math.log(1 - probability)) : Infinity;
  }
}
