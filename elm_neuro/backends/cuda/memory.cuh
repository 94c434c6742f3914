// The memory recurrence over a sequence, forward and backward:
//     f_t = kappa_b f_{t-1} + v_t            what has arrived, on the first layer's outputs
//     z_t = f_t + bias + W (kappa m_{t-1})   h_t = act(z_t)
//     m_t = kappa m_{t-1} + gain SCALE tanh(SLOPE (V h_t + c))
// A block holds SAMPLES samples of one neuron from the first step to the last; there is nothing between blocks. Without hidden layers z_t
// itself is what the tanh takes.
#pragma once
#include "products.cuh"

constexpr int MEMORY = ELM_MEMORY, HIDDEN = ELM_HIDDEN, SAMPLES = ELM_SAMPLES, THREADS = ELM_THREADS, DEPTH = ELM_DEPTH;
constexpr bool DEEP = ELM_LAYERS == 1, SILU = ELM_SILU;
constexpr int FIRST = DEEP ? HIDDEN : MEMORY;  // outputs of the first layer

// The products of a forward step, W (kappa m) and V h, and of a backward step, V^T dq and W^T dz, have the same shapes.
typedef Product<FIRST, MEMORY, THREADS, ELM_LANES_UP, SAMPLES, ELM_KEPT_UP, ELM_NEAR_UP> Up;
typedef Product<MEMORY, DEEP ? HIDDEN : MEMORY, THREADS, ELM_LANES_DOWN, SAMPLES, ELM_KEPT_DOWN, ELM_NEAR_DOWN> Down;

constexpr Real SCALE = Real(1.7159), SLOPE = Real(2.0 / 3.0);

struct Matrices {
    i64 up_row, up_column, up_neuron, down_row, down_column, down_neuron;  // strides
    const Real *up, *down;
    Vector *packed;  // (neuron, vector of up, then of down, thread): where a thread reads weights in each step; else null
};

struct Forward {
    i64 batch, num_steps, v_batch, v_time, v_neuron;
    Matrices matrices;
    const i64 *lengths;    // (batch,): valid steps of each sample; null: all
    const Real *kappa_b;   // one number; null: what arrives is integrated already
    const Real *v;         // (batch, time, neuron, first)
    const Real *f_0, *m_0;  // before the first step, (batch, neuron, first) and (batch, neuron, memory); null: zeros
    const Real *bias, *layer_bias;  // of the two layers, (neuron, first) and (neuron, memory); null: none
    const Real *kappa, *gain;       // (neuron, memory)
    Real *memory;          // (neuron, batch, time, memory): m_t
    Real *tanhs, *hidden;  // what the backward pass reads: of each step the tanh, and h (relu) or z (silu); null: not kept
    Real *m_last;          // (batch, neuron, memory)
};

struct Backward {
    i64 batch, num_steps, v_batch, v_time, v_neuron;
    Matrices matrices;
    const i64 *lengths;
    const Real *kappa_b, *m_0, *kappa, *gain;
    const Real *memory, *tanhs, *hidden;
    const Real *grad_memory, *grad_m_last;  // shapes of memory and m_last; null: zeros
    Real *dq;                  // (neuron, batch, time, memory): gradient of what the tanh takes; without hidden layers that is dz
    Real *dz;                  // (neuron, batch, time, first): of z one step later, beside the memory it was computed from; 0 in the last step
    Real *dz_first;            // (neuron, batch, first): of z in the first step; null: not asked for
    Real *dv;                  // shape and strides of v; null: not asked for
    Real *post;                // h once more, where silu kept z
    Real *grad_f_0, *grad_m_0;  // null: not asked for
    Real *sums;                // (neuron, batch, 3 memory + first): over time, of kappa's, gain's, layer_bias's and bias's gradient
};

#if ELM_DOUBLE
ELM_DEVICE Real tanh_of(Real x) { return tanh(x); }
ELM_DEVICE Real sigmoid_of(Real x) { return 1.0 / (1.0 + exp(-x)); }
#else
// 1 - 2 / (exp(2|x|) + 1): off by at most 2e-7, at a third of tanhf's instructions; NaN stays NaN.
ELM_DEVICE Real tanh_of(Real x) { return copysignf(1.0f - __fdividef(2.0f, __expf(2.0f * fabsf(x)) + 1.0f), x); }
ELM_DEVICE Real sigmoid_of(Real x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
#endif

ELM_DEVICE void wait_for_block() {
    if (THREADS == 32)
        __syncwarp();
    else
        __syncthreads();
}
ELM_DEVICE int steps_of(const i64 *lengths, int num_steps, i64 sample, i64 batch) {
    return sample >= batch ? 0 : int(valid_steps(lengths, sample, num_steps));
}
ELM_DEVICE int longest(const i64 *lengths, int num_steps, i64 first, i64 batch) {
    int most = 0;
    for (int s = 0; s < SAMPLES; s++) {
        const int steps = steps_of(lengths, num_steps, first + s, batch);
        most = steps > most ? steps : most;
    }
    return most;
}

// Zeros in the steps that are left: products over all steps read them.
ELM_DEVICE void silence(Real *record, int from, int num_steps, int width) {
    for (int t = from; t < num_steps; t++) record[i64(t) * width] = Real(0);
}

// What one thread owns of a product's outputs, value by value.
template <class P> struct Owned {
    static constexpr int COUNT = P::OWNED;
    int sample[COUNT], row[COUNT];  // sample within the block
    int steps[COUNT];                // of the sample; -1 where there is no such value
    __device__ __forceinline__ Owned(const i64 *lengths, int num_steps, i64 first_sample, i64 batch) {
        const Share share = share_of<P>(threadIdx.x % P::LANES);
#pragma unroll
        for (int e = 0; e < COUNT; e++) {
            const int value = share.first + e;
            sample[e] = value / P::TILE_ROWS;
            row[e] = threadIdx.x / P::LANES * P::TILE_ROWS + value % P::TILE_ROWS;
            const bool mine = value < share.end && row[e] < P::ROWS && first_sample + sample[e] < batch;
            steps[e] = mine ? steps_of(lengths, num_steps, first_sample + sample[e], batch) : -1;
        }
    }
};

// Shared memory of both passes: weights that do not fit the registers, then the operands of the two products. Without hidden layers there is
// one product, whose operand has two places, so that a step needs one barrier only.
constexpr int UP_OPERAND = SAMPLES * Up::WIDTH, DOWN_OPERAND = SAMPLES * (DEEP ? Down::WIDTH : Up::WIDTH);
constexpr int SHARED_BYTES = (Up::NEAR + (DEEP ? Down::NEAR : 0)) * THREADS * int(sizeof(Vector)) + (UP_OPERAND + DOWN_OPERAND) * int(sizeof(Real));

static_assert(sizeof(Matrices) == ELM_BYTES_MATRICES && sizeof(Forward) == ELM_BYTES_FORWARD && sizeof(Backward) == ELM_BYTES_BACKWARD, "structures of memory.cuh and _memory.py");

// Small matrices are read as they are, which saves a launch; those of which threads read a part in each step, from the packed copy.
ELM_DEVICE void take_both(const Matrices &a, i64 neuron, int thread, Vector *room, Weights<Up> &up, Weights<Down> &down) {
    const Vector *packed = a.packed + (Up::FAR + Down::FAR > 0 ? neuron * (Up::VECTORS + (DEEP ? Down::VECTORS : 0)) * THREADS : 0);
    if constexpr (Up::FAR + (DEEP ? Down::FAR : 0) > 0) {
        take_packed(up, packed, room, thread);
        if constexpr (DEEP) take_packed(down, packed + Up::VECTORS * THREADS, room + Up::NEAR * THREADS, thread);
    } else {
        take_weights(up, a.up + neuron * a.up_neuron, a.up_row, a.up_column, room, thread);
        if constexpr (DEEP) take_weights(down, a.down + neuron * a.down_neuron, a.down_row, a.down_column, room + Up::NEAR * THREADS, thread);
    }
}

ELM_KERNEL(elm_pack, Matrices, THREADS, 1) {
    const int vector = blockIdx.x, thread = threadIdx.x, total = Up::VECTORS + (DEEP ? Down::VECTORS : 0);
    const i64 neuron = blockIdx.y;
    Real x[LANES_OF_VECTOR];
#pragma unroll
    for (int i = 0; i < LANES_OF_VECTOR; i++)
        x[i] = vector < Up::VECTORS ? weight_at<Up>(a.up + neuron * a.up_neuron, a.up_row, a.up_column, thread, vector * LANES_OF_VECTOR + i)
                                    : weight_at<Down>(a.down + neuron * a.down_neuron, a.down_row, a.down_column, thread, (vector - Up::VECTORS) * LANES_OF_VECTOR + i);
    a.packed[(neuron * total + vector) * THREADS + thread] = vector_of(x);
}

#if !ELM_BACKWARD
ELM_KERNEL(elm_forward, Forward, THREADS, ELM_BLOCKS) {
    ELM_DYNAMIC_SHARED(Vector, room);
    Real *const decayed = (Real *)(room + (Up::NEAR + (DEEP ? Down::NEAR : 0)) * THREADS), *const activated = decayed + UP_OPERAND;
    const int thread = threadIdx.x, lane_up = thread % Up::LANES, lane_down = thread % Down::LANES;
    const i64 neuron = blockIdx.y, num_neuron = gridDim.y, first_sample = (i64)blockIdx.x * SAMPLES;
    const int num_steps = int(a.num_steps), steps = longest(a.lengths, num_steps, first_sample, a.batch);
    Weights<Up> up;
    Weights<Down> down;
    take_both(a.matrices, neuron, thread, room, up, down);
    for (int i = thread; i < UP_OPERAND + DOWN_OPERAND; i += THREADS) decayed[i] = Real(0);

    // What arrives, by rows of the first layer; the memory, by rows of the last: without hidden layers they are the same.
    const Owned<Up> z(a.lengths, num_steps, first_sample, a.batch);
    const Owned<Down> m(a.lengths, num_steps, first_sample, a.batch);
    constexpr int NZ = Owned<Up>::COUNT, NM = Owned<Down>::COUNT;
    const Real kappa_b = a.kappa_b ? *a.kappa_b : Real(0);
    Real f[NZ], bias[NZ], next[NZ][DEPTH];
    const Real *v[NZ];
    i64 at_z[NZ];
    int to_z[NZ];
#pragma unroll
    for (int e = 0; e < NZ; e++) {
        const i64 sample = first_sample + z.sample[e];
        const bool mine = z.steps[e] >= 0;
        f[e] = mine && a.f_0 ? a.f_0[(sample * num_neuron + neuron) * FIRST + z.row[e]] : Real(0);
        bias[e] = mine && a.bias ? a.bias[neuron * FIRST + z.row[e]] : Real(0);
        v[e] = a.v + sample * a.v_batch + neuron * a.v_neuron + z.row[e];
        at_z[e] = (neuron * a.batch + sample) * a.num_steps * FIRST + z.row[e];
        to_z[e] = z.sample[e] * Down::WIDTH + Down::place(z.row[e]);
#pragma unroll
        for (int i = 0; i < DEPTH; i++) next[e][i] = i < z.steps[e] ? v[e][i * a.v_time] : Real(0);
    }
    Real memory[NM], kappa[NM], gain[NM], layer_bias[NM];
    i64 at_m[NM];
    int to_m[NM];
    wait_for_block();  // the zeros are there
#pragma unroll
    for (int e = 0; e < NM; e++) {
        const i64 sample = first_sample + m.sample[e];
        const bool mine = m.steps[e] >= 0;
        memory[e] = mine && a.m_0 ? a.m_0[(sample * num_neuron + neuron) * MEMORY + m.row[e]] : Real(0);
        kappa[e] = mine ? a.kappa[neuron * MEMORY + m.row[e]] : Real(0);
        gain[e] = mine ? SCALE * a.gain[neuron * MEMORY + m.row[e]] : Real(0);
        layer_bias[e] = mine && a.layer_bias ? a.layer_bias[neuron * MEMORY + m.row[e]] : Real(0);
        at_m[e] = (neuron * a.batch + sample) * a.num_steps * MEMORY + m.row[e];
        to_m[e] = m.sample[e] * Up::WIDTH + Up::place(m.row[e]);
        if (mine) decayed[to_m[e]] = kappa[e] * memory[e];
    }
    wait_for_block();

    for (int start = 0; start < steps; start += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int t = start + d;
            if (t >= steps) break;
            const bool odd = !DEEP && (t & 1);
            // loads of a later step go out before the products, which hide their latency
            Real arrived[NZ];
#pragma unroll
            for (int e = 0; e < NZ; e++) {
                arrived[e] = next[e][d];
                if (t + DEPTH < z.steps[e]) next[e][d] = v[e][(t + DEPTH) * a.v_time];
            }
            Real sum[Up::VALUES];
            multiply(up, odd ? activated : decayed, lane_up, sum);
            Real proposal[NM];
            if constexpr (DEEP) {
#pragma unroll
                for (int e = 0; e < NZ; e++) {
                    f[e] = kappa_b * f[e] + arrived[e];
                    const Real x = sum[e] + (f[e] + bias[e]);
                    const Real h = SILU ? x * sigmoid_of(x) : x > Real(0) ? x : x * Real(0);  // NaN stays NaN
                    if (z.steps[e] > t) {
                        activated[to_z[e]] = h;
                        if (a.hidden) a.hidden[at_z[e] + i64(t) * FIRST] = SILU ? x : h;
                    }
                }
                wait_for_block();
                Real q[Down::VALUES];
                multiply(down, activated, lane_down, q);
#pragma unroll
                for (int e = 0; e < NM; e++) proposal[e] = q[e] + layer_bias[e];
            } else {
#pragma unroll
                for (int e = 0; e < NM; e++) {
                    f[e] = kappa_b * f[e] + arrived[e];
                    proposal[e] = sum[e] + (f[e] + bias[e]);
                }
            }
#pragma unroll
            for (int e = 0; e < NM; e++) {
                const Real y = tanh_of(SLOPE * proposal[e]);
                if (m.steps[e] <= t) continue;
                memory[e] = kappa[e] * memory[e] + gain[e] * y;
                (DEEP || odd ? decayed : activated)[to_m[e]] = kappa[e] * memory[e];
                a.memory[at_m[e] + i64(t) * MEMORY] = memory[e];
                if (a.tanhs) a.tanhs[at_m[e] + i64(t) * MEMORY] = y;
            }
            wait_for_block();
        }
    }
#pragma unroll
    for (int e = 0; e < NM; e++) {
        if (m.steps[e] < 0) continue;
        a.m_last[((first_sample + m.sample[e]) * num_neuron + neuron) * MEMORY + m.row[e]] = memory[e];
        silence(a.memory + at_m[e], m.steps[e], num_steps, MEMORY);
    }
#pragma unroll
    for (int e = 0; e < NZ; e++)
        if (DEEP && a.hidden && z.steps[e] >= 0) silence(a.hidden + at_z[e], z.steps[e], num_steps, FIRST);
}

#else
// The gradient of z, beside the memory that z was computed from.
ELM_DEVICE void keep_z(const Backward &a, i64 at, i64 at_first, int t, Real dz) {
    if (t > 0)
        a.dz[at + i64(t - 1) * FIRST] = dz;
    else if (a.dz_first)
        a.dz_first[at_first] = dz;
}

ELM_KERNEL(elm_backward, Backward, THREADS, ELM_BLOCKS) {
    ELM_DYNAMIC_SHARED(Vector, room);
    Real *const flow_q = (Real *)(room + (Up::NEAR + (DEEP ? Down::NEAR : 0)) * THREADS), *const flow_z = flow_q + UP_OPERAND;
    const int thread = threadIdx.x, lane_up = thread % Up::LANES, lane_down = thread % Down::LANES;
    const i64 neuron = blockIdx.y, num_neuron = gridDim.y, first_sample = (i64)blockIdx.x * SAMPLES;
    const int num_steps = int(a.num_steps), steps = longest(a.lengths, num_steps, first_sample, a.batch);
    Weights<Up> up;
    Weights<Down> down;
    take_both(a.matrices, neuron, thread, room, up, down);
    for (int i = thread; i < UP_OPERAND + DOWN_OPERAND; i += THREADS) flow_q[i] = Real(0);

    const Owned<Up> z(a.lengths, num_steps, first_sample, a.batch);
    const Owned<Down> m(a.lengths, num_steps, first_sample, a.batch);
    constexpr int NZ = Owned<Up>::COUNT, NM = Owned<Down>::COUNT;
    const Real kappa_b = a.kappa_b ? *a.kappa_b : Real(0);
    Real f[NZ], sum_z[NZ], next_z[NZ][DEPTH];  // f: gradient of f_t from the steps after t
    i64 at_z[NZ], at_v[NZ];
    int to_z[NZ];
    const auto load_z = [&](int e, int t) { return DEEP && t >= 0 && t < z.steps[e] ? a.hidden[at_z[e] + i64(t) * FIRST] : Real(0); };
#pragma unroll
    for (int e = 0; e < NZ; e++) {
        const i64 sample = first_sample + z.sample[e];
        f[e] = sum_z[e] = Real(0);
        at_z[e] = (neuron * a.batch + sample) * a.num_steps * FIRST + z.row[e];
        at_v[e] = sample * a.v_batch + neuron * a.v_neuron + z.row[e];
        to_z[e] = z.sample[e] * Down::WIDTH + Down::place(z.row[e]);
#pragma unroll
        for (int i = 0; i < DEPTH; i++) next_z[e][i] = load_z(e, steps - 1 - i);
    }
    Real carry[NM], kappa[NM], gain[NM], sum_kappa[NM], sum_gain[NM], sum_q[NM];  // carry: gradient of m_t from the steps after t
    Real next_grad[NM][DEPTH], next_tanh[NM][DEPTH], next_before[NM][DEPTH];
    i64 at_m[NM], at_m_0[NM];
    int to_m[NM];
    const auto load_m = [&](int e, int i, int t) {
        const bool there = t >= 0 && t < m.steps[e];
        next_grad[e][i] = there && a.grad_memory ? a.grad_memory[at_m[e] + i64(t) * MEMORY] : Real(0);
        next_tanh[e][i] = there ? a.tanhs[at_m[e] + i64(t) * MEMORY] : Real(0);
        next_before[e][i] = !there ? Real(0) : t > 0 ? a.memory[at_m[e] + i64(t - 1) * MEMORY] : a.m_0 ? a.m_0[at_m_0[e]] : Real(0);
    };
#pragma unroll
    for (int e = 0; e < NM; e++) {
        const i64 sample = first_sample + m.sample[e];
        const bool mine = m.steps[e] >= 0;
        at_m[e] = (neuron * a.batch + sample) * a.num_steps * MEMORY + m.row[e];
        at_m_0[e] = (sample * num_neuron + neuron) * MEMORY + m.row[e];
        to_m[e] = m.sample[e] * Up::WIDTH + Up::place(m.row[e]);
        carry[e] = mine && a.grad_m_last ? a.grad_m_last[at_m_0[e]] : Real(0);
        kappa[e] = mine ? a.kappa[neuron * MEMORY + m.row[e]] : Real(0);
        gain[e] = mine ? SCALE * a.gain[neuron * MEMORY + m.row[e]] : Real(0);
        sum_kappa[e] = sum_gain[e] = sum_q[e] = Real(0);
#pragma unroll
        for (int i = 0; i < DEPTH; i++) load_m(e, i, steps - 1 - i);
    }
    wait_for_block();  // the zeros are there

    for (int start = 0; start < steps; start += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) {
            const int t = steps - 1 - start - d;
            if (t < 0) break;
            Real *const to = !DEEP && (t & 1) ? flow_z : flow_q;
            Real before[NM], flow[NM];
#pragma unroll
            for (int e = 0; e < NM; e++) {
                const Real y = next_tanh[e][d], g = carry[e] + next_grad[e][d];
                before[e] = next_before[e][d];
                flow[e] = g;
                load_m(e, d, t - DEPTH);
                if (m.steps[e] <= t) continue;
                const Real q = g * gain[e] * SLOPE * (Real(1) - y * y);
                sum_gain[e] += g * y;
                sum_q[e] += q;
                to[to_m[e]] = q;
                if constexpr (DEEP) {
                    a.dq[at_m[e] + i64(t) * MEMORY] = q;
                } else {
                    keep_z(a, at_z[e < NZ ? e : 0], (neuron * a.batch + first_sample + m.sample[e]) * FIRST + m.row[e], t, q);
                    f[e] = q + kappa_b * f[e];
                    if (a.dv) a.dv[at_v[e] + i64(t) * a.v_time] = f[e];
                }
            }
            wait_for_block();
            Real sum[Up::VALUES];
            multiply(up, to, lane_up, sum);
            Real back[Down::VALUES];
            if constexpr (DEEP) {
#pragma unroll
                for (int e = 0; e < NZ; e++) {
                    const Real x = next_z[e][d];
                    next_z[e][d] = load_z(e, t - DEPTH);
                    if (z.steps[e] <= t) continue;
                    Real slope = x > Real(0) ? Real(1) : Real(0);
                    if (SILU) {
                        const Real s = sigmoid_of(x);
                        slope = s * (Real(1) + x * (Real(1) - s));
                        a.post[at_z[e] + i64(t) * FIRST] = x * s;
                    }
                    const Real dz = sum[e] * slope;
                    f[e] = dz + kappa_b * f[e];
                    sum_z[e] += dz;
                    flow_z[to_z[e]] = dz;
                    keep_z(a, at_z[e], (neuron * a.batch + first_sample + z.sample[e]) * FIRST + z.row[e], t, dz);
                    if (a.dv) a.dv[at_v[e] + i64(t) * a.v_time] = f[e];
                }
                wait_for_block();
                multiply(down, flow_z, lane_down, back);
            } else {
#pragma unroll
                for (int e = 0; e < NM; e++) back[e] = sum[e];
            }
#pragma unroll
            for (int e = 0; e < NM; e++) {
                if (m.steps[e] <= t) continue;
                const Real decayed = flow[e] + back[e];  // gradient of kappa m_{t-1}
                sum_kappa[e] += decayed * before[e];
                carry[e] = kappa[e] * decayed;
            }
        }
    }
#pragma unroll
    for (int e = 0; e < NM; e++) {
        if (m.steps[e] < 0) continue;
        Real *const sums = a.sums + (neuron * a.batch + first_sample + m.sample[e]) * (3 * MEMORY + FIRST) + m.row[e];
        sums[0] = sum_kappa[e];
        sums[MEMORY] = SCALE * sum_gain[e];
        sums[2 * MEMORY] = sum_q[e];
        if (a.grad_m_0) a.grad_m_0[at_m_0[e]] = carry[e];
        if constexpr (DEEP) silence(a.dq + at_m[e], m.steps[e], num_steps, MEMORY);
    }
#pragma unroll
    for (int e = 0; e < NZ; e++) {
        if (z.steps[e] < 0) continue;
        const i64 sample = first_sample + z.sample[e];
        a.sums[(neuron * a.batch + sample) * (3 * MEMORY + FIRST) + 3 * MEMORY + z.row[e]] = DEEP ? sum_z[e] : sum_q[e < NM ? e : 0];
        silence(a.dz + at_z[e], z.steps[e] > 0 ? z.steps[e] - 1 : 0, num_steps, FIRST);
        if (a.dz_first && z.steps[e] == 0) a.dz_first[(neuron * a.batch + sample) * FIRST + z.row[e]] = Real(0);
        if (a.dv) {
            for (int t = z.steps[e]; t < num_steps; t++) a.dv[at_v[e] + i64(t) * a.v_time] = Real(0);
        }
        if (SILU && DEEP) silence(a.post + at_z[e], z.steps[e], num_steps, FIRST);
        if (a.grad_f_0) a.grad_f_0[(sample * num_neuron + neuron) * FIRST + z.row[e]] = kappa_b * f[e];
    }
}
#endif
