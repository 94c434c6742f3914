// A chunk of a LIF layer as its steps, one after the other, and its gradient: backpropagation through them.
#pragma once
#include "alif_layer.h"
#include "surrogates.h"

namespace ELM_ISA {

// A layer's constants for a vector of neurons.
template <class R> struct AlifConstants {
    Vector<R> beta, p, b, past;  // past: steps from a spike to the next input
    bool adaptive;
    ELM_INLINE_MEMBER AlifConstants(const ElmAlif &a, const AlifLayer<R> &w, i64 c)
        : beta(load(w.beta + c)),
          p(load(w.p + c)),
          b(load(w.b + c)),
          past(all<R>(R(a.latency + 1))),
          adaptive(a.b != nullptr) {}
};

// A neuron's steps through a chunk. `until`: the first step of the chunk in which it is not at rest.
template <class R> struct AlifLane {
    Vector<R> v, a, until;
    ELM_INLINE_MEMBER AlifLane(const R *rows, i64 np, i64 c)
        : v(load(rows + c)), a(load(rows + np + c)), until(load(rows + 2 * np + c)) {}
    ELM_INLINE_MEMBER void keep(R *rows, i64 np, i64 c, i64 count) const {
        const Vector<R> zero = {}, rest = until - all<R>(R(count));
        store(rows + c, v), store(rows + np + c, a), store(rows + 2 * np + c, rest > zero ? rest : zero);
    }
    // Step `now`, whose `current` comes unmasked. Returns the membrane before the reset.
    ELM_INLINE_MEMBER Vector<R> run(const AlifConstants<R> &w, Vector<R> now, Vector<R> current, Mask<R> resting,
                                    Vector<R> &distance, Mask<R> &fires) {
        const Vector<R> zero = {}, one = all<R>(R(1)), membrane = w.beta * v + where(resting, zero, current);
        distance = membrane - (w.adaptive ? w.b * a + one : one);
        fires = above(distance, zero);
        v = where(fires, zero, membrane);
        if (w.adaptive) a = w.p * a + where(fires, one, zero);
        until = where(fires, now + w.past, until);
        return membrane;
    }
};

// Every neuron forward through the steps `start` to `start + count`, a vector of them at a time. `state`: rows of membrane,
// adaptation and rest.
template <class R>
static void alif_loop_forward(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w, i64 start, i64 count,
                              const R *current, R *state, R *spikes) {
    constexpr int W = Lanes<R>::W;
    const i64 np = s.np;
    const Vector<R> zero = {}, one = all<R>(R(1));
    for (i64 c = 0; c < s.n; c += 2 * W) {  // two vectors: a step's chain of dependent operations is long
        const i64 d = c + W < np ? c + W : c;  // where there is one only, it is run twice and written once
        AlifLane<R> x(state, np, c), y(state, np, d);
        const AlifConstants<R> of_x(a, w, c), of_y(a, w, d);
        Vector<R> now = zero, distance;
        for (i64 t = 0; t < count; t++, now += one) {
            Mask<R> x_fires, y_fires;
            x.run(of_x, now, load(current + t * np + c), above(x.until, now), distance, x_fires);
            y.run(of_y, now, load(current + t * np + d), above(y.until, now), distance, y_fires);
            R *to = spikes + (start + t) * a.spikes_time;
            store_upto(to + c, where(x_fires, one, zero), s.n - c);
            if (d > c && d < s.n) store_upto(to + d, where(y_fires, one, zero), s.n - d);
        }
        x.keep(state, np, c, count);
        if (d > c) y.keep(state, np, d, count);
    }
}

// One vector of neurons backward through a chunk, after its steps once more from the state `start` before it: cheaper
// than what they would have kept. `dv` is the gradient of the membrane after a step, `da` that of its adaptation;
// `current` goes in as what arrives, may hold the membranes before their reset, and comes out as the gradient.
template <class R>
ELM_INLINE void alif_loop_backward(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w,
                                   const AlifSums<R> &sum, const Slope<R> &slope, const R *start, const R *grad_spikes, const R *extra,
                                   i64 count, i64 c, R *carry, R *current) {
    constexpr int W = Lanes<R>::W;
    const i64 np = s.np;
    const Vector<R> zero = {}, one = all<R>(R(1));
    const AlifConstants<R> of(a, w, c);
    const bool through_reset = !a.detach_reset;
    const i64 left = s.n - c;
    R *dv_row = carry, *da_row = carry + np;
    R distances[ELM_ALIF_CHUNK * W], slopes[ELM_ALIF_CHUNK * W], adaptation[ELM_ALIF_CHUNK * W], before[ELM_ALIF_CHUNK * W];
    Mask<R> resting[ELM_ALIF_CHUNK], fires[ELM_ALIF_CHUNK];
    AlifLane<R> lane(start, np, c);
    Vector<R> now = zero;
    for (i64 t = 0; t < count; t++, now += one) {
        Vector<R> distance;
        store(adaptation + t * W, lane.a);
        store(before + t * W, lane.v);
        resting[t] = above(lane.until, now);
        R *at = current + t * np + c;
        const Vector<R> membrane = lane.run(of, now, load(at), resting[t], distance, fires[t]);
        if (through_reset) store(at, membrane);
        store(distances + t * W, distance);
    }
    slope(distances, slopes, count);
    Vector<R> dv = load(dv_row + c), da = load(da_row + c);
    Vector<R> d_bias = load(sum.bias + c), d_beta = load(sum.beta + c), d_p = load(sum.p + c), d_b = load(sum.b + c);
    for (i64 t = count - 1; t >= 0; t--) {
        Vector<R> ds = grad_spikes && left > 0 ? load_upto(grad_spikes + t * a.grad_time + c, left) : zero;
        if (extra) ds += load(extra + t * np + c);
        if (of.adaptive) ds += da;
        if (through_reset) ds -= load(current + t * np + c) * dv;
        const Vector<R> dx = ds * load(slopes + t * W);
        const Vector<R> dm = dx + where(fires[t], zero, dv);
        if (of.adaptive) {
            const Vector<R> earlier = load(adaptation + t * W);
            d_b -= dx * earlier;
            d_p += da * earlier;
            da = of.p * da - of.b * dx;
        }
        const Vector<R> arrives = where(resting[t], zero, dm);
        d_bias += arrives;
        d_beta += dm * load(before + t * W);
        store(current + t * np + c, arrives);
        dv = of.beta * dm;
    }
    store(dv_row + c, dv), store(da_row + c, da);
    store(sum.bias + c, d_bias), store(sum.beta + c, d_beta), store(sum.p + c, d_p), store(sum.b + c, d_b);
}

}  // namespace ELM_ISA
