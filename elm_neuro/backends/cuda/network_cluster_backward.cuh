// A layer of ELM neurons in a cluster, backward: network_cluster.cuh. As network_backward.cuh it leaves behind the gradients of every step's sums.
// A block has the part of each neuron's gradient that comes from its own neurons' sums, and sends it to the block of that neuron.
#pragma once
#include "network_cluster.cuh"

struct NetworkClusterBackward : ClusterLayer {
    const Real *m_0, *r_0;                     // (batch, neuron, ..)
    const Real *sums, *tanh, *memory, *q, *r;  // what the forward pass kept
    const Real *grad_a, *grad_change, *grad_a_last, *grad_m_last, *grad_r_last;  // null: zero
    Real *grad_sums;                           // (batch, step, neuron, hidden + num_memory)
    Real *grad_a_0, *grad_m_0, *grad_r_0;
    Real *grad_w_y, *grad_kappa_m, *grad_gain, *grad_bias, *grad_kappa_r;  // (batch, neuron, ..), one sample's
    i64 surrogate;
    Slope slope;
};

static_assert(sizeof(NetworkClusterBackward) == ELM_BYTES_NETWORKCLUSTERBACKWARD, "structures of network_cluster_backward.cuh and _network_cluster.py");

// What a thread's lane needs of a step.
struct Step {
    Real sum, th, memory, q, r, grad;  // of `memory` and `r` what was there before the step
};

ELM_DEVICE Step step_of(const NetworkClusterBackward &a, const Seat &s, i64 row, bool first, i64 at) {
    const int d = (int)a.num_memory, n = s.base + s.local;
    const bool memory = s.neuron && s.lane < d;
    const i64 k = (row + n) * d + s.lane, before = k - a.num_neuron * d;
    Step step;
    step.sum = s.neuron && s.lane < a.hidden ? a.sums[(row + n) * a.hidden + s.lane] : Real(0);
    step.th = memory ? a.tanh[k] : Real(0);
    step.memory = !memory ? Real(0) : first ? a.m_0[at * d + s.lane] : a.memory[before];
    step.q = s.neuron && a.q ? a.q[row + n] : Real(0);
    step.r = !s.neuron || !a.kappa_r ? Real(0) : first ? a.r_0[at] : a.r[row + n - a.num_neuron];
    step.grad = s.neuron && a.grad_a ? a.grad_a[row + n] : Real(0);
    return step;
}

ELM_CLUSTER_KERNEL(elm_network_cluster_backward, NetworkClusterBackward, ELM_THREADS) {
    ELM_DYNAMIC_SHARED(Vector, shared);
    const Seat s(a);
    const int d = (int)a.num_memory, lanes = (int)a.lanes, tile = (int)a.tile, num_neuron = (int)a.num_neuron, n = s.base + s.local;
    const i64 sample = blockIdx.x, length = a.lengths ? a.lengths[sample] : a.num_steps, at = sample * num_neuron + n;
    const bool reads_layer = a.map && s.count, source = s.sum < num_neuron, memory = s.neuron && s.lane < d, hidden = s.neuron && s.lane < a.hidden;
    Arrivals *const arrivals = (Arrivals *)shared;
    Vector *const sums = shared + 16 / sizeof(Vector);  // gradients of the block's sums, as its threads read them
    Vector *const own_sums = sums + (reads_layer ? ELM_TERMS / LANES_OF_VECTOR * lanes : 0);  // and as their neuron's warp does
    Vector *const own_o = own_sums + tile * VECTORS_OF_WIDE;  // of the outputs of the last of two layers
    Real *const parts = (Real *)(own_o + tile * VECTORS_OF_WIDE);  // of what its neurons get back, from each block

    Real *const zeroed = (Real *)sums;
    for (int k = threadIdx.x; k < (int)((Real *)parts - zeroed); k += blockDim.x) zeroed[k] = Real(0);
    if (threadIdx.x == 0) prepare(arrivals[0]), prepare(arrivals[1]);

    Real of_rows[ELM_TERMS], of_memory[ELM_WIDE], of_hidden[ELM_WIDE];
    const i64 in = a.num_branch + d;
#pragma unroll
    for (int c = 0; c < ELM_TERMS; c++) {
        const int k = input_of(a, s, c);
        of_rows[c] = source && reads_layer && k < s.count * s.rows ? a.map[((i64)s.sum * num_neuron + s.base) * s.rows + k] : Real(0);
    }
#pragma unroll
    for (int c = 0; c < ELM_WIDE; c++) {
        of_memory[c] = memory && c < s.rows ? a.first_layer[((i64)n * s.rows + c) * in + a.num_branch + s.lane] : Real(0);
        of_hidden[c] = hidden && c < d ? a.last_layer[((i64)n * d + c) * a.hidden + s.lane] : Real(0);
    }
    const Real kappa = memory ? a.kappa_m[n * d + s.lane] : Real(0), gain = memory ? a.gain[n * d + s.lane] * Real(TANH_SCALE * TANH_SLOPE) : Real(0);
    const Real w_y = memory ? a.w_y[n * d + s.lane] : Real(0), kappa_r = s.neuron && a.kappa_r ? a.kappa_r[n] : Real(0);
    const Real heard = s.neuron && a.mask ? a.mask[at] : Real(1), size = s.neuron && a.grad_change ? a.grad_change[at] / Real(d) : Real(0);
    const Real of_last = s.neuron && a.grad_a_last ? a.grad_a_last[at] : Real(0);
    Real m = memory && a.grad_m_last ? a.grad_m_last[at * d + s.lane] : Real(0), r = s.neuron && a.grad_r_last ? a.grad_r_last[at] : Real(0);
    Real of_w_y = Real(0), of_kappa = Real(0), of_gain = Real(0), of_bias = Real(0), of_kappa_r = Real(0);
    const int to_block = s.sum / tile, of_source = s.rank * tile + s.sum % tile, own = s.local * ELM_WIDE + s.lane;
    const int bytes = int(a.ranks * s.count * sizeof(Real));
    const i64 row_0 = sample * a.num_steps * num_neuron;
    // What this warp's neuron got back from all that read it; all threads of the block call it.
    const auto returned = [&](i64 turn) {
        receive(arrivals[turn % 2], bytes, turn / 2);
        Real sum = Real(0);
#pragma unroll
        for (int k = 0; k < CLUSTER; k++)
            if (s.neuron && k < a.ranks) sum += parts[(turn % 2 * CLUSTER + k) * tile + s.local];
        return sum * heard;
    };
    Step now = {}, next = {};
    Real after = Real(0);
    if (length) {
        next = step_of(a, s, row_0 + (length - 1) * num_neuron, length == 1, at);
        after = memory ? a.memory[(row_0 + (length - 1) * num_neuron + n) * d + s.lane] : Real(0);
    }
    wait_for_cluster();  // all blocks are ready for what is sent to them

    for (i64 turn = 0; turn < length; turn++) {
        const i64 t = length - 1 - turn, row = row_0 + t * num_neuron;
        now = next;
        if (t) next = step_of(a, s, row - num_neuron, t == 1, at);
        if (s.neuron && t > AHEAD) {
            const i64 far = row - AHEAD * num_neuron + n;
            if (hidden) prefetch_far(a.sums + far * a.hidden + s.lane);
            if (memory) prefetch_far(a.tanh + far * d + s.lane), prefetch_far(a.memory + far * d + s.lane);
            if (s.lane == 0 && a.q) prefetch_far(a.q + far);
            if (s.lane == 0 && a.r) prefetch_far(a.r + far);
            if (s.lane == 0 && a.grad_a) prefetch_far(a.grad_a + far);
        }
        Real of_y = now.grad + (turn ? Real(0) : of_last);
        if (reads_layer && turn) of_y += returned(turn - 1);
        Real grad = Real(0), of_r = Real(0);
        if (s.neuron) {
            if (a.output == OUTPUT_RELU && !(now.q > Real(0))) of_y = Real(0);
            if (a.output == OUTPUT_SPIKE) of_y *= slope_at((int)a.surrogate, a.slope, now.q);
            of_bias += of_y;
            if (a.kappa_r) of_r = r - of_y;
            of_y += (Real(1) - kappa_r) * of_r;
            Real *const left = a.grad_sums + (row + n) * (a.hidden + d);
            grad = m + w_y * of_y;
            Real of_sum = gain * (Real(1) - now.th * now.th) * grad + (now.th > Real(0) ? size : now.th < Real(0) ? -size : Real(0));
            if (memory) left[a.hidden + s.lane] = of_sum;
            if (a.hidden) {
                if (memory) ((Real *)own_o)[own] = of_sum;
                __syncwarp();
                of_sum = product(of_hidden, own_o + s.local * VECTORS_OF_WIDE, 1) * activation_slope(a.activation, now.sum);
                if (hidden) left[s.lane] = of_sum;
            }
            if (s.lane < s.rows) {
                ((Real *)own_sums)[own] = of_sum;
                if (reads_layer) ((Real *)sums)[s.local * s.rows + s.lane] = of_sum;
            }
        }
        __syncthreads();  // the gradients of the block's sums are there
        if (reads_layer) {
            const Real part = over_lanes(product(of_rows, sums + s.part, lanes), lanes);
            if (source && s.part == 0) send(part, parts[turn % 2 * CLUSTER * tile + of_source], arrivals[turn % 2], to_block);
        }
        if (s.neuron) {
            of_w_y += of_y * after;
            of_gain += grad * now.th;
            if (a.kappa_r) {
                of_kappa_r += of_r * (now.r - over_lanes(w_y * after, WARP));
                r = kappa_r * of_r;
            }
            const Real of_decayed = grad + product(of_memory, own_sums + s.local * VECTORS_OF_WIDE, 1);
            of_kappa += of_decayed * now.memory;
            m = kappa * of_decayed;
            after = now.memory;
        }
        __syncthreads();  // they have been read
    }
    Real of_a = length ? Real(0) : of_last;
    if (reads_layer && length) of_a = returned(length - 1);
    wait_for_cluster();  // nobody sends any more

    if (memory) {
        const i64 k = at * d + s.lane;
        a.grad_m_0[k] = m;
        a.grad_w_y[k] = of_w_y;
        a.grad_kappa_m[k] = of_kappa;
        a.grad_gain[k] = of_gain * Real(TANH_SCALE);
    }
    if (s.neuron && s.lane == 0) {
        a.grad_a_0[at] = of_a;
        a.grad_bias[at] = of_bias;
        if (a.kappa_r) a.grad_r_0[at] = r, a.grad_kappa_r[at] = of_kappa_r;
    }
    const i64 sums_of_neuron = a.hidden + d;
    for (i64 t = length; s.neuron && t < a.num_steps; t++)
        for (i64 k = s.lane; k < sums_of_neuron; k += WARP) a.grad_sums[(row_0 + t * num_neuron + n) * sums_of_neuron + k] = Real(0);
}
