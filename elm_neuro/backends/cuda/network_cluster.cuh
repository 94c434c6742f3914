// What the two directions of a layer of ELM neurons share where a cluster of blocks holds a sample's recurrence: without traces of branches, with
// at most one hidden layer, and not larger than the registers of 8 blocks. Synapses, branches and the branches' columns of the first layer are
// one linear map from neurons to the sums of that layer: LANES threads share such a sum, its weights in their registers for all steps. The MLP and
// the memory of a neuron are of GROUP lanes of a warp; what needs no other neuron is computed while activity is on its way between the blocks.
#pragma once
#include "cluster.cuh"
#include "network.cuh"

constexpr int LANES = ELM_LANES, TERMS = ELM_TERMS;  // threads that share a sum; its weights that each has
constexpr int MEMORY = ELM_MEMORY, HIDDEN = ELM_HIDDEN, ROWS = HIDDEN ? HIDDEN : MEMORY;  // outputs of the layers, HIDDEN 0: there is one
constexpr int WIDEST = ROWS < MEMORY ? MEMORY : ROWS;
ELM_DEVICE constexpr int lanes_for(int numbers) { return numbers <= CLUSTER ? CLUSTER : numbers <= 16 ? 16 : 32; }
constexpr int GROUP = lanes_for(WIDEST), OUTPUT_LANES = lanes_for(MEMORY);  // lanes of a neuron, and those that know its output
constexpr int AHEAD = 8;  // steps that prefetches run ahead

ELM_DEVICE constexpr int vectors_of(int numbers) { return divided_up(numbers, LANES_OF_VECTOR); }
constexpr int STRIDE = vectors_of(WIDEST);  // vectors of a neuron's numbers in shared memory
constexpr int OF_STEP = TERMS / LANES_OF_VECTOR * LANES;  // of the numbers that all sums are of

struct ClusterLayer {
    i64 num_steps, num_neuron, num_branch;
    i64 activation, output;
    i64 tile, ranks;     // neurons of a block; blocks that have some
    const i64 *lengths;  // null: all steps are valid
    const Real *mask;    // (batch, neuron): factor on the activity that the layer reads, or null
    const Real *map;     // (neuron that is read, neuron, ROWS), null where none is read
    const Real *first_layer, *last_layer;  // (neuron, ROWS, branch + MEMORY); (neuron, MEMORY, HIDDEN), or null
    const Real *w_y, *bias, *kappa_m, *gain, *kappa_r;  // kappa_r null: no high pass
};

// Where a thread stands: in its block's sums, and in its warp's neurons.
struct Seat {
    int rank, base, count;
    int sum, part;    // of LANES threads
    int local, lane;  // the neuron in its block
    bool warp;        // whether its warp has neurons
    bool neuron, row, memory;  // whether it is a neuron's lane, one of ROWS, one of MEMORY
    Seat(const ClusterLayer &a)
        : rank((int)blockIdx.y), base(int(rank * a.tile)), sum(threadIdx.x / LANES), part(threadIdx.x % LANES), local(threadIdx.x / GROUP),
          lane(threadIdx.x % GROUP) {
        const int left = (int)a.num_neuron - base;
        count = left < 0 ? 0 : left < a.tile ? left : (int)a.tile;
        neuron = local < count;
        warp = (int)threadIdx.x / WARP * WARP < count * GROUP;
        row = neuron && lane < ROWS;
        memory = neuron && lane < MEMORY;
    }
};

// Product of weights in registers with vectors of numbers in shared memory, APART from each other.
template <int APART, int N> ELM_DEVICE Real product(const Real (&weight)[N], const Vector *x) {
    Real sum[LANES_OF_VECTOR] = {};
#pragma unroll
    for (int c = 0; c < N / LANES_OF_VECTOR; c++) {
        const Vector v = x[c * APART];
#pragma unroll
        for (int e = 0; e < LANES_OF_VECTOR; e++) sum[e] += weight[c * LANES_OF_VECTOR + e] * entry(v, e);
    }
    Real total = sum[0] + sum[1];
#if !ELM_DOUBLE
    total += sum[2] + sum[3];
#endif
    return total;
}

// Number of what a thread's weight c of a sum meets.
ELM_DEVICE int input_of(const Seat &s, int c) { return (c / LANES_OF_VECTOR * LANES + s.part) * LANES_OF_VECTOR + c % LANES_OF_VECTOR; }

ELM_DEVICE void prefetch_far(const Real *from) {
#ifndef ELM_ON_CPU
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}
