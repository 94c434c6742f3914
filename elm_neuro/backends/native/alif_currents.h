// What arrives at a LIF layer in a chunk of steps, from outside and from its own neurons, and the gradients of the
// weights that it comes through.
#pragma once
#include "alif_layer.h"

namespace ELM_ISA {

// The spikes of a sample's own neurons that reach the layer: of all steps, and those of a chunk of them as a list.
template <class R> struct AlifOwn {
    uint64_t *words;  // a bit each, words of 64 neurons, row t what arrives in step t; null if not recurrent
    int32_t *sender;  // neurons
    i64 *begin;       // those of the chunk's step t lie from begin[t] to begin[t + 1]

    static i64 num_listed(const AlifShape<R> &s) { return s.stretch * s.words * 64 + BEYOND; }
    static size_t bytes(const ElmAlif &a, const AlifShape<R> &s) {
        if (!a.w_rec) return 0;
        const size_t lists = num_listed(s) * sizeof(int32_t) + (s.stretch + 1) * sizeof(i64);
        return lists + (a.saved ? 0 : s.num_words(a) * sizeof(uint64_t));
    }
    AlifOwn(const ElmAlif &a, const AlifShape<R> &s, i64 sample, Arena &arena)
        : words(nullptr), sender(nullptr), begin(nullptr) {
        if (!a.w_rec) return;
        words = a.saved ? s.saved_words(a, sample) : arena.room<uint64_t>(s.num_words(a));
        sender = arena.room<int32_t>(num_listed(s)), begin = arena.room<i64>(s.stretch + 1);
    }

    // Notes the spikes of a row that arrive in step t; none where it is null.
    void note(const AlifShape<R> &s, i64 t, const R *row) const {
        for (i64 k = 0; k < s.words; k++) words[t * s.words + k] = row ? occupied_word(row + 64 * k, s.n - 64 * k) : 0;
    }
    void list(const AlifShape<R> &s, i64 start, i64 count) const {
        if (!words) return;
        i64 at = begin[0] = 0;
        for (i64 t = 0; t < count; begin[++t] = at)
            for (i64 k = 0; k < s.words; k++)
                at += list_few_bits(words[(start + t) * s.words + k], (int32_t)(64 * k), sender + at);
    }
};

// The steps `start` to `start + count` of a sample, whose own spikes are listed.
template <class R> struct AlifChunk {
    const ElmAlif &a;
    const AlifShape<R> &s;
    const AlifLayer<R> &w;
    const AlifOwn<R> &own;
    i64 sample, start, count;
    R *current;  // (count, np): what arrives, or its gradient

    i64 row() const { return sample * a.num_steps + start; }
};

// Where an entry of an array lies, null of one that is not there.
template <class T> ELM_INLINE T *entry(T *base, i64 index) { return base ? base + index : nullptr; }

// What arrives, with the bias: events where they lie and own spikes after them. One list of both would have steps of one
// length less for the processor to guess, but took longer to write than that costs.
template <class R> struct AlifArriving : AlifChunk<R> {
    template <int NV> __attribute__((noinline)) void columns(i64 c) const {
        const ElmAlif &a = this->a;
        const AlifShape<R> &s = this->s;
        const AlifOwn<R> &own = this->own;
        const R *value = (const R *)a.value;
        const R *table = entry((const R *)a.table, c), *rows = entry(table, a.num_input * s.np);
        Vector<R> bias[NV];
        load_block<R, NV>(bias, this->w.bias + c, NV * Lanes<R>::W);
        const i64 dense = this->sample * a.dense_batch + this->start * a.dense_time + c;  // where the first row lies
        for (i64 t = 0, row = this->row(); t < this->count; t++, row++) {
            Vector<R> sum[NV] = {};
            if (a.dense) load_block<R, NV>(sum, (const R *)a.dense + dense + t * a.dense_time, s.n - c);
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) sum[v] += bias[v];
            if (a.begin && a.wide)
                gather<R, int64_t, NV>(sum, a.begin[row], a.end[row], (const int64_t *)a.channel, value, table, s.np);
            else if (a.begin)
                gather<R, int32_t, NV>(sum, a.begin[row], a.end[row], (const int32_t *)a.channel, value, table, s.np);
            if (own.words) gather<R, int32_t, NV>(sum, own.begin[t], own.begin[t + 1], own.sender, nullptr, rows, s.np);
            store_block<R, NV>(this->current + t * s.np + c, sum, NV * Lanes<R>::W);
        }
    }
};

// From the gradient of what arrives to those of the table and of dense input.
template <class R> struct AlifArrived : AlifChunk<R> {
    const AlifSums<R> &sum;

    template <int NV> __attribute__((noinline)) void columns(i64 c) const {
        const ElmAlif &a = this->a;
        const AlifShape<R> &s = this->s;
        const AlifOwn<R> &own = this->own;
        const R *value = (const R *)a.value;
        R *out = a.grad_dense ? (R *)a.grad_dense + this->row() * s.n + c : nullptr;
        R *table = entry(sum.table, c), *rows = entry(table, a.num_input * s.np);
        for (i64 t = this->count - 1; t >= 0; t--) {
            Vector<R> g[NV];
            load_block<R, NV>(g, this->current + t * s.np + c, NV * Lanes<R>::W);
            if (out) store_block<R, NV>(out + t * s.n, g, s.n - c);
            if (!sum.table) continue;
            const i64 row = this->row() + t;
            if (a.begin && a.wide)
                scatter<R, int64_t, NV>(g, a.begin[row], a.end[row], (const int64_t *)a.channel, value, table, s.np);
            else if (a.begin)
                scatter<R, int32_t, NV>(g, a.begin[row], a.end[row], (const int32_t *)a.channel, value, table, s.np);
            if (own.words) scatter<R, int32_t, NV>(g, own.begin[t], own.begin[t + 1], own.sender, nullptr, rows, s.np);
        }
    }
};

// What a chunk reads, on its way back: the processor foresees rows that follow one another, not chunks.
template <class R> ELM_INLINE void alif_prefetch(const AlifChunk<R> &chunk) {
    const ElmAlif &a = chunk.a;
    const AlifShape<R> &s = chunk.s;
    prefetch(s.start(a, chunk.sample, chunk.start / s.stretch), s.rows * s.np * sizeof(R));
    if (a.w_rec) prefetch(chunk.own.words + chunk.start * s.words, chunk.count * s.words * sizeof(uint64_t));
    if (!a.begin) return;
    const i64 size = a.wide ? sizeof(int64_t) : sizeof(int32_t), row = chunk.row(), first = a.begin[row];
    const i64 before = row < s.stretch ? 0 : row - s.stretch;
    prefetch(a.begin + before, (row - before) * sizeof(i64)), prefetch(a.end + before, (row - before) * sizeof(i64));
    prefetch((const char *)a.channel + first * size, (a.end[row + chunk.count - 1] - first) * size);
}

template <class R> ELM_INLINE void alif_arriving(const AlifChunk<R> &chunk) {
    constexpr int W = Lanes<R>::W;
    const AlifShape<R> &s = chunk.s;
    chunk.own.list(s, chunk.start, chunk.count);
    in_blocks<R>(AlifArriving<R>{chunk}, 0, s.n);
    if (Lanes<R>::PAD > W)  // vectors beyond the last one that holds a neuron
        for (i64 t = 0; t < chunk.count; t++)
            for (i64 j = (s.n + W - 1) / W * W; j < s.np; j += W) store(chunk.current + t * s.np + j, Vector<R>{});
}

template <class R> ELM_INLINE void alif_arrived(const AlifChunk<R> &chunk, const AlifSums<R> &sum) {
    if (sum.table || chunk.a.grad_dense) in_blocks<R>(AlifArrived<R>{chunk, sum}, 0, chunk.s.n);
}

}  // namespace ELM_ISA
