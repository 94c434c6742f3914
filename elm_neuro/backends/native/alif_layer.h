// What both gradients of a LIF layer share: sizes, the layer's constants, a thread's sums.
#pragma once
#include "filter.h"

namespace ELM_ISA {

// Sizes of a call, padded to whole vectors, and where things lie.
template <class R> struct AlifShape {
    i64 n, np, chunk;
    i64 history, rows, words;  // steps of spikes that a state remembers, L + 1; rows of a state; words of 64 neurons
    explicit AlifShape(const ElmAlif &a)
        : n(a.num_neuron),
          np(padded<R>(a.num_neuron)),
          chunk(a.chunk),
          history(a.latency + 1),
          rows(a.blocks ? ELM_ALIF_BLOCK_ROWS : ELM_ALIF_ROWS),
          words((n + 63) / 64) {}
    i64 chunks(const ElmAlif &a) const { return (a.num_steps + chunk - 1) / chunk; }
    i64 num_words(const ElmAlif &a) const { return a.w_rec ? (history + a.num_steps) * words : 0; }  // of a sample
    // saved: the rows of the state before every chunk, then the words of AlifSpikes
    R *start(const ElmAlif &a, i64 sample, i64 index) const {
        return (R *)a.saved + (sample * chunks(a) + index) * rows * np;
    }
    uint64_t *saved_words(const ElmAlif &a, i64 sample) const {
        return (uint64_t *)start(a, a.batch, 0) + sample * num_words(a);
    }
    i64 saved(const ElmAlif &a) const {
        return a.batch * (chunks(a) * rows * np + num_words(a) * (i64)(sizeof(uint64_t) / sizeof(R)));
    }
    i64 sums(const ElmAlif &a) const {  // a thread's gradients: bias, beta, p, b, W_rec by sender, the table
        return (4 + (a.w_rec ? n : 0) + (a.grad_table ? a.num_input : 0)) * np;
    }
};

// The layer's constants, padded with zeros.
template <class R> struct AlifLayer {
    R *bias, *beta, *p, *b, *by_sender, *by_receiver;  // W_rec both ways; the second for spikes that pass a gradient
    static size_t bytes(const ElmAlif &a, const AlifShape<R> &s) {
        return (size_t)(4 + (a.w_rec ? 2 * s.n : 0)) * s.np * sizeof(R);
    }
    AlifLayer(const ElmAlif &a, const AlifShape<R> &s, Arena &arena) {
        R **rows[] = {&bias, &beta, &p, &b};
        const void *from[] = {a.bias, a.beta, a.p, a.b};
        for (int k = 0; k < 4; k++) {
            *rows[k] = arena.take<R>(s.np);
            if (from[k]) copy_row(*rows[k], (const R *)from[k], s.n);
        }
        by_sender = by_receiver = nullptr;
        if (!a.w_rec) return;
        by_sender = arena.take<R>(s.n * s.np);
        by_receiver = arena.take<R>(s.n * s.np);
        for (i64 to = 0; to < s.n; to++) {
            copy_row(by_receiver + to * s.np, (const R *)a.w_rec + to * s.n, s.n);
            for (i64 from = 0; from < s.n; from++)
                by_sender[from * s.np + to] = ((const R *)a.w_rec)[to * s.n + from];
        }
    }
};

template <class R> ELM_INLINE i64 alif_length(const ElmAlif &a, i64 sample) {
    return a.lengths ? a.lengths[sample] : a.num_steps;
}

// A thread's sums of the gradients.
template <class R> struct AlifSums {
    R *bias, *beta, *p, *b, *w_rec, *table;
    AlifSums(const ElmAlif &a, const AlifShape<R> &s, R *base)
        : bias(base),
          beta(base + s.np),
          p(base + 2 * s.np),
          b(base + 3 * s.np),
          w_rec(a.w_rec ? base + 4 * s.np : nullptr),
          table(a.grad_table ? base + (4 + (a.w_rec ? s.n : 0)) * s.np : nullptr) {}
};

}  // namespace ELM_ISA
