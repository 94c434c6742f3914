// A life in a thread of its own, so that drawing never waits for a step. The same calls as life.js has.

import { sizesOf } from "./life.js";
import { Record } from "./record.js";

export class RemoteLife {
  #worker;
  #asked = 0;
  #waiting = new Map(); // id of a call -> what its answer is for

  /** As Life.load. Throws an Error where the browser has no such threads, or the neuron cannot live in one. */
  static async load(provider, description) {
    const life = new RemoteLife(sizesOf(description));
    try {
      await life.#ask("load", [provider, description]);
    } catch (error) {
      life.#worker.terminate();
      throw error;
    }
    return life;
  }

  constructor(sizes) {
    this.sizes = sizes;
    this.remote = true;
    this.thread = "one thread of its own";
    this.#worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.#worker.addEventListener("message", ({ data: { id, answer, error } }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error === undefined) resolve(answer);
      else reject(new Error(error));
    });
    this.#worker.addEventListener("error", (event) => {
      event.preventDefault(); // it is told to whoever asked
      for (const { reject } of this.#waiting.values()) reject(new Error(event.message ?? "its thread cannot be had"));
      this.#waiting.clear();
    });
  }

  change(settings) {
    return this.#ask("change", [settings]);
  }

  press(input) {
    return this.#ask("press", [input]);
  }

  pressBranch(branch) {
    return this.#ask("pressBranch", [branch]);
  }

  restart() {
    return this.#ask("restart", []);
  }

  exchange(provider) {
    return this.#ask("exchange", [provider]);
  }

  /** The record is the thread's until the promise is kept. */
  async advance(steps, budget, record) {
    return new Record(this.sizes, await this.#ask("advance", [steps, budget, record.buffer], [record.buffer]));
  }

  #ask(call, values, moved = []) {
    return new Promise((resolve, reject) => {
      const id = (this.#asked += 1);
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, call, values }, moved);
    });
  }
}
