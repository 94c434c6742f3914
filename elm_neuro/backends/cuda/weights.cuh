// From a neuron's parameters to what runs over its steps, and the gradients the other way: routing, synaptic weights, branch sums and the
// input half of the first layer as one table; branch traces at a sample's end; sums over samples.
#pragma once
#include "common.cuh"

constexpr int WEIGHT_THREADS = 256, SIDE = 32, GROUPS = WEIGHT_THREADS / SIDE;

struct Sizes {
    i64 num_neuron, num_input, num_branch, num_synapse, first;
    i64 w1_row;               // of the first layer's weight, (neuron, first, w1_row)
    i64 input, neuron;        // strides of the table, whose rows are contiguous
    i64 routing_neuron;       // 0 where all neurons share it
};

// Between what a neuron learns and what is effective.
struct Learning {
    i64 num_w_s, num_memory, num_tau_s;
    double low, width, delta_t, lambda;  // bounds of the memory time constants and the time step in ms
    i64 v2;
};

struct Table {
    Sizes sizes;
    i64 blocks;               // the grid: these, then those of what is learned
    Learning of;              // zeros: w_s is effective already
    const i64 *begin, *slot;  // (routing, input + 1) and its synapses by input; null: every input is its own branch
    const Real *w_s, *w1;     // w_s as it is learned
    Real *table;
    const Real *proto_tau_m, *tau_s;
    Real *effective_w_s, *kappa_m, *gain, *kappa_b;
};

struct Branches {
    Sizes sizes;
    i64 batch, num_steps, total_batch, total_neuron;
    const i64 *lengths, *routing;
    const Real *w_s, *total;  // (batch, [neuron,] input)
    const Real *kappa_b, *b_0;  // null: zeros before the first step
    Real *b;                  // (batch, neuron, branch)
};

struct Gradients {
    Sizes sizes;
    i64 batch, total_batch, total_neuron;
    i64 num_part, num_group, num_group_y, num_memory, num_output;  // num_part: of grad_table; num_group: of the products
    i64 blocks_w_s, blocks_w1, blocks_tau_m;          // the grid: these three, then those of the sums
    Learning of;                                      // zeros: nothing is learned
    const i64 *routing;
    const Real *w_s, *w1, *kappa;        // what is effective
    const Real *proto_tau_m;
    const Real *grad_table;              // (part, ...strides of the table); null: no gradient of w_s and of the branches' half of w1
    const Real *grad_b, *total;          // null: none
    const Real *sums;                    // (neuron, batch, 3 memory + first) of memory.cuh
    const Real *product_m, *product_h, *product_y;  // (neuron, group, ...): of w1's memory half, the next layer, the readout; null: none
    Real *grad_w_s, *grad_tau_m, *grad_w1;          // grad_w_s of what is learned, where something is
    Real *grad_kappa, *grad_gain, *grad_b2, *grad_b1;  // null: not asked for
    Real *grad_w2, *grad_w_y;
    Real *grad_b_y;                                 // null: product_y has no column of the bias
};

struct Outer {
    i64 num_row, num_part, num_memory, first;   // rows: (sample, step)
    const Real *dz, *memory, *dq, *hidden;      // (neuron, row, ...); dq and hidden null: no layer after the first
    Real *product_m, *product_h;                // (neuron, part, first, memory), (neuron, part, memory, first)
};

struct Effective {
    Learning of;
    const Real *proto_w_s, *proto_tau_m, *tau_s;
    Real *w_s, *kappa_m, *gain, *kappa_b;  // backward: gradients of the first three; null: none
    Real *grad_w_s, *grad_tau_m;
};

static_assert(sizeof(Table) == ELM_BYTES_TABLE && sizeof(Branches) == ELM_BYTES_BRANCHES && sizeof(Gradients) == ELM_BYTES_GRADIENTS && sizeof(Outer) == ELM_BYTES_OUTER && sizeof(Effective) == ELM_BYTES_EFFECTIVE, "structures of weights.cuh and _weights.py");

// As functional/_timescales.py, with a time constant not below its TAU_FLOOR_MS.
constexpr double TAU_FLOOR_MS = 1e-6;
ELM_DEVICE Real number_exp(Real x) {
#if ELM_DOUBLE
    return exp(x);
#else
    return expf(x);
#endif
}
ELM_DEVICE Real decay(Real tau, Real delta_t) { return number_exp(Real(1) / (tau < Real(TAU_FLOOR_MS) ? Real(TAU_FLOOR_MS) : tau) * -delta_t); }
ELM_DEVICE Real sigmoid(Real x) { return Real(1) / (Real(1) + number_exp(-x)); }

ELM_DEVICE Real rectified(Real x) { return x <= Real(0) ? Real(0) : x; }  // a NaN stays

// A thread an entry of each.
ELM_DEVICE void make_effective(const Effective &a, i64 i) {
    const Learning &of = a.of;
    if (i < of.num_w_s) a.w_s[i] = rectified(a.proto_w_s[i]);
    if (i < of.num_tau_s) a.kappa_b[i] = decay(a.tau_s[i], Real(of.delta_t));
    if (i >= of.num_memory) return;
    const Real tau = Real(of.width) * sigmoid(a.proto_tau_m[i]) + Real(of.low), kappa = decay(tau, Real(of.delta_t));
    a.kappa_m[i] = kappa;
    a.gain[i] = of.v2 ? Real(1) - decay(tau, Real(of.lambda * of.delta_t)) : Real(of.lambda) * (Real(1) - kappa);
}
ELM_KERNEL(elm_effective, Effective, WEIGHT_THREADS, 1) { make_effective(a, (i64)blockIdx.x * WEIGHT_THREADS + threadIdx.x); }

// Of a time constant as it is learned, from those of its decay factor and gain.
ELM_DEVICE Real tau_gradient(const Learning &of, Real proto_tau_m, Real of_kappa, Real of_gain) {
    const Real share = sigmoid(proto_tau_m), tau = Real(of.width) * share + Real(of.low);
    Real by_tau = Real(0);
    if (of.v2)
        by_tau = -of_gain * decay(tau, Real(of.lambda * of.delta_t)) * Real(of.lambda * of.delta_t);
    else
        of_kappa -= Real(of.lambda) * of_gain;
    by_tau += of_kappa * decay(tau, Real(of.delta_t)) * Real(of.delta_t);
    by_tau = tau < Real(TAU_FLOOR_MS) ? Real(0) : by_tau / (tau * tau);
    return by_tau * Real(of.width) * share * (Real(1) - share);
}
ELM_KERNEL(elm_effective_backward, Effective, WEIGHT_THREADS, 1) {
    const i64 i = (i64)blockIdx.x * WEIGHT_THREADS + threadIdx.x;
    if (i < a.of.num_w_s) a.grad_w_s[i] = a.proto_w_s[i] <= Real(0) ? Real(0) : a.w_s[i];
    if (i >= a.of.num_memory) return;
    a.grad_tau_m[i] = tau_gradient(a.of, a.proto_tau_m[i], a.kappa_m ? a.kappa_m[i] : Real(0), a.gain ? a.gain[i] : Real(0));
}

// table[input] = sum over its synapses of w1[:, branch] w_s; a thread an entry. What is effective of what is learned is left for who comes after.
ELM_KERNEL(elm_table, Table, WEIGHT_THREADS, 1) {
    const Sizes &n = a.sizes;
    const i64 at = (i64)blockIdx.x * WEIGHT_THREADS + threadIdx.x, row = at % n.first, neuron = at / n.first % n.num_neuron, input = at / n.first / n.num_neuron;
    const bool learns = a.of.num_w_s;
    if (blockIdx.x >= a.blocks)
        make_effective({a.of, a.w_s, a.proto_tau_m, a.tau_s, a.effective_w_s, a.kappa_m, a.gain, a.kappa_b, nullptr, nullptr}, at - a.blocks * WEIGHT_THREADS);
    if (blockIdx.x >= a.blocks || input >= n.num_input) return;
    const Real *w_s = a.w_s + neuron * n.num_branch * n.num_synapse, *w1 = a.w1 + (neuron * n.first + row) * n.w1_row;
    Real sum = Real(0);
    if (a.begin) {
        const i64 routing = n.routing_neuron ? neuron : 0;
        const i64 *begin = a.begin + routing * (n.num_input + 1) + input, *slot = a.slot + routing * n.num_branch * n.num_synapse;
        for (i64 i = begin[0]; i < begin[1]; i++) sum += w1[slot[i] / n.num_synapse] * (learns ? rectified(w_s[slot[i]]) : w_s[slot[i]]);
    } else {
        sum = w1[input] * (learns ? rectified(w_s[input]) : w_s[input]);
    }
    a.table[input * n.input + neuron * n.neuron + row] = sum;
}

ELM_DEVICE double power_of(double kappa, i64 exponent) {
    double result = 1.0;
    for (; exponent > 0; exponent /= 2, kappa *= kappa)
        if (exponent % 2) result *= kappa;
    return result;
}

// b = kappa_b^steps b_0 + sum over the branch's synapses of w_s total; LANES threads a branch.
template <int LANES> ELM_DEVICE void branch_traces(const Branches &a) {
    const Sizes &n = a.sizes;
    const i64 at = ((i64)blockIdx.x * WEIGHT_THREADS + threadIdx.x) / LANES, branch = at % n.num_branch, neuron = at / n.num_branch % n.num_neuron, sample = at / n.num_branch / n.num_neuron;
    const bool mine = sample < a.batch;
    Real sum = Real(0);
    if (mine) {
        const Real *w_s = a.w_s + (neuron * n.num_branch + branch) * n.num_synapse, *total = a.total + sample * a.total_batch + neuron * a.total_neuron;
        const i64 *routing = a.routing ? a.routing + neuron * n.routing_neuron + branch * n.num_synapse : nullptr;
        for (i64 s = threadIdx.x % LANES; s < n.num_synapse; s += LANES) {
            const i64 input = routing ? routing[s] : branch;
            if (input >= 0) sum += w_s[s] * total[input];
        }
    }
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (!mine || threadIdx.x % LANES) return;
    if (a.b_0) sum += Real(power_of(*a.kappa_b, valid_steps(a.lengths, sample, a.num_steps))) * a.b_0[at];
    a.b[at] = sum;
}
ELM_KERNEL(elm_branches, Branches, WEIGHT_THREADS, 1) { branch_traces<32>(a); }
ELM_KERNEL(elm_branches_of_one, Branches, WEIGHT_THREADS, 1) { branch_traces<1>(a); }

ELM_DEVICE Real table_gradient(const Gradients &a, i64 input, i64 neuron, i64 row) {
    const Sizes &n = a.sizes;
    Real sum = Real(0);
    for (i64 part = 0; part < a.num_part; part++) sum += a.grad_table[part * n.num_input * n.num_neuron * n.first + input * n.input + neuron * n.neuron + row];
    return sum;
}

// Of a synapse's weight; a warp a synapse.
ELM_DEVICE void gradient_w_s(const Gradients &a) {
    const Sizes &n = a.sizes;
    const i64 synapse = ((i64)blockIdx.x * WEIGHT_THREADS + threadIdx.x) / SIDE, lane = threadIdx.x % SIDE, of_neuron = n.num_branch * n.num_synapse;
    const i64 neuron = synapse / of_neuron, slot = synapse % of_neuron, branch = slot / n.num_synapse;
    Real sum = Real(0);
    if (neuron < n.num_neuron) {
        const i64 input = a.routing ? a.routing[neuron * n.routing_neuron + slot] : branch;
        for (i64 row = lane; a.grad_table && input >= 0 && row < n.first; row += SIDE) sum += a.w1[(neuron * n.first + row) * n.w1_row + branch] * table_gradient(a, input, neuron, row);
        for (i64 sample = lane; a.grad_b && input >= 0 && sample < a.batch; sample += SIDE)
            sum += a.grad_b[(sample * n.num_neuron + neuron) * n.num_branch + branch] * a.total[sample * a.total_batch + neuron * a.total_neuron + input];
    }
#pragma unroll
    for (int offset = SIDE / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    if (neuron < n.num_neuron && lane == 0) a.grad_w_s[synapse] = a.of.num_w_s && a.w_s[synapse] <= Real(0) ? Real(0) : sum;
}

// Of the first layer's weight on a branch: a block SIDE rows of one branch, its groups some of the synapses each.
ELM_DEVICE void gradient_w1(const Gradients &a, Real *room) {
    const Sizes &n = a.sizes;
    const i64 block = blockIdx.x - a.blocks_w_s, rows = (n.first + SIDE - 1) / SIDE;
    const i64 row = block % rows * SIDE + threadIdx.x % SIDE, branch = block / rows % n.num_branch, neuron = block / rows / n.num_branch;
    Real sum = Real(0);
    for (i64 s = threadIdx.x / SIDE; row < n.first && s < n.num_synapse; s += GROUPS) {
        const i64 slot = branch * n.num_synapse + s, input = a.routing ? a.routing[neuron * n.routing_neuron + slot] : branch;
        if (input >= 0) sum += a.w_s[neuron * n.num_branch * n.num_synapse + slot] * table_gradient(a, input, neuron, row);
    }
    room[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= SIDE || row >= n.first) return;
    for (int group = 1; group < GROUPS; group++) sum += room[group * SIDE + threadIdx.x];
    a.grad_w1[(neuron * n.first + row) * n.w1_row + branch] = sum;
}

// Of the memory time constants, from sums over samples: a block SIDE units, its groups some of the samples each.
ELM_DEVICE void gradient_tau_m(const Gradients &a, Real *room) {
    const i64 unit = (blockIdx.x - a.blocks_w_s - a.blocks_w1) * SIDE + threadIdx.x % SIDE, neuron = unit / a.num_memory, width = 3 * a.num_memory + a.sizes.first;
    const bool mine = neuron < a.sizes.num_neuron;
    Real sums[2];
    for (int which = 0; which < 2; which++) {  // of the decay factor, of the gain
        Real sum = Real(0);
        for (i64 i = threadIdx.x / SIDE; mine && i < a.batch; i += GROUPS) sum += a.sums[(neuron * a.batch + i) * width + which * a.num_memory + unit % a.num_memory];
        room[threadIdx.x] = sum;
        __syncthreads();
        for (int group = 1; threadIdx.x < SIDE && group < GROUPS; group++) sum += room[group * SIDE + threadIdx.x];
        __syncthreads();
        sums[which] = sum;
    }
    if (threadIdx.x < SIDE && mine) a.grad_tau_m[unit] = tau_gradient(a.of, a.proto_tau_m[unit], sums[0], sums[1]);
}

// Sums over samples, or over the groups of a product: a block SIDE columns, its groups some of the terms each.
ELM_DEVICE void gradient_sums(const Gradients &a, Real *room) {
    const Sizes &n = a.sizes;
    const i64 width_y = a.num_memory + (a.grad_b_y ? 1 : 0);
    const i64 widths[4] = {3 * a.num_memory + n.first, n.first * a.num_memory, a.product_h ? a.num_memory * n.first : 0, a.num_output * width_y};
    const i64 width = widths[0] + widths[1] + widths[2] + widths[3];
    const i64 at = (blockIdx.x - a.blocks_w_s - a.blocks_w1 - a.blocks_tau_m) * SIDE + threadIdx.x % SIDE, neuron = at / width;
    i64 column = at % width;
    int which = 0;
    while (which < 3 && column >= widths[which]) column -= widths[which++];
    const Real *from = which == 0 ? a.sums : which == 1 ? a.product_m : which == 2 ? a.product_h : a.product_y;
    const i64 terms = which == 0 ? a.batch : which == 3 ? a.num_group_y : a.num_group;
    const bool mine = neuron < n.num_neuron && from;
    Real sum = Real(0);
    for (i64 i = threadIdx.x / SIDE; mine && i < terms; i += GROUPS) sum += from[(neuron * terms + i) * widths[which] + column];
    room[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x >= SIDE || !mine) return;
    for (int group = 1; group < GROUPS; group++) sum += room[group * SIDE + threadIdx.x];
    if (which == 0) {
        Real *const of[4] = {a.grad_kappa, a.grad_gain, a.grad_b2, a.grad_b1};
        const int part = column < 3 * a.num_memory ? column / a.num_memory : 3;
        if (of[part]) of[part][neuron * (part < 3 ? a.num_memory : n.first) + column - part * a.num_memory] = sum;
    } else if (which == 1)
        a.grad_w1[(neuron * n.first + column / a.num_memory) * n.w1_row + n.w1_row - a.num_memory + column % a.num_memory] = a.kappa[neuron * a.num_memory + column % a.num_memory] * sum;
    else if (which == 2)
        a.grad_w2[neuron * widths[2] + column] = sum;
    else if (column % width_y < a.num_memory)
        a.grad_w_y[(neuron * a.num_output + column / width_y) * a.num_memory + column % width_y] = sum;
    else
        a.grad_b_y[neuron * a.num_output + column / width_y] = sum;
}

ELM_KERNEL(elm_gradients, Gradients, WEIGHT_THREADS, 1) {
    ELM_DYNAMIC_SHARED(Real, room);
    if ((i64)blockIdx.x < a.blocks_w_s)
        gradient_w_s(a);
    else if ((i64)blockIdx.x < a.blocks_w_s + a.blocks_w1)
        gradient_w1(a, room);
    else if ((i64)blockIdx.x < a.blocks_w_s + a.blocks_w1 + a.blocks_tau_m)
        gradient_tau_m(a, room);
    else
        gradient_sums(a, room);
}

// Products over a part of the rows, (out, in): a thread an entry, whose neighbours read the same row of `in`.
ELM_DEVICE void outer(const Real *out, i64 num_out, const Real *in, i64 num_in, i64 num_row, Real *product) {
    for (i64 entry = threadIdx.x; entry < num_out * num_in; entry += WEIGHT_THREADS) {
        const Real *o = out + entry / num_in, *i = in + entry % num_in;
        Real sum = Real(0);
#pragma unroll 4
        for (i64 row = 0; row < num_row; row++) sum += o[row * num_out] * i[row * num_in];
        product[entry] = sum;
    }
}

// The products that elm_gradients adds up, where they are so small that cuBLAS takes longer to be asked; a block a part.
ELM_KERNEL(elm_outer, Outer, WEIGHT_THREADS, 1) {
    const i64 neuron = blockIdx.y, share = (a.num_row + a.num_part - 1) / a.num_part, begin = blockIdx.x * share;
    const i64 rows = begin + share < a.num_row ? share : a.num_row - begin, from = neuron * a.num_row + begin;
    const i64 to = (neuron * a.num_part + blockIdx.x) * a.first * a.num_memory;
    outer(a.dz + from * a.first, a.first, a.memory + from * a.num_memory, a.num_memory, rows, a.product_m + to);
    if (a.dq) outer(a.dq + from * a.num_memory, a.num_memory, a.hidden + from * a.first, a.first, rows, a.product_h + to);
}
