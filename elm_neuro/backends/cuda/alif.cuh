// A layer of adaptive LIF neurons over a sequence, as native/alif.h writes it: a block a sample, a thread a neuron. Spikes reach the layer
// latency + 1 steps later, so that many steps need one barrier: what arrives in them is the spikes of steps before them.
#pragma once
#include "common.cuh"
#include "surrogates.cuh"

constexpr int WARP = 32, WARPS = ELM_THREADS / WARP;

struct Alif {
    i64 num_steps, num_neuron, history, chunk;      // history: latency + 1; chunk: steps between barriers, at most that
    i64 blocks;                                     // what is kept is the course of native/alif_blocks.h: without the block's own spike
    const i64 *lengths;                             // null: all steps are valid
    const Real *current;                            // (batch, step, neuron), with the bias
    const Real *beta, *p, *b;                       // p, b: null without adaptation
    const Real *by_sender;                          // W_rec (from, to), null without
    const Real *v_0, *a_0, *s_0;                    // (batch, neuron), s_0 (batch, history, neuron)
    const Real *blocked;                            // (batch, history - 1, neuron): 1 where s_0 leaves a step without input
    Real *spikes, *v_last, *a_last;
    Real *membrane, *adaptation, *open;             // shape of spikes: before the reset, before the step, what the input is multiplied by; null: not kept
};

struct AlifBackward {
    i64 num_steps, num_neuron, history, chunk, through_reset;
    const i64 *lengths;
    const Real *beta, *p, *b;
    const Real *w_rec;                              // (to, from), null where no gradient is fed back
    const Real *v_0, *spikes, *membrane, *adaptation, *open;
    const Real *grad_spikes, *grad_v_last, *grad_a_last;
    Real *grad_current;                             // shape of current
    Real *grad_v_0, *grad_a_0, *grad_beta, *grad_p, *grad_b;  // (batch, neuron)
    Slope slope;
};

static_assert(sizeof(Alif) == ELM_BYTES_ALIF && sizeof(AlifBackward) == ELM_BYTES_ALIFBACKWARD, "structures of alif.cuh and _alif.py");

// A neuron from the state before a block of history steps on: the membrane runs on without reset, the threshold without the block's own spike.
struct AlifCourse {
    Real membrane, adaptation, open;
    i64 rest;  // steps that the spikes before the block leave without input
};

// Spikes of the last history + chunk steps are kept in shared memory, a bit each: a chunk reads and writes different rows.
ELM_KERNEL(elm_alif, Alif, ELM_THREADS, 1) {
    ELM_DYNAMIC_SHARED(unsigned, fired);
    const i64 sample = blockIdx.x, n = a.num_neuron, j = threadIdx.x, length = valid_steps(a.lengths, sample, a.num_steps);
    const bool neuron = j < n, adaptive = a.b != nullptr;
    const i64 row = sample * a.num_steps * n + j, at = sample * n + j, kept = a.history + a.chunk;
    const Real beta = neuron ? a.beta[j] : Real(0), p = neuron && adaptive ? a.p[j] : Real(0), b = neuron && adaptive ? a.b[j] : Real(0);
    Real v = neuron ? a.v_0[at] : Real(0), adaptation = neuron ? a.a_0[at] : Real(0);
    i64 rest = 0, step = 0;  // step: of the block
    AlifCourse course = {};
    for (i64 start = 0; start < length; start += a.chunk) {
        const i64 end = start + a.chunk < length ? start + a.chunk : length;
        for (i64 t = start; t < end; t++) {
            Real current = neuron ? a.current[row + t * n] : Real(0);
            if (a.by_sender && t < a.history) {
                const Real *s_0 = a.s_0 + (sample * a.history + t) * n;
                for (i64 from = 0; from < n; from++)
                    if (s_0[from] != Real(0) && neuron) current += s_0[from] * a.by_sender[from * n + j];
            } else if (a.by_sender) {
                const unsigned *arriving = fired + (t - a.history) % kept * WARPS;
                for (int w = 0; w < WARPS; w++)
                    for (unsigned bits = arriving[w]; bits; bits &= bits - 1) {
                        const i64 from = w * WARP + __ffs((int)bits) - 1;
                        if (neuron) current += a.by_sender[from * n + j];
                    }
            }
            const Real unblocked = neuron && t < a.history - 1 ? Real(1) - a.blocked[(sample * (a.history - 1) + t) * n + j] : Real(1);
            const Real open = rest > 0 ? Real(0) : unblocked, membrane = beta * v + open * current;
            if (a.blocks) {
                if (step == 0) course = {v, adaptation, Real(0), rest};
                course.open = course.rest > 0 ? Real(0) : unblocked;
                course.membrane = beta * course.membrane + course.open * current;
            } else {
                course = {membrane, adaptation, open, 0};
            }
            const bool fires = neuron && membrane - (adaptive ? b * adaptation + Real(1) : Real(1)) > Real(0);
            if (a.by_sender) {
                const unsigned bits = __ballot_sync(~0u, fires);
                if (j % WARP == 0) fired[t % kept * WARPS + j / WARP] = bits;
            }
            if (neuron) {
                a.spikes[row + t * n] = fires ? Real(1) : Real(0);
                if (a.membrane) {
                    a.membrane[row + t * n] = course.membrane;
                    a.adaptation[row + t * n] = course.adaptation;
                    a.open[row + t * n] = course.open;
                }
            }
            course.adaptation = p * course.adaptation;
            course.rest -= course.rest > 0;
            step = step + 1 == a.history ? 0 : step + 1;
            v = fires ? Real(0) : membrane;
            if (adaptive) adaptation = p * adaptation + (fires ? Real(1) : Real(0));
            rest = fires ? a.history - 1 : rest > 0 ? rest - 1 : 0;
        }
        if (a.by_sender) __syncthreads();
    }
    if (!neuron) return;
    for (i64 t = length; t < a.num_steps; t++) a.spikes[row + t * n] = Real(0);
    a.v_last[at] = v;
    a.a_last[at] = adaptation;
}

// Backward; the gradient that a spike gets through W_rec is that of what arrived history steps later, in the chunks done before.
ELM_KERNEL(elm_alif_backward, AlifBackward, ELM_THREADS, 1) {
    const i64 sample = blockIdx.x, n = a.num_neuron, j = threadIdx.x, length = valid_steps(a.lengths, sample, a.num_steps);
    const bool neuron = j < n, adaptive = a.b != nullptr;
    const i64 row = sample * a.num_steps * n + j, at = sample * n + j;
    const Real beta = neuron ? a.beta[j] : Real(0), p = neuron && adaptive ? a.p[j] : Real(0), b = neuron && adaptive ? a.b[j] : Real(0);
    Real dv = neuron && a.grad_v_last ? a.grad_v_last[at] : Real(0), da = neuron && a.grad_a_last ? a.grad_a_last[at] : Real(0);
    Real d_beta = 0, d_p = 0, d_b = 0;
    for (i64 t = a.num_steps - 1; neuron && t >= length; t--) a.grad_current[row + t * n] = Real(0);
    for (i64 end = length; end > 0; end -= a.chunk) {
        const i64 start = end > a.chunk ? end - a.chunk : 0;
        for (i64 t = end - 1; neuron && t >= start; t--) {
            const Real membrane = a.membrane[row + t * n], adaptation = a.adaptation[row + t * n];
            const Real distance = membrane - (adaptive ? b * adaptation + Real(1) : Real(1));
            Real before = t ? a.membrane[row + (t - 1) * n] : a.v_0[at];
            if (t && before - (adaptive ? b * a.adaptation[row + (t - 1) * n] + Real(1) : Real(1)) > Real(0)) before = Real(0);
            Real ds = a.grad_spikes ? a.grad_spikes[row + t * n] : Real(0);
            if (a.w_rec && t + a.history < length) {
                const Real *later = a.grad_current + (sample * a.num_steps + t + a.history) * n;
                for (i64 to = 0; to < n; to++) ds += a.w_rec[to * n + j] * later[to];
            }
            if (adaptive) ds += da;
            if (a.through_reset) ds -= membrane * dv;
            const Real dx = ds * slope_at(ELM_SURROGATE, a.slope, distance), dm = dx + (distance > Real(0) ? Real(0) : dv);
            if (adaptive) {
                d_b -= dx * adaptation;
                d_p += da * adaptation;
                da = p * da - b * dx;
            }
            d_beta += dm * before;
            a.grad_current[row + t * n] = dm * a.open[row + t * n];
            dv = beta * dm;
        }
        if (a.w_rec) __syncthreads();
    }
    if (!neuron) return;
    a.grad_v_0[at] = dv;
    a.grad_a_0[at] = da;
    a.grad_beta[at] = d_beta;
    a.grad_p[at] = d_p;
    a.grad_b[at] = d_b;
}

// Backward with the gradient of Blocks, docs/alif.md: what is fed back, the reset and the spike that raises the adaptation are constants, so
// that neurons do not see one another. `da` is the gradient of the adaptation's course, on which a block's own spike has no say until the end.
ELM_KERNEL(elm_alif_blocks_backward, AlifBackward, ELM_THREADS, 1) {
    const i64 sample = blockIdx.x, n = a.num_neuron, j = threadIdx.x, length = valid_steps(a.lengths, sample, a.num_steps);
    if (j >= n) return;
    const bool adaptive = a.b != nullptr;
    const i64 row = sample * a.num_steps * n + j, at = sample * n + j;
    const Real beta = a.beta[j], p = adaptive ? a.p[j] : Real(0), b = adaptive ? a.b[j] : Real(0);
    Real du = a.grad_v_last ? a.grad_v_last[at] : Real(0), da = a.grad_a_last ? a.grad_a_last[at] : Real(0);
    Real d_beta = 0, d_p = 0, d_b = 0, first = 0;  // first: du of the first step of the block after
    for (i64 t = a.num_steps - 1; t >= length; t--) a.grad_current[row + t * n] = Real(0);
    for (i64 start = (length - 1) / a.history * a.history; start >= 0 && length; start -= a.history) {
        const i64 end = start + a.history < length ? start + a.history : length;
        Real own = 0, own_by_p = 0;  // what the block's spike adds to the adaptation, and its derivative
        bool crossed = false;
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
        for (i64 t = end - 1; t >= start; t--) {
            const Real adaptation = a.adaptation[row + t * n];
            const Real distance = a.membrane[row + t * n] - (adaptive ? b * adaptation + Real(1) : Real(1));
            if (a.grad_spikes) once += a.grad_spikes[row + t * n];
            twice += once;
            const Real dx = twice * slope_at(ELM_SURROGATE, a.slope, distance);
            du += dx;
            if (adaptive) {
                d_b -= dx * adaptation;
                d_p += da * adaptation;
                da = p * da - b * dx;
            }
            if (t > start) d_beta += du * a.membrane[row + (t - 1) * n];
            first = du;
            a.grad_current[row + t * n] = du * a.open[row + t * n];
            du = beta * du;
        }
    }
    a.grad_v_0[at] = du;
    a.grad_a_0[at] = da;
    a.grad_beta[at] = d_beta + first * a.v_0[at];
    a.grad_p[at] = d_p;
    a.grad_b[at] = d_b;
}
