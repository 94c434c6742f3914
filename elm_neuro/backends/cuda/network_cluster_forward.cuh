// A layer of ELM neurons in a cluster, forward: network_cluster.cuh.
#pragma once
#include "network_cluster.cuh"

struct NetworkCluster : ClusterLayer {
    const Real *from_input;       // (batch, step, neuron, rows), with the first layer's biases
    const Real *last_bias;        // (neuron, memory), null without a hidden layer
    const Real *a_0, *m_0, *r_0;  // (batch, neuron, ..); r_0 null where unused
    Real *a, *change;             // (batch, step, neuron), (batch, neuron)
    Real *a_last, *m_last, *r_last;
    Real *sums, *tanh, *memory, *q, *r;  // kept of every step, or null
};

static_assert(sizeof(NetworkCluster) == ELM_BYTES_NETWORKCLUSTER, "structures of network_cluster_forward.cuh and _network_cluster.py");

ELM_CLUSTER_KERNEL(elm_network_cluster, NetworkCluster, ELM_THREADS) {
    ELM_DYNAMIC_SHARED(Vector, shared);
    const Seat s(a);
    const int d = (int)a.num_memory, lanes = (int)a.lanes, tile = (int)a.tile, num_neuron = (int)a.num_neuron, n = s.base + s.local;
    const i64 sample = blockIdx.x, length = a.lengths ? a.lengths[sample] : a.num_steps, of_sample = sample * num_neuron;
    const bool reads_layer = a.map && s.count, unit = s.sum < s.count * s.rows, memory = s.neuron && s.lane < d;
    Arrivals *const arrivals = (Arrivals *)shared;  // of even and odd steps
    Vector *const fed = shared + 16 / sizeof(Vector);  // what the layer reads of itself, after even and odd steps
    const int of_step = reads_layer ? ELM_TERMS / LANES_OF_VECTOR * lanes : 0;
    Vector *const h = fed + 2 * of_step;                      // of each neuron: what the last layer reads, or its sums where it is the first
    Vector *const decayed = h + tile * VECTORS_OF_WIDE;       // its memory
    Real *const alone = (Real *)(decayed + tile * VECTORS_OF_WIDE);  // what inputs and its own memory add to the sums

    Real *const zeroed = (Real *)fed;
    const int numbers = (2 * of_step + 3 * tile * VECTORS_OF_WIDE) * LANES_OF_VECTOR;
    for (int k = threadIdx.x; k < numbers; k += blockDim.x) zeroed[k] = Real(0);
    if (threadIdx.x == 0) prepare(arrivals[0]), prepare(arrivals[1]);
    __syncthreads();
    if (reads_layer)
        for (int k = threadIdx.x; k < num_neuron; k += blockDim.x)
            zeroed[of_step * LANES_OF_VECTOR + k] = a.a_0[of_sample + k] * (a.mask ? a.mask[of_sample + k] : Real(1));

    Real of_neurons[ELM_TERMS], of_memory[ELM_WIDE], of_hidden[ELM_WIDE];
    const i64 in = a.num_branch + d;
#pragma unroll
    for (int c = 0; c < ELM_TERMS; c++) {
        const int k = input_of(a, s, c);
        of_neurons[c] = unit && reads_layer && k < num_neuron ? a.map[((i64)k * num_neuron + s.base) * s.rows + s.sum] : Real(0);
    }
#pragma unroll
    for (int c = 0; c < ELM_WIDE; c++) {
        of_memory[c] = s.neuron && s.lane < s.rows && c < d ? a.first_layer[((i64)n * s.rows + s.lane) * in + a.num_branch + c] : Real(0);
        of_hidden[c] = memory && c < a.hidden ? a.last_layer[((i64)n * d + s.lane) * a.hidden + c] : Real(0);
    }
    const Real kappa = memory ? a.kappa_m[n * d + s.lane] : Real(0), gain = memory ? a.gain[n * d + s.lane] * Real(TANH_SCALE) : Real(0);
    const Real w_y = memory ? a.w_y[n * d + s.lane] : Real(0), last_bias = memory && a.hidden ? a.last_bias[n * d + s.lane] : Real(0);
    const Real bias = s.neuron ? a.bias[n] : Real(0), kappa_r = s.neuron && a.kappa_r ? a.kappa_r[n] : Real(0);
    const Real heard = s.neuron && a.mask ? a.mask[of_sample + n] : Real(1);
    Real m = memory ? a.m_0[(of_sample + n) * d + s.lane] : Real(0), r = s.neuron && a.kappa_r ? a.r_0[of_sample + n] : Real(0);
    Real y = s.neuron ? a.a_0[of_sample + n] : Real(0), change = Real(0);
    int shared_by = CLUSTER;  // lanes that have the sum over a neuron's memory
    while (shared_by < d) shared_by *= 2;
    const int place = s.sum / s.rows * ELM_WIDE + s.sum % s.rows, own = s.local * ELM_WIDE + s.lane;
    const i64 row_0 = sample * a.num_steps * num_neuron;
    const bool arrives = s.neuron && s.lane < s.rows;
    const Real *arriving = a.from_input + (row_0 + n) * s.rows + s.lane;
    const i64 to_next = (i64)num_neuron * s.rows;

    if (memory) ((Real *)decayed)[own] = m *= kappa;
    __syncwarp();
    if (arrives && length) alone[own] = arriving[0] + product(of_memory, decayed + s.local * VECTORS_OF_WIDE, 1);
    wait_for_cluster();  // all blocks are ready for what is sent to them

    for (i64 t = 0; t < length; t++) {
        const i64 row = row_0 + t * num_neuron + n;
        const bool more = t + 1 < length;
        arriving += to_next;
        const Real next = arrives && more ? arriving[0] : Real(0);
        if (arrives && t + AHEAD < length) prefetch_far(arriving + (AHEAD - 1) * to_next);
        if (reads_layer && t) receive(arrivals[(t - 1) % 2], num_neuron * (int)sizeof(Real), (t - 1) / 2);
        Real sum = reads_layer ? product(of_neurons, fed + (t + 1) % 2 * of_step + s.part, lanes) : Real(0);
        sum = over_lanes(sum, lanes);
        if (unit && s.part == 0) {
            sum += alone[place];
            if (a.hidden) {
                if (a.sums) a.sums[(row_0 + t * num_neuron + s.base) * s.rows + s.sum] = sum;
                sum = activated(a.activation, sum);
            }
            ((Real *)h)[place] = sum;
        }
        __syncthreads();  // the neurons' sums are there
        if (s.neuron) {
            const Real o = a.hidden ? last_bias + product(of_hidden, h + s.local * VECTORS_OF_WIDE, 1) : memory ? ((Real *)h)[own] : Real(0);
            const Real th = tanh(Real(TANH_SLOPE) * o), after = m + gain * th;
            y = over_lanes(w_y * after, shared_by);
            change += o < Real(0) ? -o : o;
            if (a.kappa_r) {
                r = kappa_r * r + (Real(1) - kappa_r) * y;
                y -= r;
            }
            y += bias;
            const Real before = y;
            if (a.output == OUTPUT_RELU) y = y < Real(0) ? Real(0) : y;
            if (a.output == OUTPUT_SPIKE) y = y > Real(0) ? Real(1) : Real(0);
            if (reads_layer && more && s.lane < a.ranks)
                send(y * heard, ((Real *)(fed + t % 2 * of_step))[n], arrivals[t % 2], s.lane);
            m = kappa * after;
            if (memory) {
                ((Real *)decayed)[own] = m;
                if (a.tanh) a.tanh[row * d + s.lane] = th;
                if (a.memory) a.memory[row * d + s.lane] = after;
                if (!more) a.m_last[(of_sample + n) * d + s.lane] = after;
            }
            if (s.lane == 0) {
                a.a[row] = y;
                if (a.q) a.q[row] = before;
                if (a.r) a.r[row] = r;
            }
            __syncwarp();
            if (arrives) alone[own] = next + product(of_memory, decayed + s.local * VECTORS_OF_WIDE, 1);
        }
        __syncthreads();  // what each neuron adds alone is there
    }
    wait_for_cluster();  // nobody sends any more

    if (memory && length == 0) a.m_last[(of_sample + n) * d + s.lane] = a.m_0[(of_sample + n) * d + s.lane];
    if (s.neuron) {
        change = over_lanes(memory ? change : Real(0), WARP);
        if (s.lane == 0) {
            a.a_last[of_sample + n] = y;
            a.change[of_sample + n] = change / Real(d);
            if (a.kappa_r) a.r_last[of_sample + n] = r;
        }
        for (i64 t = length + s.lane; t < a.num_steps; t += WARP) a.a[row_0 + t * num_neuron + n] = Real(0);
    }
}
