// A chunk of a LIF layer as its steps, one after the other, and its gradient: backpropagation through them.
#pragma once
#include "alif_layer.h"
#include "surrogates.h"

namespace ELM_ISA {

// A neuron's step: whether it fires, and what it carries on; `current` comes unmasked.
template <class R> struct AlifLane {
    Vector<R> v, a, rest;
    // Returns the membrane before the reset.
    ELM_INLINE_MEMBER Vector<R> run(Vector<R> current, Vector<R> beta, Vector<R> p, Vector<R> b, R latency,
                                    bool adaptive, Vector<R> &distance) {
        const Vector<R> zero = {}, one = all<R>(R(1)), membrane = beta * v + (rest > zero ? zero : current);
        distance = membrane - (adaptive ? b * a + one : one);
        const auto fires = distance > zero;
        v = fires ? zero : membrane;
        if (adaptive) a = p * a + (fires ? one : zero);
        const Vector<R> less = rest - one;
        rest = fires ? all<R>(latency) : less > zero ? less : zero;
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
    const R latency = R(a.latency);
    const bool adaptive = a.b != nullptr;
    R *v = state, *ad = state + np, *rest = state + 2 * np;
    for (i64 c = 0; c < s.n; c += 2 * W) {  // two vectors: a step's chain of dependent operations is long
        const bool pair = c + W < np;
        const i64 d = pair ? c + W : c;  // where there is one only, it is run twice and written once
        AlifLane<R> x = {load(v + c), load(ad + c), load(rest + c)}, y = {load(v + d), load(ad + d), load(rest + d)};
        const Vector<R> zero = {}, one = all<R>(R(1));
        const Vector<R> beta_x = load(w.beta + c), p_x = load(w.p + c), b_x = load(w.b + c);
        const Vector<R> beta_y = load(w.beta + d), p_y = load(w.p + d), b_y = load(w.b + d);
        for (i64 t = 0; t < count; t++) {
            Vector<R> dx, dy;
            x.run(load(current + t * np + c), beta_x, p_x, b_x, latency, adaptive, dx);
            y.run(load(current + t * np + d), beta_y, p_y, b_y, latency, adaptive, dy);
            R *to = spikes + (start + t) * a.spikes_time;
            store_upto(to + c, dx > zero ? one : zero, s.n - c);
            if (d > c && d < s.n) store_upto(to + d, dy > zero ? one : zero, s.n - d);
        }
        store(v + c, x.v), store(ad + c, x.a), store(rest + c, x.rest);
        if (d > c) store(v + d, y.v), store(ad + d, y.a), store(rest + d, y.rest);
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
    const Vector<R> zero = {}, beta = load(w.beta + c), p = load(w.p + c), b = load(w.b + c);
    const bool adaptive = a.b != nullptr, through_reset = !a.detach_reset;
    const i64 left = s.n - c;
    R *dv_row = carry, *da_row = carry + np;
    struct Step {
        Vector<R> adaptation, before, rest;
    } steps[ELM_ALIF_CHUNK];
    R distances[ELM_ALIF_CHUNK * W], slopes[ELM_ALIF_CHUNK * W];
    const R latency = R(a.latency);
    AlifLane<R> lane = {load(start + c), load(start + np + c), load(start + 2 * np + c)};
    for (i64 t = 0; t < count; t++) {
        Step &of = steps[t];
        of.before = lane.v, of.adaptation = lane.a, of.rest = lane.rest;
        R *at = current + t * np + c;
        Vector<R> distance;
        const Vector<R> membrane = lane.run(load(at), beta, p, b, latency, adaptive, distance);
        if (through_reset) store(at, membrane);
        store(distances + t * W, distance);
    }
    slope(distances, slopes, count);
    Vector<R> dv = load(dv_row + c), da = load(da_row + c);
    Vector<R> d_bias = load(sum.bias + c), d_beta = load(sum.beta + c), d_p = load(sum.p + c), d_b = load(sum.b + c);
    for (i64 t = count - 1; t >= 0; t--) {
        const Step &of = steps[t];
        Vector<R> ds = grad_spikes && left > 0 ? load_upto(grad_spikes + t * a.grad_time + c, left) : zero;
        if (extra) ds += load(extra + t * np + c);
        if (adaptive) ds += da;
        if (through_reset) ds -= load(current + t * np + c) * dv;
        const Vector<R> dx = ds * load(slopes + t * W);
        const Vector<R> dm = dx + (load(distances + t * W) > zero ? zero : dv);
        if (adaptive) {
            d_b -= dx * of.adaptation;
            d_p += da * of.adaptation;
            da = p * da - b * dx;
        }
        const Vector<R> arrives = of.rest > zero ? zero : dm;
        d_bias += arrives;
        d_beta += dm * of.before;
        store(current + t * np + c, arrives);
        dv = beta * dm;
    }
    store(dv_row + c, dv), store(da_row + c, da);
    store(sum.bias + c, d_bias), store(sum.beta + c, d_beta), store(sum.p + c, d_p), store(sum.b + c, d_b);
}

}  // namespace ELM_ISA
