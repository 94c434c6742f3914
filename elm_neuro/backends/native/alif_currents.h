// What arrives at a LIF layer in a chunk of steps, from outside and from its own neurons, and the gradients of the
// weights that it comes through.
#pragma once
#include "alif_layer.h"

namespace ELM_ISA {

// The spikes that arrive at a sample: those of its own neurons in all steps, and of all senders in a chunk of them.
template <class R> struct AlifArrivals {
    uint64_t *own;    // a bit each, words of 64 neurons, row t what reaches the layer in step t; null if not recurrent
    int32_t *sender;  // rows of the table: inputs, behind them the layer's neurons
    R *value;         // what each counts; null where that is 1
    i64 *begin;       // those of the chunk's step t lie from begin[t] to begin[t + 1]

    // Room for those of the chunk that has most.
    static i64 num_sender(const ElmAlif &a, const AlifShape<R> &s, i64 sample) {
        i64 most = 0;
        for (i64 start = 0; a.begin && start < a.num_steps; start += s.stretch) {
            const i64 last = (start + s.stretch < a.num_steps ? start + s.stretch : a.num_steps) - 1;
            const i64 count = a.end[sample * a.num_steps + last] - a.begin[sample * a.num_steps + start];
            most = count > most ? count : most;
        }
        return most + (a.w_rec ? s.stretch * s.words * 64 : 0) + BEYOND;
    }
    static size_t bytes(const ElmAlif &a, const AlifShape<R> &s, i64 sample) {
        const i64 words = a.saved ? 0 : s.num_words(a), size = sizeof(int32_t) + (a.value ? sizeof(R) : 0);
        return num_sender(a, s, sample) * size + (s.stretch + 1) * sizeof(i64) + words * sizeof(uint64_t);
    }

    AlifArrivals(const ElmAlif &a, const AlifShape<R> &s, i64 sample, Arena &arena)
        : own(nullptr),
          sender(arena.room<int32_t>(num_sender(a, s, sample))),
          value(a.value ? arena.room<R>(num_sender(a, s, sample)) : nullptr),
          begin(arena.room<i64>(s.stretch + 1)) {
        if (a.w_rec) own = a.saved ? s.saved_words(a, sample) : arena.room<uint64_t>(s.num_words(a));
    }

    // Notes the own spikes of a row that reach the layer in step t; none where it is null.
    void note(const AlifShape<R> &s, i64 t, const R *row) const {
        for (i64 k = 0; k < s.words; k++) own[t * s.words + k] = row ? occupied_word(row + 64 * k, s.n - 64 * k) : 0;
    }

    void list(const ElmAlif &a, const AlifShape<R> &s, i64 sample, i64 start, i64 count) const {
        begin[0] = 0;
        for (i64 t = 0; t < count; t++) {
            i64 at = begin[t];
            if (a.begin) at += copy_events(a, sample * a.num_steps + start + t, at);
            for (i64 k = 0; own && k < s.words; k++) {
                const i64 first = at;
                at += list_bits(own[(start + t) * s.words + k], (int32_t)(a.num_input + 64 * k), sender + at);
                for (i64 e = first; value && e < at; e++) value[e] = R(1);
            }
            begin[t + 1] = at;
        }
    }

   private:
    i64 copy_events(const ElmAlif &a, i64 row, i64 at) const {
        const i64 first = a.begin[row], count = a.end[row] - first;
        if (a.wide)
            for (i64 e = 0; e < count; e++) sender[at + e] = (int32_t)((const int64_t *)a.channel)[first + e];
        else
            copy_list(sender + at, (const int32_t *)a.channel + first, count);
        if (value) copy_row(value + at, (const R *)a.value + first, count);
        return count;
    }
};

// The steps `start` to `start + count` of a sample, whose arrivals are listed.
template <class R> struct AlifChunk {
    const ElmAlif &a;
    const AlifShape<R> &s;
    const AlifLayer<R> &w;
    const AlifArrivals<R> &arrivals;
    i64 sample, start, count;
    R *current;  // (count, np): what arrives, or its gradient

    i64 row() const { return sample * a.num_steps + start; }
};

// What arrives, with the bias.
template <class R> struct AlifArriving : AlifChunk<R> {
    template <int NV> __attribute__((noinline)) void columns(i64 c) const {
        const ElmAlif &a = this->a;
        const AlifShape<R> &s = this->s;
        const AlifArrivals<R> &from = this->arrivals;
        Vector<R> bias[NV];
        load_block<R, NV>(bias, this->w.bias + c, NV * Lanes<R>::W);
        const i64 dense = this->sample * a.dense_batch + this->start * a.dense_time + c;  // where the first row lies
        for (i64 t = 0; t < this->count; t++) {
            Vector<R> sum[NV] = {};
            if (a.dense) load_block<R, NV>(sum, (const R *)a.dense + dense + t * a.dense_time, s.n - c);
#pragma GCC unroll 16
            for (int v = 0; v < NV; v++) sum[v] += bias[v];
            gather<R, int32_t, NV>(sum, from.begin[t], from.begin[t + 1], from.sender, from.value,
                                   (const R *)a.table + c, s.np);
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
        const AlifArrivals<R> &from = this->arrivals;
        R *out = a.grad_dense ? (R *)a.grad_dense + this->row() * s.n + c : nullptr;
        for (i64 t = this->count - 1; t >= 0; t--) {
            Vector<R> g[NV];
            load_block<R, NV>(g, this->current + t * s.np + c, NV * Lanes<R>::W);
            if (out) store_block<R, NV>(out + t * s.n, g, s.n - c);
            if (sum.table)
                scatter<R, int32_t, NV>(g, from.begin[t], from.begin[t + 1], from.sender, from.value, sum.table + c,
                                        s.np);
        }
    }
};

// What a chunk reads, on its way back: the processor foresees rows that follow one another, not chunks.
template <class R> ELM_INLINE void alif_prefetch(const AlifChunk<R> &chunk) {
    const ElmAlif &a = chunk.a;
    const AlifShape<R> &s = chunk.s;
    prefetch(s.start(a, chunk.sample, chunk.start / s.stretch), s.rows * s.np * sizeof(R));
    if (a.w_rec) prefetch(chunk.arrivals.own + chunk.start * s.words, chunk.count * s.words * sizeof(uint64_t));
    if (!a.begin) return;
    const i64 size = a.wide ? sizeof(int64_t) : sizeof(int32_t), row = chunk.row(), first = a.begin[row];
    prefetch((const char *)a.channel + first * size, (a.end[row + chunk.count - 1] - first) * size);
}

template <class R> ELM_INLINE void alif_arriving(const AlifChunk<R> &chunk) {
    constexpr int W = Lanes<R>::W;
    const AlifShape<R> &s = chunk.s;
    chunk.arrivals.list(chunk.a, s, chunk.sample, chunk.start, chunk.count);
    in_blocks<R>(AlifArriving<R>{chunk}, 0, s.n);
    if (Lanes<R>::PAD > W)  // vectors beyond the last one that holds a neuron
        for (i64 t = 0; t < chunk.count; t++)
            for (i64 j = (s.n + W - 1) / W * W; j < s.np; j += W) store(chunk.current + t * s.np + j, Vector<R>{});
}

template <class R> ELM_INLINE void alif_arrived(const AlifChunk<R> &chunk, const AlifSums<R> &sum) {
    if (sum.table || chunk.a.grad_dense) in_blocks<R>(AlifArrived<R>{chunk, sum}, 0, chunk.s.n);
}

}  // namespace ELM_ISA
