// A chunk of a LIF layer as its steps, one after the other, and its gradient: backpropagation through them.
#pragma once
#include "alif_layer.h"
#include "surrogates.h"

namespace ELM_ISA {

// A layer's constants for a vector of neurons.
template <class R> struct AlifConstants {
    Vector<R> beta, p, b, latency;
    bool adaptive, rests;  // rests: a spike leaves at least one step without input
    ELM_INLINE_MEMBER AlifConstants(const ElmAlif &a, const AlifLayer<R> &w, i64 c)
        : beta(load(w.beta + c)),
          p(load(w.p + c)),
          b(load(w.b + c)),
          latency(all<R>(R(a.latency))),
          adaptive(a.b != nullptr),
          rests(a.latency > 0) {}
};

// A neuron's steps through a chunk. What follows from a spike is chosen where it is used, both cases being computed
// before: of a step only the choices, the threshold and its comparison wait for the spike of the step before.
template <class R> struct AlifLane {
    Vector<R> m, a, until;  // membrane before its reset; until: the first step not at rest, but for the last spike
    Mask<R> fired;          // in the step before
    ELM_INLINE_MEMBER AlifLane(const R *rows, i64 np, i64 c)
        : m(load(rows + c)), a(load(rows + np + c)), until(load(rows + 2 * np + c)), fired() {}
    ELM_INLINE_MEMBER void keep(const AlifConstants<R> &w, R *rows, i64 np, i64 c, i64 count) const {
        const Vector<R> zero = {}, rest = where(fired, w.latency, until - all<R>(R(count)));
        store(rows + c, membrane()), store(rows + np + c, a), store(rows + 2 * np + c, rest > zero ? rest : zero);
    }
    ELM_INLINE_MEMBER Vector<R> membrane() const { return where(fired, Vector<R>{}, m); }
    // Step `now`, whose `current` comes unmasked. Returns the threshold.
    ELM_INLINE_MEMBER Vector<R> run(const AlifConstants<R> &w, Vector<R> now, Vector<R> current, Mask<R> &resting) {
        const Vector<R> zero = {}, one = all<R>(R(1));
        resting = above(until, now);
        current = where(resting, zero, current);
        m = where(fired, w.rests ? zero : current, w.beta * m + current);
        if (w.rests) resting |= fired;
        until = where(fired, now + w.latency, until);
        const Vector<R> threshold = w.adaptive ? w.b * a + one : one;
        fired = above(m, threshold);
        if (w.adaptive) a = where(fired, w.p * a + one, w.p * a);
        return threshold;
    }
};

// Every neuron forward through the steps `start` to `start + count`. `state`: rows of membrane, adaptation and rest.
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
        Vector<R> now = zero;
        Mask<R> resting;
        for (i64 t = 0; t < count; t++, now += one) {
            x.run(of_x, now, load(current + t * np + c), resting);
            y.run(of_y, now, load(current + t * np + d), resting);
            R *to = spikes + (start + t) * a.spikes_time;
            store_upto(to + c, where(x.fired, one, zero), s.n - c);
            if (d > c && d < s.n) store_upto(to + d, where(y.fired, one, zero), s.n - d);
        }
        x.keep(of_x, state, np, c, count);
        if (d > c) y.keep(of_y, state, np, d, count);
    }
}

// A vector of neurons on its way back: `dv` is the gradient of the membrane after a step, `da` that of its adaptation;
// the sums are those of the layer's constants.
template <class R> struct AlifBack {
    Vector<R> dv, da, bias, beta, p, b;
    ELM_INLINE_MEMBER AlifBack(const AlifSums<R> &sum, const R *carry, i64 np, i64 c)
        : dv(load(carry + c)),
          da(load(carry + np + c)),
          bias(load(sum.bias + c)),
          beta(load(sum.beta + c)),
          p(load(sum.p + c)),
          b(load(sum.b + c)) {}
    ELM_INLINE_MEMBER void keep(const AlifSums<R> &sum, R *carry, i64 np, i64 c) const {
        store(carry + c, dv), store(carry + np + c, da);
        store(sum.bias + c, bias), store(sum.beta + c, beta), store(sum.p + c, p), store(sum.b + c, b);
    }
    // A step, from the gradient of its spike, which `slope` makes that of the membrane; returns that of what arrives.
    ELM_INLINE_MEMBER Vector<R> run(const AlifConstants<R> &w, Vector<R> ds, Vector<R> slope, Vector<R> before,
                                    Vector<R> adaptation, Mask<R> resting, Mask<R> fires) {
        const Vector<R> zero = {}, dx = (w.adaptive ? ds + da : ds) * slope, dm = dx + where(fires, zero, dv);
        if (w.adaptive) {
            b -= dx * adaptation;
            p += da * adaptation;
            da = w.p * da - w.b * dx;
        }
        const Vector<R> arrives = where(resting, zero, dm);
        bias += arrives;
        beta += dm * before;
        dv = w.beta * dm;
        return arrives;
    }
};

// NV vectors of neurons backward through a chunk, after its steps once more from the state `start` before it: cheaper
// than what they would have kept. `current` goes in as what arrives, may hold the membranes before their reset, and
// comes out as the gradient.
template <int NV, class R>
ELM_INLINE void alif_loop_backward(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w,
                                   const AlifSums<R> &sum, const Slope<R> &slope, const R *start,
                                   const R *grad_spikes, const R *extra, i64 count, i64 c, R *carry, R *current) {
    constexpr int W = Lanes<R>::W;
    const i64 np = s.np, d = c + (NV - 1) * W;  // of the last vector
    const Vector<R> zero = {}, one = all<R>(R(1));
    const bool through_reset = !a.detach_reset;
    const AlifConstants<R> of[2] = {{a, w, c}, {a, w, d}};
    AlifLane<R> lane[2] = {{start, np, c}, {start, np, d}};
    R slopes[ELM_ALIF_STRETCH * NV * W];  // at the distances from the threshold, which they take the place of
    struct {
        Vector<R> before, adaptation;
        Mask<R> resting, fires;
    } steps[ELM_ALIF_STRETCH][NV];
    Vector<R> now = zero;
    for (i64 t = 0; t < count; t++, now += one)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            auto &step = steps[t][v];
            R *at = current + t * np + c + v * W;
            step.before = lane[v].membrane(), step.adaptation = lane[v].a;
            const Vector<R> threshold = lane[v].run(of[v], now, load(at), step.resting);
            step.fires = lane[v].fired;
            if (through_reset) store(at, lane[v].m);
            store(slopes + (t * NV + v) * W, lane[v].m - threshold);
        }
    slope(slopes, slopes, count * NV);
    AlifBack<R> back[2] = {{sum, carry, np, c}, {sum, carry, np, d}};
    for (i64 t = count - 1; t >= 0; t--)
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            const auto &step = steps[t][v];
            const i64 j = c + v * W;
            R *at = current + t * np + j;
            Vector<R> ds = grad_spikes && j < s.n ? load_upto(grad_spikes + t * a.grad_time + j, s.n - j) : zero;
            if (extra) ds += load(extra + t * np + j);
            if (through_reset) ds -= load(at) * back[v].dv;
            const Vector<R> of_step = load(slopes + (t * NV + v) * W);
            store(at, back[v].run(of[v], ds, of_step, step.before, step.adaptation, step.resting, step.fires));
        }
    for (int v = 0; v < NV; v++) back[v].keep(sum, carry, np, c + v * W);
}

}  // namespace ELM_ISA
