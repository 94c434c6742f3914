// What both gradients of a LIF layer share: sizes, the layer's constants, a thread's sums.
#pragma once
#include "filter.h"

namespace ELM_ISA {

// Sizes of a call, padded to whole vectors, and where things lie.
template <class R> struct AlifShape {
    i64 n, np, chunk;
    i64 stretch;  // steps of the way back at a time: whole chunks, one where fed-back spikes pass a gradient
    i64 history, rows, words;  // steps of spikes that a state remembers, L + 1; rows of a state; words of 64 neurons
    explicit AlifShape(const ElmAlif &a)
        : n(a.num_neuron),
          np(padded<R>(a.num_neuron)),
          chunk(a.chunk),
          stretch(a.w_rec && !a.detach_recurrent ? a.chunk : ELM_ALIF_STRETCH / a.chunk * a.chunk),
          history(a.latency + 1),
          rows(a.blocks ? ELM_ALIF_BLOCK_ROWS : ELM_ALIF_ROWS),
          words((n + 63) / 64) {}
    i64 stretches(const ElmAlif &a) const { return (a.num_steps + stretch - 1) / stretch; }
    i64 num_words(const ElmAlif &a) const { return a.w_rec ? (history + a.num_steps) * words : 0; }  // of a sample
    // saved: the rows of the state before every stretch, then the words of AlifArrivals
    R *start(const ElmAlif &a, i64 sample, i64 index) const {
        return (R *)a.saved + (sample * stretches(a) + index) * rows * np;
    }
    uint64_t *saved_words(const ElmAlif &a, i64 sample) const {
        return (uint64_t *)start(a, a.batch, 0) + sample * num_words(a);
    }
    i64 saved(const ElmAlif &a) const {
        return a.batch * (stretches(a) * rows * np + num_words(a) * (i64)(sizeof(uint64_t) / sizeof(R)));
    }
    i64 table(const ElmAlif &a) const { return (a.num_input + (a.w_rec ? n : 0)) * np; }
    // a thread's gradients: bias, beta, p, b, the table
    i64 sums(const ElmAlif &a) const { return 4 * np + (a.grad_table ? table(a) : 0); }
};

// The layer's constants, padded with zeros.
template <class R> struct AlifLayer {
    R *bias, *beta, *p, *b, *w_rec;  // w_rec where fed-back spikes pass a gradient
    static bool fed_back(const ElmAlif &a) { return a.w_rec && !a.detach_recurrent; }
    static size_t bytes(const ElmAlif &a, const AlifShape<R> &s) {
        return (size_t)(4 + (fed_back(a) ? s.n : 0)) * s.np * sizeof(R);
    }
    AlifLayer(const ElmAlif &a, const AlifShape<R> &s, Arena &arena) : w_rec(nullptr) {
        R **rows[] = {&bias, &beta, &p, &b};
        const void *from[] = {a.bias, a.beta, a.p, a.b};
        for (int k = 0; k < 4; k++) {
            *rows[k] = arena.take<R>(s.np);
            if (from[k]) copy_row(*rows[k], (const R *)from[k], s.n);
        }
        if (!fed_back(a)) return;
        w_rec = arena.take<R>(s.n * s.np);
        for (i64 to = 0; to < s.n; to++) copy_row(w_rec + to * s.np, (const R *)a.w_rec + to * s.n, s.n);
    }
};

template <class R> ELM_INLINE i64 alif_length(const ElmAlif &a, i64 sample) {
    return a.lengths ? a.lengths[sample] : a.num_steps;
}

// A thread's sums of the gradients.
template <class R> struct AlifSums {
    R *bias, *beta, *p, *b, *table;
    AlifSums(const ElmAlif &a, const AlifShape<R> &s, R *base)
        : bias(base),
          beta(base + s.np),
          p(base + 2 * s.np),
          b(base + 3 * s.np),
          table(a.grad_table ? base + 4 * s.np : nullptr) {}
};

}  // namespace ELM_ISA
