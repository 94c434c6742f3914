// What the two directions of a layer of ELM neurons share where a cluster of blocks holds a sample's recurrence: without traces of branches, with
// at most one hidden layer, and not larger than the registers of 8 blocks. Synapses, branches and the branches' columns of the first layer are
// one linear map from neurons to the sums of that layer: a thread has a part of a sum's weights in registers, for all steps. A warp is a neuron, its
// lanes are the hidden units and the memory; what needs no other neuron is computed while activity is on its way between the blocks.
#pragma once
#include "cluster.cuh"
#include "network.cuh"

constexpr int VECTORS_OF_WIDE = ELM_WIDE / LANES_OF_VECTOR;
constexpr int AHEAD = 8;  // steps that prefetches run ahead

struct ClusterLayer {
    i64 num_steps, num_neuron, num_branch, num_memory, hidden;  // hidden 0: the MLPs have one layer
    i64 activation, output;
    i64 tile, ranks, lanes;  // neurons of a block; blocks that have some; threads that share a sum
    const i64 *lengths;      // null: all steps are valid
    const Real *mask;        // (batch, neuron): factor on the activity that the layer reads, or null
    const Real *map;         // (neuron that is read, neuron, rows), null where none is read; rows: outputs of the first layer
    const Real *first_layer, *last_layer;  // (neuron, rows, branch + memory); (neuron, memory, hidden), or null
    const Real *w_y, *bias, *kappa_m, *gain, *kappa_r;  // kappa_r null: no high pass
};

// Where a thread stands: in its block's sums, and in its warp's neuron.
struct Seat {
    int rank, base, count, rows;
    int sum, part;    // of `lanes` threads
    int local, lane;  // the neuron in its block
    bool neuron;      // whether there is one
    Seat(const ClusterLayer &a)
        : rank((int)blockIdx.y), base(int(rank * a.tile)), rows(a.hidden ? (int)a.hidden : (int)a.num_memory),
          sum(threadIdx.x / (unsigned)a.lanes), part(threadIdx.x % (unsigned)a.lanes), local(threadIdx.x / WARP), lane(threadIdx.x % WARP) {
        const int left = (int)a.num_neuron - base;
        count = left < 0 ? 0 : left < a.tile ? left : (int)a.tile;
        neuron = local < count;
    }
};

// Product of weights in registers with numbers in shared memory, of which those of other threads lie in between.
template <int N> ELM_DEVICE Real product(const Real (&weight)[N], const Vector *x, int apart) {
    Real sum[LANES_OF_VECTOR] = {};
#pragma unroll
    for (int c = 0; c < N / LANES_OF_VECTOR; c++) {
        const Vector v = x[c * apart];
#pragma unroll
        for (int e = 0; e < LANES_OF_VECTOR; e++) sum[e] += weight[c * LANES_OF_VECTOR + e] * entry(v, e);
    }
    Real total = sum[0] + sum[1];
#if !ELM_DOUBLE
    total += sum[2] + sum[3];
#endif
    return total;
}

// Number of the input that a thread's weight c is for.
ELM_DEVICE int input_of(const ClusterLayer &a, const Seat &s, int c) {
    return (c / LANES_OF_VECTOR * (int)a.lanes + s.part) * LANES_OF_VECTOR + c % LANES_OF_VECTOR;
}

ELM_DEVICE void prefetch_far(const Real *from) {
#ifndef ELM_ON_CPU
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
#endif
}
