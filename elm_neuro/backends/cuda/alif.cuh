// A layer of adaptive LIF neurons over a sequence, as native/alif.h writes it: a block a sample, a thread a neuron. Spikes reach the layer
// latency + 1 steps later, so that many steps need one barrier: what arrives in them is the spikes of steps before them. Loads of up to AHEAD
// steps are asked for before the first of them is waited for.
#pragma once
#include "common.cuh"
#include "surrogates.cuh"

constexpr int WARP = 32, WARPS = ELM_THREADS / WARP, AHEAD = ELM_AHEAD, SENDERS = 4;

// Between what a neuron learns and what is effective, as backends/alif/_learned.py.
struct Ranges {
    i64 learned;                                    // 0: beta, p and b are effective already
    double low_beta, high_beta, low_p, high_p, low_b, high_b;
};

struct Alif {
    i64 num_steps, num_neuron, history, chunk;      // history: latency + 1; chunk: steps between barriers, at most that; AHEAD is a multiple of it
    i64 blocks;                                     // what is kept is the course of native/alif_blocks.h: without the block's own spike
    Ranges ranges;
    const i64 *lengths;                             // null: all steps are valid
    const Real *current, *bias;                     // (batch, step, neuron), (neuron)
    const Real *beta, *p, *b;                       // p, b: null without adaptation
    const Real *by_sender;                          // W_rec (from, to), null without
    const Real *v_0, *a_0, *s_0;                    // (batch, neuron), s_0 (batch, history, neuron); null: zeros
    const Real *blocked;                            // (batch, history - 1, neuron): 1 where s_0 leaves a step without input; null: nowhere
    Real *spikes, *v_last, *a_last, *s_last;
    Real *membrane, *adaptation, *open;             // shape of spikes: before the reset, before the step, what the input is multiplied by; null: not kept
};

struct AlifBackward {
    i64 num_steps, num_neuron, history, chunk, through_reset;
    Ranges ranges;
    const i64 *lengths;
    const Real *beta, *p, *b;
    const Real *w_rec;                              // (to, from), null where no gradient is fed back
    const Real *v_0, *spikes, *membrane, *adaptation, *open;
    const Real *grad_spikes, *grad_v_last, *grad_a_last, *grad_s_last;  // null: zeros
    Real *grad_current;                             // shape of current
    Real *grad_v_0, *grad_a_0, *grad_s_0;           // null: not asked for; grad_s_0 without what goes through w_rec
    Real *sums;                                     // (batch, 4, neuron): gradients of beta, p, b and the bias
    i64 grad_batch, grad_step, grad_neuron;         // strides of grad_spikes
    Slope slope;
};

static_assert(sizeof(Alif) == ELM_BYTES_ALIF && sizeof(AlifBackward) == ELM_BYTES_ALIFBACKWARD, "structures of alif.cuh and _alif.py");

// A parameter of a neuron, and the derivative by what is learned.
struct Parameter {
    Real value, derivative;
};
ELM_DEVICE Parameter parameter(const Real *of, i64 j, i64 learned, bool either_sign, double low, double high) {
    const Real x = of ? of[j] : Real(0), size = either_sign && x < Real(0) ? -x : x;
    if (!learned) return {x, Real(1)};
    if (size < Real(low)) return {Real(low), Real(0)};
    if (size > Real(high)) return {Real(high), Real(0)};
    return {size, either_sign && !(x > Real(0)) ? x < Real(0) ? Real(-1) : Real(0) : Real(1)};
}
struct Parameters {
    Parameter beta, p, b;
};
template <class Arguments> ELM_DEVICE Parameters parameters(const Arguments &a, i64 j) {
    const Ranges &of = a.ranges;
    return {parameter(a.beta, j, of.learned, false, of.low_beta, of.high_beta), parameter(a.p, j, of.learned && a.p, true, of.low_p, of.high_p),
            parameter(a.b, j, of.learned && a.b, true, of.low_b, of.high_b)};
}

// A neuron from the state before a block of history steps on: the membrane runs on without reset, the threshold without the block's own spike.
struct AlifCourse {
    Real membrane, adaptation, open;
    int rest;  // steps that the spikes before the block leave without input
};

// A ring of rows of bits, a bit each neuron of a step; rows: history + chunk, of which a chunk begins in row `now`. A row of zeros follows.
struct Ring {
    unsigned *bits;
    int rows, now;
};
ELM_DEVICE int row_of(const Ring &ring, int step) {
    const int at = ring.now + step;
    return (at < ring.rows ? at : at - ring.rows) * WARPS;
}

// What the neurons that fired history steps before the steps from `first` to `last` of AHEAD send, by sender.
ELM_DEVICE void add_fed_back(const Alif &a, const Ring &ring, int first, int last, const Real *by_sender, Real (&current)[AHEAD]) {
    const int n = (int)a.num_neuron, chunk = (int)a.chunk;
    int row[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) row[k] = k >= first && k < last ? row_of(ring, k - first + chunk) : ring.rows * WARPS;  // history rows back
    for (int w = 0; w * WARP < n; w++) {
        unsigned bits[AHEAD], any = 0;
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            bits[k] = ring.bits[row[k] + w];
            any |= bits[k];
        }
        while (any) {  // a neuron fires in few of the steps: a sender's weight is loaded once
            unsigned sender[SENDERS];
            Real weight[SENDERS];
#pragma unroll
            for (int i = 0; i < SENDERS; i++, any &= any - 1) {
                sender[i] = any & (0u - any);
                weight[i] = any ? by_sender[(w * WARP + __ffs((int)any) - 1) * n] : Real(0);
            }
#pragma unroll
            for (int i = 0; i < SENDERS; i++)
#pragma unroll
                for (int k = 0; k < AHEAD; k++)
                    if (bits[k] & sender[i]) current[k] += weight[i];
        }
    }
}

// What the spikes before the first step send.
ELM_DEVICE void add_fed_back_before(const Alif &a, i64 start, int count, const Real *by_sender, Real (&current)[AHEAD]) {
    const i64 n = a.num_neuron;
    const Real *s_0 = a.s_0 + (blockIdx.x * a.history + start) * n;
    for (i64 from = 0; from < n; from++) {
        const Real weight = by_sender[from * n];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const Real sent = k < count && start + k < a.history ? s_0[k * n + from] : Real(0);
            if (sent != Real(0)) current[k] += sent * weight;
        }
    }
}

// What arrives from outside in the steps from `start` on.
ELM_DEVICE void load(Real (&current)[AHEAD], const Real *of_neuron, i64 start, i64 length, i64 n) {
    if (start >= length) return;
    const int width = (int)n, last = length - start < AHEAD ? (int)(length - start) - 1 : AHEAD - 1;
#pragma unroll
    for (int k = 0; k < AHEAD; k++) current[k] = of_neuron[start * n + (k < last ? k : last) * width];
}

// Spikes of the last history + chunk steps are kept in shared memory, a bit each: a chunk reads and writes different rows.
ELM_KERNEL(elm_alif, Alif, ELM_THREADS, 1) {
    ELM_DYNAMIC_SHARED(unsigned, fired);
    const i64 sample = blockIdx.x, n = a.num_neuron, length = valid_steps(a.lengths, sample, a.num_steps);
    const bool neuron = threadIdx.x < n, adaptive = a.b != nullptr;
    const i64 j = neuron ? threadIdx.x : 0, row = sample * a.num_steps * n + j, at = sample * n + j;
    const int width = (int)n, history = (int)a.history, chunk = (int)a.chunk;
    const Parameters of = parameters(a, j);
    const Real beta = of.beta.value, p = of.p.value, b = of.b.value, bias = a.bias[j];
    const Real *by_sender = a.by_sender ? a.by_sender + j : nullptr;
    Real v = a.v_0 ? a.v_0[at] : Real(0), adaptation = a.a_0 ? a.a_0[at] : Real(0);
    int rest = 0, step = 0;  // step: of the block
    AlifCourse course = {};
    Ring ring = {fired, history + chunk, 0};
    if (a.by_sender)
        for (int i = threadIdx.x; i < (ring.rows + 1) * WARPS; i += ELM_THREADS) fired[i] = 0;
    if (a.by_sender) __syncthreads();
    Real next[AHEAD];
    load(next, a.current + row, 0, length, n);
    for (i64 start = 0; start < length; start += AHEAD) {
        const int count = length - start < AHEAD ? (int)(length - start) : AHEAD;
        const i64 here = row + start * n;
        Real *const spikes = a.spikes + here, *const membranes = a.membrane ? a.membrane + here : nullptr;
        Real *const opens = a.membrane ? a.open + here : nullptr, *const adaptations = a.membrane && adaptive ? a.adaptation + here : nullptr;
        Real current[AHEAD], unblocked[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            current[k] = next[k] + bias;
            unblocked[k] = Real(1);
        }
        load(next, a.current + row, start + AHEAD, length, n);  // while these steps run
        if (a.blocked && start < history - 1) {
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (k < count && start + k < history - 1) unblocked[k] -= a.blocked[(sample * (history - 1) + start + k) * n + j];
        }
        if (a.by_sender && a.s_0 && start < history) add_fed_back_before(a, start, count, by_sender, current);
        for (int first = 0; first < count; first += chunk) {
            const int last = first + chunk < count ? first + chunk : count;
            if (a.by_sender && start + last > history) add_fed_back(a, ring, first, last, by_sender, current);
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (k < first || k >= last) continue;
                const Real open = rest > 0 ? Real(0) : unblocked[k], membrane = beta * v + open * current[k];
                if (a.blocks) {
                    if (step == 0) course = {v, adaptation, Real(0), rest};
                    course.open = course.rest > 0 ? Real(0) : unblocked[k];
                    course.membrane = beta * course.membrane + course.open * current[k];
                } else {
                    course = {membrane, adaptation, open, 0};
                }
                const bool fires = neuron && membrane - (adaptive ? b * adaptation + Real(1) : Real(1)) > Real(0);
                if (a.by_sender) {
                    const unsigned bits = __ballot_sync(~0u, fires);
                    if (threadIdx.x % WARP == 0) fired[row_of(ring, k - first) + threadIdx.x / WARP] = bits;
                }
                if (neuron) {
                    const int offset = k * width;  // of 32 bits: a step's addresses take as long as all else
                    spikes[offset] = fires ? Real(1) : Real(0);
                    if (membranes) {
                        membranes[offset] = course.membrane;
                        opens[offset] = course.open;
                        if (adaptive) adaptations[offset] = course.adaptation;
                    }
                }
                course.adaptation = p * course.adaptation;
                course.rest -= course.rest > 0;
                step = step + 1 == history ? 0 : step + 1;
                v = fires ? Real(0) : membrane;
                if (adaptive) adaptation = p * adaptation + (fires ? Real(1) : Real(0));
                rest = fires ? history - 1 : rest > 0 ? rest - 1 : 0;
            }
            ring.now += last - first;
            if (ring.now >= ring.rows) ring.now -= ring.rows;
            if (a.by_sender) __syncthreads();
        }
    }
    if (!neuron) return;
    for (i64 t = length; t < a.num_steps; t++) a.spikes[row + t * n] = Real(0);
    a.v_last[at] = v;
    a.a_last[at] = adaptation;
    for (i64 i = 0; i < history; i++) {
        const i64 t = length - history + i;
        const Real before = a.s_0 && t < 0 ? a.s_0[(sample * history + t + history) * n + j] : Real(0);
        a.s_last[(sample * history + i) * n + j] = t < 0 ? before : a.spikes[row + t * n];
    }
}

// What was kept of a neuron in steps end - 1, end - 2, .., and of the step before them; gradients of its spikes.
struct Past {
    Real membrane[AHEAD + 1], adaptation[AHEAD + 1], open[AHEAD], gradient[AHEAD];
};
ELM_DEVICE void load(Past &past, const AlifBackward &a, i64 row, i64 j, i64 end, i64 length) {
    const i64 n = a.num_neuron, remembered = length - a.history, here = row + (end - 1) * n;
    const Real *gradient = a.grad_spikes ? a.grad_spikes + blockIdx.x * a.grad_batch + j * a.grad_neuron + (end - 1) * a.grad_step : nullptr;
    const Real *membrane = a.membrane + here, *adaptation = a.b ? a.adaptation + here : nullptr, *open = a.open + here;
    const int width = (int)n, most = end - 1 < AHEAD ? (int)(end - 1) : AHEAD;  // steps before the first are the first
#pragma unroll
    for (int k = 0; k <= AHEAD; k++) {
        const int back = (k < most ? k : most) * width;
        past.membrane[k] = membrane[-back];
        past.adaptation[k] = adaptation ? adaptation[-back] : Real(0);
    }
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        const int back = k < most ? k : most;
        past.open[k] = open[-back * width];
        past.gradient[k] = gradient ? gradient[-back * a.grad_step] : Real(0);
    }
    if (!a.grad_s_last || end <= remembered) return;
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
        const i64 t = end - 1 - k;
        if (t >= 0 && t >= remembered) past.gradient[k] += a.grad_s_last[(blockIdx.x * a.history + t - remembered) * n + j];
    }
}

// What remains of a neuron's backward pass.
ELM_DEVICE void finish(const AlifBackward &a, i64 j, i64 length, Real dv, Real da, Real d_beta, Real d_p, Real d_b, Real d_bias) {
    const i64 sample = blockIdx.x, n = a.num_neuron;
    if (a.grad_v_0) a.grad_v_0[sample * n + j] = dv;
    if (a.grad_a_0) a.grad_a_0[sample * n + j] = da;
    for (i64 i = 0; a.grad_s_0 && i < a.history; i++)
        a.grad_s_0[(sample * a.history + i) * n + j] = a.grad_s_last && i >= length ? a.grad_s_last[(sample * a.history + i - length) * n + j] : Real(0);
    const Parameters of = parameters(a, j);
    Real *sums = a.sums + sample * 4 * n + j;
    sums[0] = d_beta * of.beta.derivative;
    sums[n] = d_p * of.p.derivative;
    sums[2 * n] = d_b * of.b.derivative;
    sums[3 * n] = d_bias;
}

// Backward; the gradient that a spike gets through W_rec is that of what arrived history steps later, in the chunks done before.
ELM_KERNEL(elm_alif_backward, AlifBackward, ELM_THREADS, 1) {
    const i64 sample = blockIdx.x, n = a.num_neuron, length = valid_steps(a.lengths, sample, a.num_steps);
    const bool neuron = threadIdx.x < n, adaptive = a.b != nullptr;
    const i64 j = neuron ? threadIdx.x : 0, row = sample * a.num_steps * n + j;
    const int width = (int)n, chunk = (int)a.chunk;
    const Parameters of = parameters(a, j);
    const Real beta = of.beta.value, p = of.p.value, b = of.b.value;
    Real dv = a.grad_v_last ? a.grad_v_last[sample * n + j] : Real(0), da = a.grad_a_last ? a.grad_a_last[sample * n + j] : Real(0);
    Real d_beta = 0, d_p = 0, d_b = 0, d_bias = 0;
    for (i64 t = a.num_steps - 1; neuron && t >= length; t--) a.grad_current[row + t * n] = Real(0);
    for (i64 end = length; end > 0; end -= AHEAD) {
        const int count = end < AHEAD ? (int)end : AHEAD;
        Real *const arrived = a.grad_current + row + (end - 1) * n;
        Past past;
        load(past, a, row, j, end, length);
        for (int first = 0; first < count; first += chunk) {
            const int last = first + chunk < count ? first + chunk : count;
            const Real *later = a.grad_current + (sample * a.num_steps + end - 1 + a.history) * n;
            for (i64 to = 0; a.w_rec && to < n; to++) {
                const Real weight = a.w_rec[to * n + j];
#pragma unroll
                for (int k = 0; k < AHEAD; k++)
                    if (k >= first && k < last && end - 1 - k + a.history < length) past.gradient[k] += weight * later[to - k * n];
            }
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (k < first || k >= last) continue;
                const i64 t = end - 1 - k;
                const Real membrane = past.membrane[k], adaptation = past.adaptation[k];
                const Real distance = membrane - (adaptive ? b * adaptation + Real(1) : Real(1));
                const bool reset = past.membrane[k + 1] - (adaptive ? b * past.adaptation[k + 1] + Real(1) : Real(1)) > Real(0);
                const Real before = t == 0 ? a.v_0 ? a.v_0[sample * n + j] : Real(0) : reset ? Real(0) : past.membrane[k + 1];
                Real ds = past.gradient[k];
                if (adaptive) ds += da;
                if (a.through_reset) ds -= membrane * dv;
                const Real dx = ds * slope_at(ELM_SURROGATE, a.slope, distance), dm = dx + (distance > Real(0) ? Real(0) : dv);
                if (adaptive) {
                    d_b -= dx * adaptation;
                    d_p += da * adaptation;
                    da = p * da - b * dx;
                }
                d_beta += dm * before;
                const Real d_current = dm * past.open[k];
                d_bias += d_current;
                if (neuron) arrived[-k * width] = d_current;
                dv = beta * dm;
            }
            if (a.w_rec) __syncthreads();
        }
    }
    if (neuron) finish(a, j, length, dv, da, d_beta, d_p, d_b, d_bias);
}

// Backward with the gradient of Blocks, docs/alif.md: what is fed back, the reset and the spike that raises the adaptation are constants, so
// that neurons do not see one another. `da` is the gradient of the adaptation's course, on which a block's own spike has no say until the end.
ELM_KERNEL(elm_alif_blocks_backward, AlifBackward, ELM_THREADS, 1) {
    const i64 sample = blockIdx.x, n = a.num_neuron, j = threadIdx.x, length = valid_steps(a.lengths, sample, a.num_steps);
    if (j >= n) return;
    const bool adaptive = a.b != nullptr;
    const i64 row = sample * a.num_steps * n + j, at = sample * n + j;
    const Parameters of = parameters(a, j);
    const Real beta = of.beta.value, p = of.p.value, b = of.b.value;
    Real du = a.grad_v_last ? a.grad_v_last[at] : Real(0), da = a.grad_a_last ? a.grad_a_last[at] : Real(0);
    Real d_beta = 0, d_p = 0, d_b = 0, d_bias = 0, first = 0;  // first: du of the first step of the block after
    for (i64 t = a.num_steps - 1; t >= length; t--) a.grad_current[row + t * n] = Real(0);
    for (i64 start = (length - 1) / a.history * a.history; start >= 0 && length; start -= a.history) {
        const i64 end = start + a.history < length ? start + a.history : length;
        Real own = 0, own_by_p = 0;  // what the block's spike adds to the adaptation, and its derivative
        bool crossed = false;
#pragma unroll 8
        for (i64 t = start; t < end; t++) {
            const bool fires = a.spikes[row + t * n] > Real(0);
            crossed |= fires;
            own_by_p = p * own_by_p + own;
            own = p * own + (fires ? Real(1) : Real(0));
        }
        d_p += da * own_by_p;
        if (crossed)
            du = Real(0);
        else
            d_beta += first * a.membrane[row + (end - 1) * n];
        Real once = 0, twice = 0;  // sums over the block's later steps
        for (i64 last = end; last > start; last -= AHEAD) {
            const int count = last - start < AHEAD ? (int)(last - start) : AHEAD;
            Past past;
            load(past, a, row, j, last, length);
#pragma unroll
            for (int k = 0; k < AHEAD; k++) {
                if (k >= count) continue;
                const i64 t = last - 1 - k;
                const Real adaptation = past.adaptation[k], distance = past.membrane[k] - (adaptive ? b * adaptation + Real(1) : Real(1));
                once += past.gradient[k];
                twice += once;
                const Real dx = twice * slope_at(ELM_SURROGATE, a.slope, distance);
                du += dx;
                if (adaptive) {
                    d_b -= dx * adaptation;
                    d_p += da * adaptation;
                    da = p * da - b * dx;
                }
                if (t > start) d_beta += du * past.membrane[k + 1];
                first = du;
                const Real d_current = du * past.open[k];
                d_bias += d_current;
                a.grad_current[row + t * n] = d_current;
                du = beta * du;
            }
        }
    }
    if (a.v_0) d_beta += first * a.v_0[at];
    finish(a, j, length, du, da, d_beta, d_p, d_b, d_bias);
}
