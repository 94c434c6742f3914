// Synapses and branches of the neuron, as neuron.json tells of them.

/**
 * `branches` are the inputs that each branch reads. NeuronIO's inputs lie interleaved along the dendrite, and branches
 * read overlapping windows of it: `own` are the inputs that begin with a branch, where the picture shows them.
 */
export function layoutOf(description) {
  const { num_inputs: numInputs, num_excitatory: numExcitatory } = description;
  const branches = description.branches.map((branch) => branch.inputs);
  const excitatory = Array.from({ length: numInputs }, (_, i) => i < numExcitatory);
  const readers = Array.from({ length: numInputs }, () => []);
  const place = new Array(numInputs).fill(0);
  const order = [];
  branches.forEach((inputs, branch) => {
    for (const input of inputs) {
      if (!readers[input].length) order.push(input);
      readers[input].push(branch);
    }
  });
  order.forEach((input, i) => {
    place[input] = i / numInputs;
  });
  const perBranch = Math.ceil(numInputs / branches.length);
  const own = branches.map((_, branch) => order.slice(perBranch * branch, perBranch * (branch + 1)));
  return { branches, numExcitatory, excitatory, readers, place, own, perBranch };
}
