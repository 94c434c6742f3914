// A chunk of a LIF layer with the gradient of Blocks, docs/alif.md. Time is cut into blocks of L + 1 steps, in each of which
// a neuron spikes at most once. Within a block the membrane u runs on without reset and the threshold without the
// block's own spike:
//
//     u_k = beta u_{k-1} + [no spike before the block leaves step k without input] i_k
//     f_k = [u_k > 1 + b p^k a]        s_k = [k is the first with f_k = 1]
//
// and dL/df_k = sum over j >= k of (j - k + 1) dL/ds_j: two sums that run backward through the block. To the next block go
// u, or 0 after a spike, and the adaptation, which the spike raised as a constant. Chunks and blocks need not coincide.
#pragma once
#include "alif_layer.h"
#include "surrogates.h"

namespace ELM_ISA {

// A neuron's step. The first three are what a state begins with; `rest` is that from the block's own spike.
template <class R> struct AlifBlockLane {
    Vector<R> u, a, rest, free, mask, crossed;  // free: p^k a; mask: steps still without input; crossed: 1 after a spike

    ELM_INLINE_MEMBER AlifBlockLane(const R *rows, i64 np, i64 c)
        : u(load(rows + c)),
          a(load(rows + np + c)),
          rest(load(rows + 2 * np + c)),
          free(load(rows + 3 * np + c)),
          mask(load(rows + 4 * np + c)),
          crossed(load(rows + 5 * np + c)) {}
    ELM_INLINE_MEMBER void keep(R *rows, i64 np, i64 c) const {
        store(rows + c, u), store(rows + np + c, a), store(rows + 2 * np + c, rest);
        store(rows + 3 * np + c, free), store(rows + 4 * np + c, mask), store(rows + 5 * np + c, crossed);
    }
    ELM_INLINE_MEMBER void begin_block() {
        const Vector<R> zero = {};
        u = crossed > zero ? zero : u;
        free = a, mask = rest;
        rest = crossed = zero;
    }
    ELM_INLINE_MEMBER void arrive(Vector<R> current, Vector<R> beta) {
        const Vector<R> zero = {};
        u = beta * u + (mask > zero ? zero : current);
    }
    // From the membrane on; returns 1 where the neuron fires.
    ELM_INLINE_MEMBER Vector<R> fire(Vector<R> p, Vector<R> b, R latency, bool adaptive, Vector<R> &distance) {
        const Vector<R> zero = {}, one = all<R>(R(1)), less = rest - one, fewer = mask - one;
        distance = u - (adaptive ? b * free + one : one);
        const Vector<R> spike = distance > zero ? one - crossed : zero;
        if (adaptive) a = p * a + spike, free = p * free;
        rest = spike > zero ? all<R>(latency) : less > zero ? less : zero;
        mask = fewer > zero ? fewer : zero;
        crossed += spike;
        return spike;
    }
};

// As alif_loop_forward.
template <class R>
static void alif_blocks_forward(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w, i64 start, i64 count,
                                const R *current, R *state, R *spikes) {
    const i64 np = s.np;
    for (i64 c = 0; c < s.n; c += Lanes<R>::W) {
        AlifBlockLane<R> lane(state, np, c);
        const Vector<R> beta = load(w.beta + c), p = load(w.p + c), b = load(w.b + c);
        i64 step = start % s.history;  // of the block
        for (i64 t = 0; t < count; t++, step = step + 1 == s.history ? 0 : step + 1) {
            Vector<R> distance;
            if (step == 0) lane.begin_block();
            lane.arrive(load(current + t * np + c), beta);
            const Vector<R> spike = lane.fire(p, b, R(a.latency), a.b != nullptr, distance);
            store_upto(spikes + (start + t) * a.spikes_time + c, spike, s.n - c);
        }
        lane.keep(state, np, c);
    }
}

// The membrane after the last step: that of a neuron that fired in its last block is 0.
template <class R> static void alif_blocks_end(const AlifShape<R> &s, R *state) {
    const Vector<R> zero = {};
    for (i64 c = 0; c < s.np; c += Lanes<R>::W)
        store(state + c, load(state + 5 * s.np + c) > zero ? zero : load(state + c));
}

// As alif_loop_backward. `carry`: rows of the gradients of u and of the adaptation after a step, of
// its course without the block's spike, and the two sums over the block's later steps.
template <class R>
ELM_INLINE void alif_blocks_backward(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w,
                                     const AlifSums<R> &sum, const Slope<R> &slope, const R *rows,
                                     const R *grad_spikes, const R *extra, i64 start, i64 count, i64 length, i64 c,
                                     R *carry, R *current) {
    constexpr int W = Lanes<R>::W;
    struct Step {
        Vector<R> before, a, free, mask, crossed;
    } steps[ELM_ALIF_STRETCH];
    R distances[ELM_ALIF_STRETCH * W], slopes[ELM_ALIF_STRETCH * W];
    const i64 np = s.np, left = s.n - c;
    const Vector<R> zero = {}, beta = load(w.beta + c), p = load(w.p + c), b = load(w.b + c);
    const bool adaptive = a.b != nullptr;
    AlifBlockLane<R> lane(rows, np, c);
    for (i64 t = 0; t < count; t++) {
        Step &of = steps[t];
        if ((start + t) % s.history == 0) lane.begin_block();
        of.before = lane.u, of.a = lane.a, of.free = lane.free, of.mask = lane.mask;
        lane.arrive(load(current + t * np + c), beta);
        Vector<R> distance;
        lane.fire(p, b, R(a.latency), adaptive, distance);
        of.crossed = lane.crossed;
        store(distances + t * W, distance);
    }
    slope(distances, slopes, count);
    Vector<R> du = load(carry + c), da = load(carry + np + c), d_free = load(carry + 2 * np + c);
    Vector<R> once = load(carry + 3 * np + c), twice = load(carry + 4 * np + c);
    Vector<R> d_bias = load(sum.bias + c), d_beta = load(sum.beta + c), d_p = load(sum.p + c), d_b = load(sum.b + c);
    for (i64 t = count - 1; t >= 0; t--) {
        const Step &of = steps[t];
        if (start + t == length - 1 || (start + t + 1) % s.history == 0) {  // the last step of a block
            du = of.crossed > zero ? zero : du;
            da += d_free;
            d_free = once = twice = zero;
        }
        if (grad_spikes && left > 0) once += load_upto(grad_spikes + t * a.grad_time + c, left);
        if (extra) once += load(extra + t * np + c);
        twice += once;
        const Vector<R> dx = twice * load(slopes + t * W);
        du += dx;
        if (adaptive) {
            d_b -= dx * of.free;
            d_p += da * of.a + d_free * of.free;
            d_free = p * d_free - b * dx;
            da = p * da;
        }
        const Vector<R> arrives = of.mask > zero ? zero : du;
        d_bias += arrives;
        d_beta += du * of.before;
        store(current + t * np + c, arrives);
        du = beta * du;
    }
    store(carry + c, du), store(carry + np + c, da), store(carry + 2 * np + c, d_free);
    store(carry + 3 * np + c, once), store(carry + 4 * np + c, twice);
    store(sum.bias + c, d_bias), store(sum.beta + c, d_beta), store(sum.p + c, d_p), store(sum.b + c, d_b);
}

}  // namespace ELM_ISA
