// A layer of adaptive LIF neurons over a sequence, as native/alif.h writes it: a block a sample, a thread a neuron. Spikes reach the layer
// latency + 1 steps later, so that many steps need one barrier: what arrives in them is the spikes of steps before them.
#pragma once
#include "common.cuh"
#include "surrogates.cuh"

constexpr int WARP = 32, WARPS = ELM_THREADS / WARP;

struct Alif {
    i64 num_steps, num_neuron, history, chunk;      // history: latency + 1; chunk: steps between barriers, at most that
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
    const Real *v_0, *membrane, *adaptation, *open;
    const Real *grad_spikes, *grad_v_last, *grad_a_last;
    Real *grad_current;                             // shape of current
    Real *grad_v_0, *grad_a_0, *grad_beta, *grad_p, *grad_b;  // (batch, neuron)
    Slope slope;
};

static_assert(sizeof(Alif) == ELM_BYTES_ALIF && sizeof(AlifBackward) == ELM_BYTES_ALIFBACKWARD, "structures of alif.cuh and _alif.py");

// Spikes of the last history + chunk steps are kept in shared memory, a bit each: a chunk reads and writes different rows.
ELM_KERNEL(elm_alif, Alif, ELM_THREADS, 1) {
    ELM_DYNAMIC_SHARED(unsigned, fired);
    const i64 sample = blockIdx.x, n = a.num_neuron, j = threadIdx.x, length = a.lengths ? a.lengths[sample] : a.num_steps;
    const bool neuron = j < n, adaptive = a.b != nullptr;
    const i64 row = sample * a.num_steps * n + j, at = sample * n + j, kept = a.history + a.chunk;
    const Real beta = neuron ? a.beta[j] : Real(0), p = neuron && adaptive ? a.p[j] : Real(0), b = neuron && adaptive ? a.b[j] : Real(0);
    Real v = neuron ? a.v_0[at] : Real(0), adaptation = neuron ? a.a_0[at] : Real(0);
    i64 rest = 0;
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
            Real open = rest > 0 ? Real(0) : Real(1);
            if (neuron && t < a.history - 1 && rest == 0) open -= a.blocked[(sample * (a.history - 1) + t) * n + j];
            const Real membrane = beta * v + open * current;
            const bool fires = neuron && membrane - (adaptive ? b * adaptation + Real(1) : Real(1)) > Real(0);
            if (a.by_sender) {
                const unsigned bits = __ballot_sync(~0u, fires);
                if (j % WARP == 0) fired[t % kept * WARPS + j / WARP] = bits;
            }
            if (neuron) {
                a.spikes[row + t * n] = fires ? Real(1) : Real(0);
                if (a.membrane) {
                    a.membrane[row + t * n] = membrane;
                    a.adaptation[row + t * n] = adaptation;
                    a.open[row + t * n] = open;
                }
            }
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
    const i64 sample = blockIdx.x, n = a.num_neuron, j = threadIdx.x, length = a.lengths ? a.lengths[sample] : a.num_steps;
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
