// A layer of adaptive LIF neurons over a sequence, forward and backward:
//
//     v_t = beta v_{t-1} + [no spike in the last L steps] (i_t + W_rec s_{t-L-1})
//     s_t = [v_t > 1 + b a_{t-1}]      a_t = p a_{t-1} + s_t      a spike sets v to 0
//
// A task is a sample. No spike of the layer reaches the layer within L + 1 steps, so that time is cut into chunks of at
// most that many: what arrives in a chunk is added up first, through the few spikes that there are; then every neuron
// runs through the chunk by itself, a vector of them at a time, its membrane, adaptation and rest in registers.
// What a chunk computes is in alif_loop.h, with the gradient of the loop, and in alif_blocks.h, with that of Blocks.
#pragma once
#include "alif_blocks.h"
#include "alif_currents.h"
#include "alif_loop.h"

namespace ELM_ISA {

// The spikes that reach the layer in step t: an output of L + 1 steps ago, or of before the sequence; null for none.
template <class R> ELM_INLINE const R *alif_fed_back(const ElmAlif &a, const AlifShape<R> &s, i64 sample, i64 t) {
    if (t >= s.history) return (const R *)a.spikes + sample * a.spikes_batch + (t - s.history) * a.spikes_time;
    return a.s_0 ? (const R *)a.s_0 + (sample * s.history + t) * s.n : nullptr;
}

template <class R>
static i64 alif_forward_sample(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w, i64 sample) {
    const i64 length = alif_length<R>(a, sample), np = s.np;
    Arena arena((size_t)(s.rows + s.chunk) * np * sizeof(R) + AlifOwn<R>::bytes(a, s));
    if (!arena.base) return 1;
    const AlifOwn<R> own(a, s, sample, arena);
    R *state = arena.take<R>(s.rows * np);
    R *v = state, *ad = state + np, *rest = state + 2 * np;  // the first rows in either gradient
    R *current = arena.take<R>(s.chunk * np);
    if (a.v_0) copy_row(v, (const R *)a.v_0 + sample * s.n, s.n);
    if (a.a_0) copy_row(ad, (const R *)a.a_0 + sample * s.n, s.n);
    for (i64 k = 0; a.s_0 && k < s.history; k++) {  // a spike `history - k` steps ago leaves k steps of rest
        const R *spikes = alif_fed_back(a, s, sample, k);
        for (i64 from = 0; from < s.n; from += 64)
            for (uint64_t bits = occupied_word(spikes + from, s.n - from); bits; bits &= bits - 1) {
                const i64 j = from + __builtin_ctzll(bits);
                if (spikes[j] != R(1)) return 2;
                rest[j] = R(k);
            }
    }
    for (i64 t = 0; own.words && t < s.history; t++) own.note(s, t, alif_fed_back(a, s, sample, t));
    R *spikes = (R *)a.spikes + sample * a.spikes_batch;
    for (i64 start = 0; start < length; start += s.chunk) {
        const i64 count = length - start < s.chunk ? length - start : s.chunk;
        if (a.saved && start % s.stretch == 0)
            std::memcpy(s.start(a, sample, start / s.stretch), state, s.rows * np * sizeof(R));
        for (i64 t = start; t < start + count; t++) prefetch_to_write(spikes + t * a.spikes_time, s.n * sizeof(R));
        alif_arriving(AlifChunk<R>{a, s, w, own, sample, start, count, current});
        if (a.blocks)
            alif_blocks_forward(a, s, w, start, count, current, state, spikes);
        else
            alif_loop_forward(a, s, w, start, count, current, state, spikes);
        for (i64 t = start; own.words && t < start + count; t++)
            own.note(s, t + s.history, spikes + t * a.spikes_time);
    }
    if (a.blocks) alif_blocks_end<R>(s, state);
    for (i64 t = length; t < a.num_steps; t++) std::memset(spikes + t * a.spikes_time, 0, s.n * sizeof(R));
    copy_row((R *)a.v_last + sample * s.n, v, s.n);
    copy_row((R *)a.a_last + sample * s.n, ad, s.n);
    for (i64 k = 0; k < s.history; k++) {
        R *to = (R *)a.s_last + (sample * s.history + k) * s.n;
        const R *from = alif_fed_back(a, s, sample, length + k);
        if (from)
            std::memcpy(to, from, s.n * sizeof(R));
        else
            std::memset(to, 0, s.n * sizeof(R));
    }
    return 0;
}

template <class R>
static i64 alif_backward_sample(const ElmAlif &a, const AlifShape<R> &s, const AlifLayer<R> &w, i64 sample,
                                const AlifSums<R> &sum) {
    constexpr int W = Lanes<R>::W;
    const i64 length = alif_length<R>(a, sample), np = s.np;
    const bool fed_back = AlifLayer<R>::fed_back(a);
    const i64 kept = fed_back || a.grad_s_last ? length + s.history : 0;
    const size_t room = (size_t)(ELM_ALIF_BLOCK_ROWS + s.stretch + kept) * np * sizeof(R);
    Arena arena(room + AlifOwn<R>::bytes(a, s));
    if (!arena.base) return 1;
    const AlifOwn<R> own(a, s, sample, arena);
    // gradients carried from a stretch to the one before it: of the membrane, of the adaptation, then what blocks add
    R *carry = arena.take<R>(ELM_ALIF_BLOCK_ROWS * np);
    R *dv = carry, *da = carry + np;
    R *d_current = arena.take<R>(s.stretch * np);  // what arrives, until its gradient is known
    // further gradients of the spikes of step t - history in row t: what the state remembers, what is fed back
    R *extra = kept ? arena.take<R>(kept * np) : nullptr;
    if (a.grad_v_last) copy_row(dv, (const R *)a.grad_v_last + sample * s.n, s.n);
    if (a.grad_a_last) copy_row(da, (const R *)a.grad_a_last + sample * s.n, s.n);
    if (a.grad_s_last)
        for (i64 k = 0; k < s.history; k++)
            copy_row(extra + (length + k) * np, (const R *)a.grad_s_last + (sample * s.history + k) * s.n, s.n);
    const R *grad = a.grad_spikes ? (const R *)a.grad_spikes + sample * a.grad_batch : nullptr;
    const Slope<R> slope(a.surrogate, a.setting);
    for (i64 start = (length - 1) / s.stretch * s.stretch; start >= 0 && length; start -= s.stretch) {
        const i64 count = length - start < s.stretch ? length - start : s.stretch;
        const R *state = s.start(a, sample, start / s.stretch), *of_chunk = grad ? grad + start * a.grad_time : nullptr;
        const R *further = extra ? extra + (start + s.history) * np : nullptr;
        const AlifChunk<R> chunk = {a, s, w, own, sample, start, count, d_current};
        if (start) alif_prefetch(AlifChunk<R>{a, s, w, own, sample, start - s.stretch, s.stretch, nullptr});
        alif_arriving(chunk);
        for (i64 c = 0; a.blocks && c < s.n; c += W)
            alif_blocks_backward(a, s, w, sum, slope, state, of_chunk, further, start, count, length, c, carry,
                                 d_current);
        for (i64 c = 0; !a.blocks && c < s.n; c += 2 * W)  // two vectors: a chain of dependent operations is long
            if (c + W < s.n)
                alif_loop_backward<2>(a, s, w, sum, slope, state, of_chunk, further, count, c, carry, d_current);
            else
                alif_loop_backward<1>(a, s, w, sum, slope, state, of_chunk, further, count, c, carry, d_current);
        alif_arrived(chunk, sum);
        for (i64 t = 0; fed_back && t < count; t++) {  // no spike of a chunk has arrived in it: later rows of `extra`
            R *row = extra + (start + t) * np;
            for (i64 to = 0; to < s.n; to++) {
                const Vector<R> factor = all<R>(d_current[t * np + to]);
                for (i64 j = 0; j < np; j += W)
                    store(row + j, load(row + j) + factor * load(w.w_rec + to * np + j));
            }
        }
    }
    if (a.grad_dense)
        std::memset((R *)a.grad_dense + (sample * a.num_steps + length) * s.n, 0,
                    (a.num_steps - length) * s.n * sizeof(R));
    for (i64 j = 0; a.blocks && j < np; j += W) store(da + j, load(da + j) + load(carry + 2 * np + j));
    if (a.grad_v_0) copy_row((R *)a.grad_v_0 + sample * s.n, dv, s.n);
    if (a.grad_a_0) copy_row((R *)a.grad_a_0 + sample * s.n, da, s.n);
    for (i64 k = 0; a.grad_s_0 && k < s.history; k++) {
        R *to = (R *)a.grad_s_0 + (sample * s.history + k) * s.n;
        if (extra)
            copy_row(to, extra + k * np, s.n);
        else
            std::memset(to, 0, s.n * sizeof(R));
    }
    return 0;
}

template <class R> static i64 alif_saved(const ElmAlif *a) { return AlifShape<R>(*a).saved(*a); }

template <class R> static void alif_forward(const ElmAlif *a, ElmShare *share) {
    const AlifShape<R> s(*a);
    Arena arena(AlifLayer<R>::bytes(*a, s));
    share->status = !arena.base;
    if (share->status) return;
    const AlifLayer<R> w(*a, s, arena);
    for (i64 sample = share->first; sample < share->last; sample++)
        share->status |= alif_forward_sample(*a, s, w, sample);
}

template <class R> static void alif_backward(const ElmAlif *a, ElmShare *share) {
    const AlifShape<R> s(*a);
    Arena arena(AlifLayer<R>::bytes(*a, s));
    share->status = !arena.base;
    void *sums = nullptr;
    const size_t bytes = (size_t)s.sums(*a) * sizeof(R);
    if (share->status || posix_memalign(&sums, 64, bytes)) {
        share->status = 1;
        return;
    }
    std::memset(sums, 0, bytes);
    share->scratch = sums;
    const AlifLayer<R> w(*a, s, arena);
    const AlifSums<R> sum(*a, s, (R *)sums);
    for (i64 sample = share->first; sample < share->last; sample++)
        share->status |= alif_backward_sample(*a, s, w, sample, sum);
}

// The threads' sums in their order; returns 1 where one of them lacked memory.
template <class R> static i64 alif_reduce(const ElmAlif *a, const ElmShare *share, i64 num_share) {
    const AlifShape<R> s(*a);
    i64 lacking = 0;
    for (i64 k = 0; k < num_share; k++) lacking |= share[k].status;
    R *total = (R *)share[0].scratch;
    for (i64 k = 1; k < num_share && !lacking; k++)
        for (i64 j = 0; j < s.sums(*a); j++) total[j] += ((const R *)share[k].scratch)[j];
    if (!lacking) {
        const AlifSums<R> sum(*a, s, total);
        copy_row((R *)a->grad_bias, sum.bias, s.n);
        copy_row((R *)a->grad_beta, sum.beta, s.n);
        if (a->grad_p) copy_row((R *)a->grad_p, sum.p, s.n);
        if (a->grad_b) copy_row((R *)a->grad_b, sum.b, s.n);
        if (a->grad_table) std::memcpy(a->grad_table, sum.table, s.table(*a) * sizeof(R));
    }
    for (i64 k = 0; k < num_share; k++) free(share[k].scratch);
    return lacking;
}

}  // namespace ELM_ISA
