// A layer of ELM neurons in a cluster, forward: network_cluster.cuh.
#pragma once
#include "network_cluster.cuh"

struct NetworkCluster : ClusterLayer {
    const Real *from_input;       // (batch, step, neuron, ROWS), with the first layer's biases
    const Real *last_bias;        // (neuron, MEMORY), null without a hidden layer
    const Real *a_0, *m_0, *r_0;  // (batch, neuron, ..); r_0 null where unused
    Real *a, *change;             // (batch, step, neuron), (batch, neuron)
    Real *a_last, *m_last, *r_last;
    Real *sums, *tanh, *memory, *q, *r;  // kept of every step, or null
};

static_assert(sizeof(NetworkCluster) == ELM_BYTES_NETWORKCLUSTER, "structures of network_cluster_forward.cuh and _network_cluster.py");

ELM_CLUSTER_KERNEL(elm_network_cluster, NetworkCluster, ELM_THREADS) {
    ELM_DYNAMIC_SHARED(Vector, shared);
    const Seat s(a);
    const int tile = (int)a.tile, num_neuron = (int)a.num_neuron, n = s.base + s.local;
    const int length = (int)valid_steps(a.lengths, blockIdx.x, a.num_steps);
    const i64 of_sample = (i64)blockIdx.x * num_neuron, at = of_sample + n, row_0 = of_sample * a.num_steps;
    const bool reads_layer = a.map && s.count, unit = s.part < 2 && s.sum < s.count * ROWS, high_pass = a.kappa_r != nullptr;
    Arrivals *const arrivals = (Arrivals *)shared;  // of even and odd steps
    Vector *const fed = shared + 16 / sizeof(Vector);  // what the layer reads of itself, after even and odd steps
    Vector *const h = fed + 2 * OF_STEP;               // of each neuron: what the last layer reads, or its sums where it is the first
    Vector *const decayed = h + tile * STRIDE;         // its memory
    Real *const alone = (Real *)(decayed + tile * STRIDE);  // what inputs and its own memory add to the sums

    Real *const zeroed = (Real *)fed;
    for (int k = threadIdx.x; k < (2 * OF_STEP + 3 * tile * STRIDE) * LANES_OF_VECTOR; k += blockDim.x) zeroed[k] = Real(0);
    if (threadIdx.x == 0) prepare(arrivals[0]), prepare(arrivals[1]);
    __syncthreads();
    for (int k = threadIdx.x; reads_layer && k < num_neuron; k += blockDim.x)
        zeroed[OF_STEP * LANES_OF_VECTOR + k] = a.a_0[of_sample + k] * (a.mask ? a.mask[of_sample + k] : Real(1));

    Real of_neurons[2][TERMS], of_memory[vectors_of(MEMORY) * LANES_OF_VECTOR], of_hidden[STRIDE * LANES_OF_VECTOR];
    const i64 in = a.num_branch + MEMORY;
#pragma unroll
    for (int c = 0; c < TERMS; c++) {
        const int k = input_of(s, c);
        for (int of = 2 * s.pair, i = 0; i < 2; of++, i++)
            of_neurons[i][c] = reads_layer && of < s.count * ROWS && k < num_neuron ? a.map[((i64)k * num_neuron + s.base) * ROWS + of] : Real(0);
    }
#pragma unroll
    for (int c = 0; c < vectors_of(MEMORY) * LANES_OF_VECTOR; c++)
        of_memory[c] = s.row && c < MEMORY ? a.first_layer[((i64)n * ROWS + s.lane) * in + a.num_branch + c] : Real(0);
#pragma unroll
    for (int c = 0; c < STRIDE * LANES_OF_VECTOR; c++)
        of_hidden[c] = s.memory && c < HIDDEN ? a.last_layer[((i64)n * MEMORY + s.lane) * HIDDEN + c] : Real(0);
    const int k = n * MEMORY + s.lane;
    const Real kappa = s.memory ? a.kappa_m[k] : Real(0), gain = s.memory ? a.gain[k] * Real(TANH_SCALE) : Real(0);
    const Real w_y = s.memory ? a.w_y[k] : Real(0), last_bias = s.memory && HIDDEN ? a.last_bias[k] : Real(0);
    const Real bias = s.neuron ? a.bias[n] : Real(0), kappa_r = s.neuron && high_pass ? a.kappa_r[n] : Real(0);
    const Real heard = s.neuron && a.mask ? a.mask[at] : Real(1);
    Real after = s.memory ? a.m_0[at * MEMORY + s.lane] : Real(0), r = s.neuron && high_pass ? a.r_0[at] : Real(0);
    Real y = s.neuron ? a.a_0[at] : Real(0), change = Real(0);
    const int own = s.local * STRIDE * LANES_OF_VECTOR + s.lane, of_sum = s.sum / ROWS * STRIDE * LANES_OF_VECTOR + s.sum % ROWS;
    const Vector *const own_h = h + s.local * STRIDE, *const own_decayed = decayed + s.local * STRIDE;

    // Where a step's numbers lie: of the neuron, of its memory, of what arrives at its rows, of its block's sums.
    i64 of_neuron = row_0 + n, of_lane = of_neuron * MEMORY + s.lane, arriving = of_neuron * ROWS + s.lane, kept = (row_0 + s.base) * ROWS + s.sum;
    const int rows = num_neuron * ROWS;
    const bool keeps = a.tanh && s.memory, keeps_sum = a.sums && unit, first = s.neuron && s.lane == 0;
    const bool keeps_q = a.q && first, keeps_r = a.r && first, sends = reads_layer && s.neuron && s.lane < a.ranks;

    Real m = kappa * after;
    if (s.memory) ((Real *)decayed)[own] = m;
    __syncwarp();
    if (s.row && length) alone[own] = a.from_input[arriving] + product(of_memory, own_decayed);
    wait_for_cluster();  // all blocks are ready for what is sent to them

    for (int t = 0; t < length; t++) {
        const bool more = t + 1 < length;
        arriving += rows;
        const Real next = s.row && more ? a.from_input[arriving] : Real(0);
        if (s.row && t + AHEAD < length) prefetch_far(a.from_input + arriving + (AHEAD - 1) * rows);
        Real sum = unit ? alone[of_sum] : Real(0);
        if (reads_layer) {
            if (t) receive(arrivals[(t - 1) & 1], num_neuron * (int)sizeof(Real), (t - 1) >> 1);
            sum += shared_sum(s, of_neurons, fed + ((t + 1) & 1) * OF_STEP);
        }
        if (unit) ((Real *)h)[of_sum] = HIDDEN ? activated(a.activation, sum) : sum;
        __syncthreads();  // the neurons' sums are there
        if (s.warp) {
            Real o = Real(0);
            if (HIDDEN) {
                if (s.memory) o = last_bias + product(of_hidden, own_h);
            } else if (s.memory) {
                o = ((Real *)h)[own];
            }
            const Real th = tanh(Real(TANH_SLOPE) * o);
            after = m + gain * th;
            y = over_lanes(w_y * after, OUTPUT_LANES);
            if (high_pass) {
                r = kappa_r * r + (Real(1) - kappa_r) * y;
                y -= r;
            }
            y += bias;
            const Real q = y;
            if (a.output == OUTPUT_RELU) y = y < Real(0) ? Real(0) : y;
            if (a.output == OUTPUT_SPIKE) y = y > Real(0) ? Real(1) : Real(0);
            if (sends && more) send(y * heard, ((Real *)(fed + (t & 1) * OF_STEP))[n], arrivals[t & 1], s.lane);
            m = kappa * after;
            if (s.memory) ((Real *)decayed)[own] = m;
            __syncwarp();
            if (s.row) alone[own] = next + product(of_memory, own_decayed);
            change += o < Real(0) ? -o : o;
            if (keeps) a.tanh[of_lane] = th, a.memory[of_lane] = after;
            if (first) a.a[of_neuron] = y;
            if (keeps_q) a.q[of_neuron] = q;
            if (keeps_r) a.r[of_neuron] = r;
            of_neuron += num_neuron, of_lane += num_neuron * MEMORY;
        }
        if (keeps_sum) a.sums[kept] = sum;
        kept += rows;
        __syncthreads();  // what each neuron adds alone is there
    }
    wait_for_cluster();  // nobody sends any more

    if (s.memory) a.m_last[at * MEMORY + s.lane] = after;
    change = over_lanes(change, GROUP);
    if (first) {
        a.a_last[at] = y;
        a.change[at] = change / Real(MEMORY);
        if (high_pass) a.r_last[at] = r;
    }
    for (i64 t = length + s.lane; s.neuron && t < a.num_steps; t += GROUP) a.a[row_0 + t * num_neuron + n] = Real(0);
}
