// The thread that the neuron lives in. Does what remote.js asks, in order, and answers each call.

import { Life } from "./life.js";
import { Record } from "./record.js";

let life;

const calls = {
  load: async (provider, description) => {
    life = await Life.load(provider, description);
  },
  change: (settings) => life.change(settings),
  press: (input) => life.press(input),
  pressBranch: (branch) => life.pressBranch(branch),
  restart: () => life.restart(),
  exchange: (provider) => life.exchange(provider),
  advance: async (steps, budget, buffer) => {
    await life.advance(steps, budget, new Record(life.sizes, buffer));
    return buffer;
  },
};

addEventListener("message", async ({ data: { id, call, values } }) => {
  try {
    const answer = await calls[call](...values);
    postMessage({ id, answer }, answer instanceof ArrayBuffer ? [answer] : []);
  } catch (error) {
    postMessage({ id, error: error.message });
  }
});
