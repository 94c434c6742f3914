// A recurrent layer of ELM neurons, backward: network.cuh. It leaves behind the gradients of every step's sums; those of weights are products of them
// with what the sums are of, over all steps at once.
#pragma once
#include "network.cuh"

struct NetworkBackward : Layer {
    const Real *b_0, *m_0, *r_0;                          // (batch, neuron, ..)
    const Real *b, *sums, *tanh, *memory, *q, *r;         // what the forward pass kept
    const Real *grad_a, *grad_change, *grad_a_last, *grad_b_last, *grad_m_last, *grad_r_last;  // null: zero
    Real *grad_sums, *grad_b;                             // (batch, step, neuron, hidden + num_memory), with traces (.., branch)
    Real *grad_a_0, *grad_b_0, *grad_m_0, *grad_r_0;
    Real *grad_w_y, *grad_kappa_m, *grad_gain, *grad_bias, *grad_kappa_b, *grad_kappa_r;  // (batch, neuron, ..), one sample's
    i64 surrogate;
    Slope slope;
};

static_assert(sizeof(NetworkBackward) == ELM_BYTES_NETWORKBACKWARD, "structures of network_backward.cuh and _network.py");

// What a neuron's activity gets back from the branches that read it, in every lane.
ELM_DEVICE Real read_back(const NetworkBackward &a, const Place &p, const Real *of_branches, int n, bool neuron, i64 at) {
    Real sum = Real(0);
    const int end = neuron ? a.first[n + 1] : 0;
    for (int e = (neuron ? a.first[n] : 0) + p.lane; e < end; e += p.lanes) sum += a.w_s[e] * of_branches[a.other[e]];
    sum = over_lanes(sum, p.lanes);
    return neuron && a.mask ? sum * a.mask[at] : sum;
}

ELM_KERNEL(elm_network_backward, NetworkBackward, ELM_THREADS, 1) {
    ELM_DYNAMIC_SHARED(Real, shared);
    Real *room = shared;
    const Place p(a);
    const int d = (int)a.num_memory, branches = (int)a.num_branch, layers = (int)a.num_layers, tile = (int)a.tile, in = branches + d;
    const i64 sample = blockIdx.x, num_neuron = a.num_neuron, first_neuron = sample * num_neuron + p.base, sums = a.hidden + d;
    const i64 length = valid_steps(a.lengths, sample, a.num_steps);
    const bool reads_layer = recurrent(a), trace = a.kappa_b != nullptr, high_pass = a.kappa_r != nullptr;
    Real *const of_branches = reads_layer ? take(room, 2 * num_neuron * branches) : nullptr;  // of this step and the later one
    Real *const m = take(room, tile * d), *const b = trace ? take(room, tile * branches) : nullptr, *const r = high_pass ? take(room, tile) : nullptr;
    Real *const of_w_y = take(room, tile * d), *const of_kappa_m = take(room, tile * d), *const of_gain = take(room, tile * d);
    Real *const of_bias = take(room, tile), *const of_kappa_b = trace ? take(room, tile * branches) : nullptr;
    Real *const of_kappa_r = high_pass ? take(room, tile) : nullptr;
    Real *const g[2] = {take(room, p.groups * a.widest) + p.group * a.widest, take(room, p.groups * a.widest) + p.group * a.widest};
    const Weights w(a, p, room);
    for (int k = threadIdx.x; k < p.count * d; k += blockDim.x) {
        m[k] = a.grad_m_last ? a.grad_m_last[first_neuron * d + k] : Real(0);
        of_w_y[k] = of_kappa_m[k] = of_gain[k] = Real(0);
    }
    for (int k = threadIdx.x; trace && k < p.count * branches; k += blockDim.x) {
        b[k] = a.grad_b_last ? a.grad_b_last[first_neuron * branches + k] : Real(0);
        of_kappa_b[k] = Real(0);
    }
    for (int k = threadIdx.x; k < p.count; k += blockDim.x) {
        of_bias[k] = Real(0);
        if (high_pass) r[k] = a.grad_r_last ? a.grad_r_last[first_neuron + k] : Real(0), of_kappa_r[k] = Real(0);
    }
    __syncthreads();

    for (i64 t = length - 1; t >= 0; t--) {
        for (int start = 0; start < p.count; start += p.groups) {
            const int local = start + p.group, n = p.base + local;
            const bool neuron = local < p.count;
            const i64 step = sample * a.num_steps + t, row = step * num_neuron + n, at = first_neuron + local;
            Real *const left = a.grad_sums + row * sums;
            const Real q = neuron && a.q ? a.q[row] : Real(0);
            const bool heard = neuron && (a.output != OUTPUT_RELU || q > Real(0));  // else its gradient is 0
            Real of_y = neuron && a.grad_a ? a.grad_a[row] : Real(0);
            if (t + 1 == length) {
                if (neuron && a.grad_a_last) of_y += a.grad_a_last[at];
            } else if (reads_layer) {
                of_y += read_back(a, p, of_branches + (t + 1) % 2 * num_neuron * branches, n, heard, at);
            }
            if (!heard) of_y = Real(0);
            if (a.output == OUTPUT_SPIKE) of_y *= slope_at((int)a.surrogate, a.slope, q);
            const Real of_bias_t = of_y, kappa_r = neuron && high_pass ? a.kappa_r[n] : Real(0);
            const Real of_r = neuron && high_pass ? r[local] - of_y : Real(0);
            of_y += (Real(1) - kappa_r) * of_r;
            const Real size = neuron && a.grad_change ? a.grad_change[at] / Real(d) : Real(0);
            Real y = Real(0);
            for (int i = p.lane; neuron && i < d; i += p.lanes) {
                const int own = local * d + i, k = n * d + i;
                const Real th = a.tanh[row * d + i], after = a.memory[row * d + i], grad = m[own] + a.w_y[k] * of_y;
                y += a.w_y[k] * after;
                of_w_y[own] += of_y * after;
                of_gain[own] += grad * th;
                m[own] = grad;
                const Real of_o = Real(TANH_SCALE * TANH_SLOPE) * a.gain[k] * (Real(1) - th * th) * grad + (th > Real(0) ? size : th < Real(0) ? -size : Real(0));
                left[a.hidden + i] = of_o;
                g[(layers - 1) % 2][i] = of_o;
            }
            y = over_lanes(y, p.lanes);
            __syncwarp();
            if (neuron && p.lane == 0) {
                of_bias[local] += of_bias_t;
                if (high_pass) {
                    of_kappa_r[local] += of_r * ((t ? a.r[row - num_neuron] : a.r_0[at]) - y);
                    r[local] = kappa_r * of_r;
                }
            }

#pragma unroll
            for (int l = MAX_LAYERS - 1; l > 0; l--) {
                if (l >= layers) continue;
                const int width = width_of(a, l), inputs = inputs_of(a, l), kept = l == 2 ? width_of(a, 0) : 0;
                const Real *const grad = g[l % 2];
                for (int first = p.lane; neuron && first < inputs; first += TURNS * p.lanes) {
                    Real dot[TURNS];
                    products(a, w, l, local, inputs, first, p.lanes, grad, 0, width, dot);
#pragma unroll
                    for (int c = 0; c < TURNS; c++) {
                        const int i = first + c * p.lanes;
                        if (i >= inputs) break;
                        const Real sum = dot[c] * activation_slope(a.activation, a.sums[row * a.hidden + kept + i]);
                        left[kept + i] = sum;
                        g[(l - 1) % 2][i] = sum;
                    }
                }
                __syncwarp();
            }

            const int width = width_of(a, 0);
            const int from = branched(a) ? 0 : branches;
            for (int first = from + p.lane; neuron && first < in; first += TURNS * p.lanes) {
                Real dot[TURNS];
                products(a, w, 0, local, in, first, p.lanes, g[0], 0, width, dot);
#pragma unroll
                for (int c = 0; c < TURNS; c++) {
                    const int j = first + c * p.lanes, i = j - branches;
                    if (j >= in) break;
                    Real sum = dot[c];
                    if (i >= 0) {
                        sum += m[local * d + i];
                        of_kappa_m[local * d + i] += sum * (t ? a.memory[(row - num_neuron) * d + i] : a.m_0[at * d + i]);
                        m[local * d + i] = a.kappa_m[n * d + i] * sum;
                        continue;
                    }
                    if (trace) {
                        sum += b[local * branches + j];
                        a.grad_b[row * branches + j] = sum;
                        of_kappa_b[local * branches + j] += sum * (t ? a.b[(row - num_neuron) * branches + j] : a.b_0[at * branches + j]);
                        b[local * branches + j] = a.kappa_b[n * branches + j] * sum;
                    }
                    if (reads_layer) of_branches[(t % 2 * num_neuron + n) * branches + j] = sum;
                }
            }
            if (neuron && t) {
                for (i64 k = p.lane; k < a.hidden; k += p.lanes) prefetch(a.sums + (row - num_neuron) * a.hidden + k);
                for (int i = p.lane; i < d; i += p.lanes) prefetch(a.tanh + (row - num_neuron) * d + i);
            }
            __syncwarp();
        }
        if (reads_layer) __syncthreads();  // what the branches got is there to be read
    }

    for (int start = 0; start < p.count; start += p.groups) {
        const int local = start + p.group, n = p.base + local;
        const bool neuron = local < p.count;
        const i64 at = first_neuron + local;
        Real of_a = neuron && length == 0 && a.grad_a_last ? a.grad_a_last[at] : Real(0);
        if (reads_layer && length) of_a = read_back(a, p, of_branches, n, neuron, at);
        if (neuron && p.lane == 0) a.grad_a_0[at] = of_a;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < p.count * d; k += blockDim.x) {
        const i64 at = first_neuron * d + k;
        a.grad_m_0[at] = m[k];
        a.grad_w_y[at] = of_w_y[k];
        a.grad_kappa_m[at] = of_kappa_m[k];
        a.grad_gain[at] = of_gain[k] * Real(TANH_SCALE);
    }
    for (int k = threadIdx.x; trace && k < p.count * branches; k += blockDim.x) {
        a.grad_b_0[first_neuron * branches + k] = b[k];
        a.grad_kappa_b[first_neuron * branches + k] = of_kappa_b[k];
    }
    for (int k = threadIdx.x; k < p.count; k += blockDim.x) {
        a.grad_bias[first_neuron + k] = of_bias[k];
        if (high_pass) a.grad_r_0[first_neuron + k] = r[k], a.grad_kappa_r[first_neuron + k] = of_kappa_r[k];
    }
    for (i64 t = length; t < a.num_steps; t++) {
        const i64 row = (sample * a.num_steps + t) * num_neuron + p.base;
        for (i64 k = threadIdx.x; k < p.count * sums; k += blockDim.x) a.grad_sums[row * sums + k] = Real(0);
        for (i64 k = threadIdx.x; trace && k < p.count * branches; k += blockDim.x) a.grad_b[row * branches + k] = Real(0);
    }
}
