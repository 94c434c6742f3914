// A layer of ELM neurons in a cluster, backward: network_cluster.cuh. It leaves behind the gradients of every step's sums, for the map's own product
// over all steps; those of the MLPs beyond it are small enough for the registers of their neuron's lanes.
// A block has the part of each neuron's gradient that comes from its own neurons' sums, and sends it to the block of that neuron.
#pragma once
#include "network_cluster.cuh"

struct NetworkClusterBackward : ClusterLayer {
    const Real *m_0, *r_0;                     // (batch, neuron, ..)
    const Real *sums, *tanh, *memory, *q, *r;  // what the forward pass kept
    const Real *grad_a, *grad_change, *grad_a_last, *grad_m_last, *grad_r_last;  // null: zero
    Real *grad_sums;                           // (batch, step, neuron, ROWS)
    Real *grad_a_0, *grad_m_0, *grad_r_0;
    Real *grads;                               // (batch, PARAMETERS * neuron), one sample's, of each parameter for all neurons in turn
    i64 surrogate;
    Slope slope;
};

static_assert(sizeof(NetworkClusterBackward) == ELM_BYTES_NETWORKCLUSTERBACKWARD, "structures of network_cluster_backward.cuh and _network_cluster.py");

// Of a neuron: w_y, kappa_m, gain; bias, kappa_r; the first layer's columns of the memory; the last layer, and its bias.
constexpr int PARAMETERS = 3 * MEMORY + 2 + ROWS * MEMORY + (HIDDEN ? HIDDEN * MEMORY + MEMORY : 0);
constexpr int PARTS = CLUSTER / LANES_OF_VECTOR;  // vectors of what a neuron gets back from the blocks

// What a lane needs of a step.
struct Step {
    Real sum, th, before, q, r_before, grad;  // `before` and `r_before`: memory and r before the step
};

ELM_CLUSTER_KERNEL(elm_network_cluster_backward, NetworkClusterBackward, ELM_THREADS) {
    ELM_DYNAMIC_SHARED(Vector, shared);
    const Seat s(a);
    const int tile = (int)a.tile, num_neuron = (int)a.num_neuron, n = s.base + s.local;
    const int length = (int)valid_steps(a.lengths, blockIdx.x, a.num_steps);
    const i64 of_sample = (i64)blockIdx.x * num_neuron, at = of_sample + n, row_0 = of_sample * a.num_steps;
    const bool reads_layer = a.map && s.count, source = s.part < 2 && s.sum < num_neuron, high_pass = a.kappa_r != nullptr;
    Arrivals *const arrivals = (Arrivals *)shared;     // of even and odd steps
    Vector *const sums = shared + 16 / sizeof(Vector);  // gradients of the block's sums, as its threads read them
    Vector *const rows = sums + OF_STEP;                // and as their neuron's lanes do
    Vector *const outputs = rows + tile * STRIDE;       // of the last of two layers
    Vector *const decayed = outputs + tile * STRIDE;    // not a gradient: the memory that the first layer read
    Vector *const parts = decayed + tile * STRIDE;      // of what its neurons get back, after even and odd steps, from each block

    Real *const zeroed = (Real *)sums;
    for (int k = threadIdx.x; k < (OF_STEP + tile * (3 * STRIDE + 2 * PARTS)) * LANES_OF_VECTOR; k += blockDim.x) zeroed[k] = Real(0);
    if (threadIdx.x == 0) prepare(arrivals[0]), prepare(arrivals[1]);

    Real of_rows[2][TERMS], of_decayed[vectors_of(ROWS) * LANES_OF_VECTOR], of_outputs[vectors_of(MEMORY) * LANES_OF_VECTOR];
    const i64 in = a.num_branch + MEMORY;
#pragma unroll
    for (int c = 0; c < TERMS; c++) {
        const int k = input_of(s, c);
        for (int of = 2 * s.pair, i = 0; i < 2; of++, i++)
            of_rows[i][c] = reads_layer && of < num_neuron && k < s.count * ROWS ? a.map[((i64)of * num_neuron + s.base) * ROWS + k] : Real(0);
    }
#pragma unroll
    for (int c = 0; c < vectors_of(ROWS) * LANES_OF_VECTOR; c++)
        of_decayed[c] = s.memory && c < ROWS ? a.first_layer[((i64)n * ROWS + c) * in + a.num_branch + s.lane] : Real(0);
#pragma unroll
    for (int c = 0; c < vectors_of(MEMORY) * LANES_OF_VECTOR; c++)
        of_outputs[c] = HIDDEN && s.row && c < MEMORY ? a.last_layer[((i64)n * MEMORY + c) * HIDDEN + s.lane] : Real(0);
    const int k = n * MEMORY + s.lane;
    const Real kappa = s.memory ? a.kappa_m[k] : Real(0), gain = s.memory ? a.gain[k] * Real(TANH_SCALE * TANH_SLOPE) : Real(0);
    const Real w_y = s.memory ? a.w_y[k] : Real(0), kappa_r = s.neuron && high_pass ? a.kappa_r[n] : Real(0);
    const Real heard = s.neuron && a.mask ? a.mask[at] : Real(1), size = s.neuron && a.grad_change ? a.grad_change[at] / Real(MEMORY) : Real(0);
    const Real of_last = s.neuron && a.grad_a_last ? a.grad_a_last[at] : Real(0);
    Real m = s.memory && a.grad_m_last ? a.grad_m_last[at * MEMORY + s.lane] : Real(0), r = s.neuron && a.grad_r_last ? a.grad_r_last[at] : Real(0);
    Real of_first[MEMORY] = {}, of_last_layer[MEMORY] = {}, of_last_bias = Real(0);
    Real of_w_y = Real(0), of_kappa = Real(0), of_gain = Real(0), of_bias = Real(0), of_kappa_r = Real(0);
    const int own = s.local * STRIDE * LANES_OF_VECTOR + s.lane, of_sum = s.local * ROWS + s.lane;
    const int to_block = s.sum / tile, to_part = s.sum % tile * CLUSTER + s.rank, bytes = int(a.ranks * s.count * sizeof(Real));

    // Where the numbers lie of the step that is loaded next: of the neuron, of its memory, of its hidden layer, of what is left.
    i64 of_neuron = row_0 + (i64)(length - 1) * num_neuron + n, of_lane = of_neuron * MEMORY + s.lane, of_hidden = of_neuron * HIDDEN + s.lane;
    i64 left = of_neuron * ROWS + s.lane;
    const auto load = [&](int t) {
        Step step = {};
        if (HIDDEN && s.row) step.sum = a.sums[of_hidden];
        if (s.memory) {
            step.th = a.tanh[of_lane];
            step.before = t ? a.memory[of_lane - num_neuron * MEMORY] : a.m_0[at * MEMORY + s.lane];
        }
        if (s.neuron) {
            if (a.q) step.q = a.q[of_neuron];
            if (high_pass) step.r_before = t ? a.r[of_neuron - num_neuron] : a.r_0[at];
            if (a.grad_a) step.grad = a.grad_a[of_neuron];
        }
        if (t > AHEAD) {
            if (HIDDEN && s.row) prefetch_far(a.sums + of_hidden - AHEAD * num_neuron * HIDDEN);
            if (s.memory) prefetch_far(a.tanh + of_lane - AHEAD * num_neuron * MEMORY), prefetch_far(a.memory + of_lane - AHEAD * num_neuron * MEMORY);
            if (s.neuron && s.lane == 0) {
                if (a.q) prefetch_far(a.q + of_neuron - AHEAD * num_neuron);
                if (high_pass) prefetch_far(a.r + of_neuron - AHEAD * num_neuron);
                if (a.grad_a) prefetch_far(a.grad_a + of_neuron - AHEAD * num_neuron);
            }
        }
        of_neuron -= num_neuron, of_lane -= num_neuron * MEMORY, of_hidden -= num_neuron * HIDDEN;
        return step;
    };
    // What a neuron got back from all that read it; all threads of the block call it.
    const auto returned = [&](int turn) {
        receive(arrivals[turn & 1], bytes, turn >> 1);
        Real sum = Real(0);
        if (s.neuron)
#pragma unroll
            for (int k = 0; k < CLUSTER; k++) sum += entry(parts[((turn & 1) * tile + s.local) * PARTS + k / LANES_OF_VECTOR], k % LANES_OF_VECTOR);
        return sum * heard;
    };
    Real after = s.memory && length ? a.memory[of_lane] : Real(0);
    Step next = {};
    if (length) next = load(length - 1);
    wait_for_cluster();  // all blocks are ready for what is sent to them

    for (int t = length - 1, turn = 0; t >= 0; t--, turn++) {
        const Step now = next;
        if (t) next = load(t - 1);
        Real of_y = now.grad + (turn ? Real(0) : of_last);
        if (reads_layer && turn) of_y += returned(turn - 1);
        Real grad = Real(0), of_r = Real(0), of_row = Real(0);
        if (s.warp) {
            if (a.output == OUTPUT_RELU && !(now.q > Real(0))) of_y = Real(0);
            if (a.output == OUTPUT_SPIKE) of_y *= slope_at((int)a.surrogate, a.slope, now.q);
            of_bias += of_y;
            if (high_pass) of_r = r - of_y;
            of_y += (Real(1) - kappa_r) * of_r;
            grad = m + w_y * of_y;
            const Real of_o = gain * (Real(1) - now.th * now.th) * grad + (now.th > Real(0) ? size : now.th < Real(0) ? -size : Real(0));
            of_row = of_o;
            of_last_bias += of_o;
            if (s.memory) ((Real *)decayed)[own] = kappa * now.before;
            if (HIDDEN) {
                if (s.memory) ((Real *)outputs)[own] = of_o;
                __syncwarp();
                if (s.row) of_row = product(of_outputs, outputs + s.local * STRIDE) * activation_slope(a.activation, now.sum);
            }
            if (s.row) {
                ((Real *)rows)[own] = of_row;
                if (reads_layer) ((Real *)sums)[of_sum] = of_row;
            }
        }
        __syncthreads();  // the gradients of the block's sums are there
        if (reads_layer) {
            const Real part = shared_sum(s, of_rows, sums);
            if (source) send(part, ((Real *)(parts + (turn & 1) * tile * PARTS))[to_part], arrivals[turn & 1], to_block);
        }
        if (s.warp) {
            if (s.row) a.grad_sums[left] = of_row;
            left -= num_neuron * ROWS;
            of_w_y += of_y * after;
            of_gain += grad * now.th;
            if (high_pass) {
                of_kappa_r += of_r * (now.r_before - over_lanes(w_y * after, OUTPUT_LANES));
                r = kappa_r * of_r;
            }
            const Real of_before = s.memory ? grad + product(of_decayed, rows + s.local * STRIDE) : Real(0);
            of_kappa += of_before * now.before;
            if (s.row) {
                const Real h = HIDDEN ? activated(a.activation, now.sum) : Real(0);
#pragma unroll
                for (int i = 0; i < MEMORY; i++) {
                    of_first[i] += of_row * number(decayed + s.local * STRIDE, i);
                    if (HIDDEN) of_last_layer[i] += h * number(outputs + s.local * STRIDE, i);
                }
            }
            m = kappa * of_before;
            after = now.before;
        }
        __syncthreads();  // they have been read
    }
    Real of_a = length ? Real(0) : of_last;
    if (reads_layer && length) of_a = returned(length - 1);
    wait_for_cluster();  // nobody sends any more

    Real *to = a.grads + (i64)blockIdx.x * PARAMETERS * num_neuron;
    if (s.memory) {
        a.grad_m_0[at * MEMORY + s.lane] = m;
        to[k] = of_w_y;
        to[num_neuron * MEMORY + k] = of_kappa;
        to[2 * num_neuron * MEMORY + k] = of_gain * Real(TANH_SCALE);
    }
    to += 3 * num_neuron * MEMORY;
    if (s.neuron && s.lane == 0) {
        a.grad_a_0[at] = of_a;
        to[n] = of_bias;
        to[num_neuron + n] = of_kappa_r;
        if (high_pass) a.grad_r_0[at] = r;
    }
    to += 2 * num_neuron;
#pragma unroll
    for (int i = 0; i < MEMORY; i++) {
        if (s.row) to[(n * ROWS + s.lane) * MEMORY + i] = of_first[i];
        if (HIDDEN && s.row) to[num_neuron * ROWS * MEMORY + (n * MEMORY + i) * HIDDEN + s.lane] = of_last_layer[i];
    }
    if (HIDDEN && s.memory) to[2 * num_neuron * ROWS * MEMORY + k] = of_last_bias;
    for (i64 t = length; s.row && t < a.num_steps; t++) a.grad_sums[(row_0 + t * num_neuron + n) * ROWS + s.lane] = Real(0);
}
