// What the two directions of a recurrent layer of ELM neurons share; the equations stand at the head of native/network.h. What the inputs add
// comes summed, from one product over all steps. A block holds a sample's whole recurrence; a layer whose neurons do not read each other is cut
// into tiles of neurons, a block each. Up to 32 threads of a warp are a neuron's lanes and share its branches, hidden units and memory, so that
// a neuron waits for its own warp alone; the layer meets two barriers a step forward and one backward.
#pragma once
#include "common.cuh"
#include "surrogates.cuh"

constexpr int MAX_LAYERS = 3, WARP = 32, TURNS = 2;  // TURNS: outputs that a lane works at together
constexpr double TANH_SCALE = 1.7159, TANH_SLOPE = 2.0 / 3.0;
enum { RELU_SQUARED = 1, RELU, SILU };                     // activations, as native/api.h numbers them
enum { OUTPUT_RELU = 1, OUTPUT_IDENTITY, OUTPUT_SPIKE };

struct Layer {
    i64 num_steps, num_neuron, num_branch, num_memory, num_layers, hidden;  // hidden: units of all hidden layers
    i64 activation, output, widest;  // widest: outputs of the widest layer
    i64 lanes, tile;                 // of a neuron; neurons of a block
    i64 resident[MAX_LAYERS];        // from a neuron's weights to the next one's where a block copies them, 0 where it does not
    i64 width[MAX_LAYERS];           // outputs of the MLPs' layers, the last num_memory
    const Real *weight[MAX_LAYERS];  // forward (neuron, in, out), backward (neuron, out, in)
    const i64 *lengths;              // null: all steps are valid
    const Real *mask;                // (batch, neuron): factor on the activity that the layer reads, or null
    const Real *w_y, *bias, *kappa_m, *gain, *kappa_b, *kappa_r;  // kappa_b null: no trace; kappa_r null: no high pass
    // synapses that read neurons, forward in slices of 32 branches, backward by the neuron that is read; null where there are none
    const int *first, *other;        // where those of a slice or neuron begin; the neuron that is read, backward the branch that reads it
    const Real *w_s;                 // of each, with the scale of the input
};

ELM_DEVICE int width_of(const Layer &a, int layer) { return (int)a.width[layer]; }
ELM_DEVICE int inputs_of(const Layer &a, int layer) { return layer ? (int)a.width[layer - 1] : int(a.num_branch + a.num_memory); }
ELM_DEVICE bool recurrent(const Layer &a) { return a.first != nullptr; }
// Whether branches are summed here: what inputs add to them, where there is no trace, comes as sums of the first layer.
ELM_DEVICE bool branched(const Layer &a) { return recurrent(a) || a.kappa_b; }

// Where a block's neurons and a thread among them stand.
struct Place {
    int lane, lanes, group, groups, base, count;
    Place(const Layer &a)
        : lane(threadIdx.x % (unsigned)a.lanes),
          lanes((int)a.lanes),
          group(threadIdx.x / (unsigned)a.lanes),
          groups(blockDim.x / (unsigned)a.lanes),
          base(int(blockIdx.y * a.tile)),
          count(a.num_neuron - base < a.tile ? int(a.num_neuron - base) : (int)a.tile) {}
};

// The next `size` numbers of the block's shared memory.
ELM_DEVICE Real *take(Real *&room, i64 size) {
    Real *const here = room;
    room += size;
    return here;
}

// The weights of the MLPs of a block's neurons: in shared memory those that fit, else where they are.
struct Weights {
    const Real *of[MAX_LAYERS], *copy[MAX_LAYERS];
    Weights(const Layer &a, const Place &p, Real *&room) {
#pragma unroll
        for (int l = 0; l < MAX_LAYERS; l++) {
            if (l >= a.num_layers) break;
            const i64 size = (i64)width_of(a, l) * inputs_of(a, l);
            of[l] = a.weight[l] + p.base * size;
            copy[l] = room;
            if (!a.resident[l]) continue;
            Real *const to = take(room, a.tile * a.resident[l]);
            for (i64 k = threadIdx.x; k < p.count * size; k += blockDim.x) to[k / size * a.resident[l] + k % size] = of[l][k];
        }
    }
};

// Sum over the lanes of a neuron, in all of them.
ELM_DEVICE Real over_lanes(Real x, int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

// sum[c] = sum over i from `from` to `to` of weight[i * row + k] x[i] for k = first, first + step; past `row` the last column stands in.
ELM_DEVICE void products(const Real *weight, int row, int first, int step, const Real *x, int from, int to, Real (&sum)[TURNS]) {
    const Real *at[TURNS];
#pragma unroll
    for (int c = 0; c < TURNS; c++) sum[c] = Real(0), at[c] = weight + from * row + (first + c * step < row ? first + c * step : row - 1);
#pragma unroll 4  // more would take more registers than a block of 1024 threads has
    for (int i = from; i < to; i++)
#pragma unroll
        for (int c = 0; c < TURNS; c++) sum[c] += *at[c] * x[i], at[c] += row;
}

// The same with the weights of layer l of one of the block's neurons. Two loops, so that the one knows that it reads shared memory: loads that could
// be of either kind need addresses of 64 bits, and were most of the instructions of a step.
ELM_DEVICE void products(const Layer &a, const Weights &w, int l, int local, int row, int first, int step, const Real *x, int from, int to, Real (&sum)[TURNS]) {
    if (a.resident[l])
        products(w.copy[l] + local * (int)a.resident[l], row, first, step, x, from, to, sum);
    else
        products(w.of[l] + (i64)local * width_of(a, l) * inputs_of(a, l), row, first, step, x, from, to, sum);
}

ELM_DEVICE Real activated(i64 activation, Real x) {
    if (activation == SILU) return x / (Real(1) + exp(-x));
    const Real positive = x < Real(0) ? Real(0) : x;
    return activation == RELU_SQUARED ? positive * positive : positive;
}

ELM_DEVICE Real activation_slope(i64 activation, Real x) {
    if (activation == SILU) {
        const Real s = Real(1) / (Real(1) + exp(-x));
        return s * (Real(1) + x * (Real(1) - s));
    }
    if (activation == RELU) return x > Real(0) ? Real(1) : Real(0);
    return x < Real(0) ? Real(0) : x + x;
}

// Load of a later step's numbers on its way.
ELM_DEVICE void prefetch(const Real *from) {
#ifndef ELM_ON_CPU
    asm volatile("prefetch.global.L1 [%0];" ::"l"(from));
#endif
}
