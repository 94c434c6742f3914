// What the two directions of a layer of ELM neurons share where a cluster of blocks holds a sample's recurrence: without traces of branches, with
// at most one hidden layer, and not larger than the registers of 8 blocks. Synapses, branches and the branches' columns of the first layer are
// one linear map from neurons to the sums of that layer: LANES threads share two such sums, their weights in registers for all steps. The MLP and
// the memory of a neuron are of GROUP lanes of a warp; what needs no other neuron is computed while activity is on its way between the blocks.
#pragma once
#include "cluster.cuh"
#include "network.cuh"

constexpr int LANES = ELM_LANES, TERMS = ELM_TERMS;  // threads that share two sums, so that what they read serves both; of each, its weights
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
    int pair, part;   // of sums, and of the LANES threads that share them
    int sum;          // the one that is whole in this thread in the end
    int local, lane;  // the neuron in its block
    bool warp;        // whether its warp has neurons
    bool neuron, row, memory;  // whether it is a neuron's lane, one of ROWS, one of MEMORY
    Seat(const ClusterLayer &a)
        : rank((int)blockIdx.y), base(int(rank * a.tile)), pair(threadIdx.x / LANES), part(threadIdx.x % LANES), sum(2 * pair + part % 2),
          local(threadIdx.x / GROUP), lane(threadIdx.x % GROUP) {
        const int left = (int)a.num_neuron - base;
        count = left < 0 ? 0 : left < a.tile ? left : (int)a.tile;
        neuron = local < count;
        warp = (int)threadIdx.x / WARP * WARP < count * GROUP;
        row = neuron && lane < ROWS;
        memory = neuron && lane < MEMORY;
    }
};

ELM_DEVICE Real total(const Real (&sum)[LANES_OF_VECTOR]) {
#if ELM_DOUBLE
    return sum[0] + sum[1];
#else
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
#endif
}

ELM_DEVICE Real number(const Vector *x, int i) { return entry(x[i / LANES_OF_VECTOR], i % LANES_OF_VECTOR); }

// Product of weights in registers with numbers in shared memory.
template <int N> ELM_DEVICE Real product(const Real (&weight)[N], const Vector *x) {
    Real sum[LANES_OF_VECTOR] = {};
#pragma unroll
    for (int c = 0; c < N; c++) sum[c % LANES_OF_VECTOR] += weight[c] * number(x, c);
    return total(sum);
}

// A pair's sums over what all sums are of: each of its threads ends with one of the two, in order.
ELM_DEVICE Real shared_sum(const Seat &s, const Real (&weight)[2][TERMS], const Vector *x) {
    Real sum[2][LANES_OF_VECTOR] = {};
#pragma unroll
    for (int c = 0; c < TERMS / LANES_OF_VECTOR; c++) {
        const Vector v = x[c * LANES + s.part];
#pragma unroll
        for (int e = 0; e < LANES_OF_VECTOR; e++)
#pragma unroll
            for (int k = 0; k < 2; k++) sum[k][e] += weight[k][c * LANES_OF_VECTOR + e] * entry(v, e);
    }
    const Real first = total(sum[0]), second = total(sum[1]);
    const bool odd = s.part % 2;
    Real own = (odd ? second : first) + __shfl_xor_sync(~0u, odd ? first : second, 1);
#pragma unroll
    for (int offset = LANES / 2; offset > 1; offset /= 2) own += __shfl_xor_sync(~0u, own, offset);
    return own;
}

// Number of what a thread's weight c of a sum meets.
ELM_DEVICE int input_of(const Seat &s, int c) { return (c / LANES_OF_VECTOR * LANES + s.part) * LANES_OF_VECTOR + c % LANES_OF_VECTOR; }

ELM_DEVICE void prefetch_far(const Real *from) {
#ifndef ELM_ON_CPU
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}
