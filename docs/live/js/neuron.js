// The neuron: one ONNX model of one millisecond, its state, and what is changed of it. All arithmetic is the model's.

const OUTPUTS = ["spike_probability", "soma_mv", "b_next", "m_next"];

export class Neuron {
  /**
   * @param ort the runtime
   * @param session of the model step.onnx
   * @param sizes {inputs, branches, memory}
   */
  constructor(ort, session, sizes) {
    this.ort = ort;
    this.session = session;
    this.sizes = sizes;
    this.input = new Float32Array(sizes.inputs); // spikes of the next step: counts, negative where inhibitory
    this.stretchSynapse = new Float32Array(1); // logarithm of a factor on tau_s
    this.stretchMemory = new Float32Array(sizes.memory); // logarithm of a factor on each tau_m
    this.cut = new Float32Array(sizes.branches); // 1 where the memory does not read the branch
    this.probability = 0; // of a spike in the last step
    this.soma = Number.NaN; // mV
    this.restart();
  }

  /** Load the model of one step for a provider, "wasm" or "webgpu". */
  static async load(ort, provider, sizes, address = new URL("../model/step.onnx", import.meta.url)) {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error(`The neuron's model could not be loaded (${answer.status}).`);
    const session = await ort.InferenceSession.create(new Uint8Array(await answer.arrayBuffer()), {
      executionProviders: [provider],
      graphOptimizationLevel: "all",
    });
    return new Neuron(ort, session, sizes);
  }

  /** Forget everything: the state before a sequence is zero. What is changed of the neuron stays. */
  restart() {
    const { branches, memory } = this.sizes;
    this.feeds = {
      x: this.#row(this.input),
      b: this.#row(new Float32Array(branches)),
      m: this.#row(new Float32Array(memory)),
      stretch_b: this.#row(this.stretchSynapse),
      stretch_m: this.#row(this.stretchMemory),
      cut: this.#row(this.cut),
    };
  }

  /** One millisecond: reads `input`, writes `probability` and `soma`. One call at a time. */
  async step() {
    const { feeds } = this; // a restart meanwhile makes new ones
    const after = await this.session.run(feeds, OUTPUTS);
    this.probability = after.spike_probability.data[0];
    this.soma = after.soma_mv.data[0];
    feeds.b = after.b_next;
    feeds.m = after.m_next;
  }

  /** Traces of the branches. */
  get branches() {
    return this.feeds.b.data;
  }

  get memory() {
    return this.feeds.m.data;
  }

  /** Go on from where another neuron of the same sizes is, with what is changed of it. */
  takeOver(other) {
    for (const name of ["stretchSynapse", "stretchMemory", "cut"]) this[name].set(other[name]);
    this.restart();
    this.branches.set(other.branches);
    this.memory.set(other.memory);
  }

  #row(values) {
    return new this.ort.Tensor("float32", values, [1, values.length]);
  }
}
