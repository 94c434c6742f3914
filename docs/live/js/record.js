// What the neuron did since the last frame, in one block of memory that goes from one thread to the other and back.

export const MOST_STEPS = 100; // in a frame

export class Record {
  /** @param sizes {inputs, branches, memory} */
  constructor(sizes, buffer = new ArrayBuffer(numBytes(sizes))) {
    let at = 0;
    const view = (type, length) => {
      const values = new type(buffer, at, length);
      at += values.byteLength;
      return values;
    };
    this.buffer = buffer;
    this.numbers = view(Float32Array, 3);
    this.soma = view(Float32Array, MOST_STEPS); // mV, by step
    this.probability = view(Float32Array, MOST_STEPS);
    this.branches = view(Float32Array, sizes.branches); // traces after the last step
    this.memory = view(Float32Array, sizes.memory);
    this.fired = view(Uint8Array, MOST_STEPS); // 1 in a step with a spike
    this.age = view(Uint8Array, sizes.inputs); // ms since the last spike at each synapse, 255 for long ago
  }

  /** How many steps were done. */
  get steps() {
    return this.numbers[0];
  }

  set steps(steps) {
    this.numbers[0] = steps;
  }

  /** How long they took, ms. */
  get busy() {
    return this.numbers[1];
  }

  set busy(busy) {
    this.numbers[1] = busy;
  }

  /** Since the neuron fired, ms of its time. */
  get sinceFired() {
    return this.numbers[2];
  }

  set sinceFired(sinceFired) {
    this.numbers[2] = sinceFired;
  }

  /** As before the first step. */
  clear() {
    this.steps = this.busy = 0;
    this.sinceFired = Infinity;
    this.branches.fill(0);
    this.memory.fill(0);
    this.age.fill(255);
    return this;
  }
}

function numBytes({ inputs, branches, memory }) {
  return 4 * (3 + 2 * MOST_STEPS + branches + memory) + MOST_STEPS + inputs;
}
