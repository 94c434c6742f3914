// A recurrent layer of ELM neurons, forward: network.cuh.
#pragma once
#include "network.cuh"

struct Network : Layer {
    i64 slices;                          // of the branches, those of most synapses that read neurons first
    const int *branch, *count;           // (32 * slices,): of each lane of a slice, and its synapses; they lie lane by lane, then the next of each
    const Real *from_input;              // (batch, step, neuron, width[0]), with the first layer's biases; with traces (.., branch)
    const Real *layer_bias[MAX_LAYERS];  // (neuron, width); of the first layer null without traces
    const Real *a_0, *b_0, *m_0, *r_0;   // (batch, neuron, ..); b_0, r_0 null where unused
    Real *a, *change;                    // (batch, step, neuron), (batch, neuron)
    Real *a_last, *b_last, *m_last, *r_last;
    Real *b, *sums, *tanh, *memory, *q, *r;  // kept of every step, or null: traces, hidden sums, tanh, m, what the output is of, r
};

static_assert(sizeof(Network) == ELM_BYTES_NETWORK, "structures of network_forward.cuh and _network.py");

ELM_KERNEL(elm_network, Network, ELM_THREADS, 1) {
    ELM_DYNAMIC_SHARED(Real, shared);
    Real *room = shared;
    const Place p(a);
    const int d = (int)a.num_memory, branches = (int)a.num_branch, layers = (int)a.num_layers, tile = (int)a.tile;
    const i64 sample = blockIdx.x, num_neuron = a.num_neuron, first_neuron = sample * num_neuron + p.base;
    const i64 length = valid_steps(a.lengths, sample, a.num_steps);
    const bool reads_layer = recurrent(a), trace = a.kappa_b != nullptr;
    const i64 rows = trace ? branches : width_of(a, 0);
    Real *const fed = reads_layer ? take(room, num_neuron) : nullptr;  // what the layer reads of itself
    Real *const read_back = reads_layer ? take(room, num_neuron * branches) : nullptr;  // what the branches read there
    Real *const m = take(room, tile * d), *const change = take(room, tile);
    Real *const b = trace ? take(room, tile * branches) : nullptr, *const r = a.kappa_r ? take(room, tile) : nullptr;
    Real *const in = take(room, p.groups * inputs_of(a, 0)) + p.group * inputs_of(a, 0);  // [branches, decayed memory]
    Real *const h[2] = {take(room, p.groups * a.widest) + p.group * a.widest, take(room, p.groups * a.widest) + p.group * a.widest};
    const Weights w(a, p, room);
    for (int k = threadIdx.x; k < p.count * d; k += blockDim.x) m[k] = a.m_0[first_neuron * d + k];
    for (int k = threadIdx.x; trace && k < p.count * branches; k += blockDim.x) b[k] = a.b_0[first_neuron * branches + k];
    for (int k = threadIdx.x; k < p.count; k += blockDim.x) {
        change[k] = Real(0);
        if (r) r[k] = a.r_0[first_neuron + k];
        if (fed) fed[k] = a.a_0[first_neuron + k] * (a.mask ? a.mask[first_neuron + k] : Real(1));
    }
    __syncthreads();

    for (i64 t = 0; t < length; t++) {
        if (reads_layer) {
            for (i64 at = threadIdx.x; at < a.slices * WARP; at += blockDim.x) {
                Real sum = Real(0);
                int e = a.first[at / WARP] + int(at % WARP);
                for (int k = a.count[at]; k > 0; k--, e += WARP) sum += a.w_s[e] * fed[a.other[e]];
                if (a.branch[at] >= 0) read_back[a.branch[at]] = sum;
            }
            __syncthreads();  // what the branches read is there
        }
        for (int start = 0; start < p.count; start += p.groups) {
            const int local = start + p.group, n = p.base + local;
            const bool neuron = local < p.count;
            const i64 row = (sample * a.num_steps + t) * num_neuron + n;
            const Real *const arriving = a.from_input + row * rows;
            for (int j = p.lane; neuron && branched(a) && j < branches; j += p.lanes) {
                Real sum = trace ? b[local * branches + j] * a.kappa_b[n * branches + j] + arriving[j] : Real(0);
                if (reads_layer) sum += read_back[n * branches + j];
                if (trace) b[local * branches + j] = sum;
                if (a.b) a.b[row * branches + j] = sum;
                in[j] = sum;
            }
            for (int i = p.lane; neuron && i < d; i += p.lanes) in[branches + i] = a.kappa_m[n * d + i] * m[local * d + i];
            for (i64 k = p.lane; neuron && t + 1 < length && k < rows; k += p.lanes) prefetch(arriving + num_neuron * rows + k);
            __syncwarp();

            const Real *read = in;
            Real y = Real(0), size = Real(0);
            i64 kept = row * a.hidden;
#pragma unroll
            for (int l = 0; l < MAX_LAYERS; l++) {
                if (l >= layers) break;
                const int width = width_of(a, l), inputs = inputs_of(a, l), from = l == 0 && !branched(a) ? branches : 0;
                for (int first = p.lane; neuron && first < width; first += TURNS * p.lanes) {
                    Real dot[TURNS];
                    products(a, w, l, local, width, first, p.lanes, read, from, inputs, dot);
#pragma unroll
                    for (int c = 0; c < TURNS; c++) {
                        const int k = first + c * p.lanes;
                        if (k >= width) break;
                        const Real sum = dot[c] + (l == 0 && !trace ? arriving[k] : a.layer_bias[l][n * width + k]);
                        if (l + 1 < layers) {
                            if (a.sums) a.sums[kept + k] = sum;
                            h[l % 2][k] = activated(a.activation, sum);
                            continue;
                        }
                        const Real th = tanh(Real(TANH_SLOPE) * sum), after = in[branches + k] + a.gain[n * d + k] * Real(TANH_SCALE) * th;
                        size += sum < Real(0) ? -sum : sum;
                        y += a.w_y[n * d + k] * after;
                        m[local * d + k] = after;
                        if (a.tanh) a.tanh[row * d + k] = th;
                        if (a.memory) a.memory[row * d + k] = after;
                    }
                }
                __syncwarp();
                read = h[l % 2];
                kept += width;
            }
            y = over_lanes(y, p.lanes);
            size = over_lanes(size, p.lanes);
            if (neuron && p.lane == 0) {
                if (r) {
                    const Real kappa_r = a.kappa_r[n];
                    r[local] = kappa_r * r[local] + (Real(1) - kappa_r) * y;
                    y -= r[local];
                    if (a.r) a.r[row] = r[local];
                }
                y += a.bias[n];
                if (a.q) a.q[row] = y;
                if (a.output == OUTPUT_RELU) y = y < Real(0) ? Real(0) : y;
                if (a.output == OUTPUT_SPIKE) y = y > Real(0) ? Real(1) : Real(0);
                a.a[row] = y;
                change[local] += size;
                if (fed) fed[local] = y * (a.mask ? a.mask[first_neuron + local] : Real(1));
            }
        }
        if (reads_layer) __syncthreads();  // what the layer did is there to be read
    }

    __syncthreads();
    for (int k = threadIdx.x; k < p.count * d; k += blockDim.x) a.m_last[first_neuron * d + k] = m[k];
    for (int k = threadIdx.x; trace && k < p.count * branches; k += blockDim.x) a.b_last[first_neuron * branches + k] = b[k];
    for (int k = threadIdx.x; k < p.count; k += blockDim.x) {
        Real *const record = a.a + sample * a.num_steps * num_neuron + p.base + k;
        for (i64 t = length; t < a.num_steps; t++) record[t * num_neuron] = Real(0);
        a.a_last[first_neuron + k] = length ? record[(length - 1) * num_neuron] : a.a_0[first_neuron + k];
        a.change[first_neuron + k] = change[k] / Real(d);
        if (r) a.r_last[first_neuron + k] = r[k];
    }
}
