// What arrives at a LIF layer in a chunk of steps, from outside and from its own neurons, and the gradients of the
// weights that it comes through.
#pragma once
#include "alif_layer.h"

namespace ELM_ISA {

// A sample's own spikes, a bit each: words of 64 neurons, row t those that reach the layer in step t.
template <class R> struct AlifSpikes {
    uint64_t *rows;  // (history + num_steps, words), null where the layer is not recurrent
    int32_t *list;   // the senders of a chunk, those of its step t from begin[t] to begin[t + 1]
    i64 *begin;

    static i64 room(const AlifShape<R> &s) { return s.chunk * s.words * 64 + BEYOND; }
    static size_t bytes(const ElmAlif &a, const AlifShape<R> &s) {
        const i64 words = a.saved ? 0 : s.num_words(a);
        return room(s) * sizeof(int32_t) + (s.chunk + 1) * sizeof(i64) + words * sizeof(uint64_t);
    }

    AlifSpikes(const ElmAlif &a, const AlifShape<R> &s, i64 sample, Arena &arena)
        : rows(nullptr), list(arena.room<int32_t>(room(s))), begin(arena.room<i64>(s.chunk + 1)) {
        if (a.w_rec) rows = a.saved ? s.saved_words(a, sample) : arena.room<uint64_t>(s.num_words(a));
    }

    // Notes those of a row that reach the layer in step t; none where it is null.
    void note(const AlifShape<R> &s, i64 t, const R *row) const {
        for (i64 k = 0; k < s.words; k++)
            rows[t * s.words + k] = row ? occupied_word(row + 64 * k, s.n - 64 * k) : 0;
    }

    void list_chunk(const AlifShape<R> &s, i64 start, i64 count) const {
        begin[0] = 0;
        for (i64 t = 0; t < count; t++) {
            i64 found = begin[t];
            for (i64 k = 0; k < s.words; k++)
                found += list_bits(rows[(start + t) * s.words + k], (int32_t)(64 * k), list + found);
            begin[t + 1] = found;
        }
    }
};

// The steps `start` to `start + count` of a sample.
template <class R> struct AlifChunk {
    const ElmAlif &a;
    const AlifShape<R> &s;
    const AlifLayer<R> &w;
    const AlifSpikes<R> &own;  // listed
    i64 sample, start, count;
    R *current;  // (count, np): what arrives, or its gradient

    i64 row() const { return sample * a.num_steps + start; }
};

// What arrives, with the bias.
template <class R, class I> struct AlifArriving : AlifChunk<R> {
    template <int NV> __attribute__((noinline)) void columns(i64 c) const {
        const ElmAlif &a = this->a;
        const AlifShape<R> &s = this->s;
        Vector<R> bias[NV];
        load_block<R, NV>(bias, this->w.bias + c, NV * Lanes<R>::W);
        const i64 dense = this->sample * a.dense_batch + this->start * a.dense_time + c;  // where the first row lies
        for (i64 t = 0; t < this->count; t++) {
            Vector<R> sum[NV] = {};
            if (a.dense) load_block<R, NV>(sum, (const R *)a.dense + dense + t * a.dense_time, s.n - c);
            if (a.begin)
                gather<R, I, NV>(sum, a.begin[this->row() + t], a.end[this->row() + t], (const I *)a.channel,
                                 (const R *)a.value, (const R *)a.table + c, s.np);
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) sum[v] += bias[v];
            if (a.w_rec)
                gather<R, int32_t, NV>(sum, this->own.begin[t], this->own.begin[t + 1], this->own.list, nullptr,
                                       this->w.by_sender + c, s.np);
            store_block<R, NV>(this->current + t * s.np + c, sum, NV * Lanes<R>::W);
        }
    }
};

// From the gradient of what arrives to those of weights and dense input.
template <class R, class I> struct AlifArrived : AlifChunk<R> {
    const AlifSums<R> &sum;

    template <int NV> __attribute__((noinline)) void columns(i64 c) const {
        const ElmAlif &a = this->a;
        const AlifShape<R> &s = this->s;
        R *out = a.grad_dense ? (R *)a.grad_dense + this->row() * s.n + c : nullptr;
        for (i64 t = this->count - 1; t >= 0; t--) {
            Vector<R> g[NV];
            load_block<R, NV>(g, this->current + t * s.np + c, NV * Lanes<R>::W);
            if (out) store_block<R, NV>(out + t * s.n, g, s.n - c);
            if (sum.table)
                scatter<R, I, NV>(g, a.begin[this->row() + t], a.end[this->row() + t], (const I *)a.channel,
                                  (const R *)a.value, sum.table + c, s.np);
            if (a.w_rec)
                scatter<R, int32_t, NV>(g, this->own.begin[t], this->own.begin[t + 1], this->own.list, nullptr,
                                        sum.w_rec + c, s.np);
        }
    }
};

// What a chunk reads, on its way back: the processor foresees rows that follow one another, not chunks.
template <class R> ELM_INLINE void alif_prefetch(const AlifChunk<R> &chunk) {
    const ElmAlif &a = chunk.a;
    const AlifShape<R> &s = chunk.s;
    prefetch(s.start(a, chunk.sample, chunk.start / s.chunk), s.rows * s.np * sizeof(R));
    if (a.w_rec) prefetch(chunk.own.rows + chunk.start * s.words, chunk.count * s.words * sizeof(uint64_t));
    if (!a.begin) return;
    const i64 size = a.wide ? sizeof(int64_t) : sizeof(int32_t), row = chunk.row(), first = a.begin[row];
    prefetch((const char *)a.channel + first * size, (a.end[row + chunk.count - 1] - first) * size);
}

template <class R> ELM_INLINE void alif_arriving(const AlifChunk<R> &chunk) {
    constexpr int W = Lanes<R>::W;
    const AlifShape<R> &s = chunk.s;
    if (chunk.a.w_rec) chunk.own.list_chunk(s, chunk.start, chunk.count);
    if (chunk.a.wide)
        in_blocks<R>(AlifArriving<R, int64_t>{chunk}, 0, s.n);
    else
        in_blocks<R>(AlifArriving<R, int32_t>{chunk}, 0, s.n);
    if (Lanes<R>::PAD > W)  // vectors beyond the last one that holds a neuron
        for (i64 t = 0; t < chunk.count; t++)
            for (i64 j = (s.n + W - 1) / W * W; j < s.np; j += W) store(chunk.current + t * s.np + j, Vector<R>{});
}

template <class R> ELM_INLINE void alif_arrived(const AlifChunk<R> &chunk, const AlifSums<R> &sum) {
    if (!sum.table && !chunk.a.grad_dense && !chunk.a.w_rec) return;
    if (chunk.a.wide)
        in_blocks<R>(AlifArrived<R, int64_t>{chunk, sum}, 0, chunk.s.n);
    else
        in_blocks<R>(AlifArrived<R, int32_t>{chunk, sum}, 0, chunk.s.n);
}

}  // namespace ELM_ISA
