// Dense frames searched for the events in them.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

constexpr i64 AHEAD = 8192;  // bytes of frames; half and twice as many are as fast

// The channels of the events in a row, listed in order, with as much room as list_bits needs; returns how many they are.
// `others` takes in those that do not count 1 where masks have registers of their own: there that is one operation a
// vector. Elsewhere it costs more than to look again at the few that are events.
#if defined(__AVX512F__)
constexpr bool ASKED_AT_ONCE = true;
ELM_INLINE __m512i places_of(float) {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
ELM_INLINE __m256i places_of(double) { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
ELM_INLINE __m512i moved_on(__m512i places) { return _mm512_add_epi32(places, _mm512_set1_epi32(16)); }
ELM_INLINE __m256i moved_on(__m256i places) { return _mm256_add_epi32(places, _mm256_set1_epi32(8)); }

template <class R> ELM_INLINE i64 list_events(const R *x, i64 n, int32_t *to, Mask<R> &others) {
    constexpr int W = Lanes<R>::W;
    const Vector<R> zero = {}, one = all<R>(R(1));
    int32_t *at = to;
    auto places = places_of(R());
    // The places are counted in a register: bringing a number there takes the way on which masks come back.
    const auto list = [&](Vector<R> v) ELM_LAMBDA {
        const Mask<R> event = differs(v, zero);
        others |= event & differs(v, one);
        at += list_lanes(event, places, at);
        places = moved_on(places);
    };
    i64 c = 0;
    for (; c + 4 * W <= n; c += 4 * W) {
        prefetch((const char *)(x + c) + AHEAD, 4 * VECTOR_BYTES);  // a fifth less time: else it waits for memory
        const Vector<R> v[4] = {load(x + c), load(x + c + W), load(x + c + 2 * W), load(x + c + 3 * W)};
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) list(v[k]);
    }
    for (; c + W <= n; c += W) list(load(x + c));
    if (c < n) list(load_part(x + c, int(n - c)));
    return at - to;
}
#else
constexpr bool ASKED_AT_ONCE = false;
template <class R> ELM_INLINE i64 list_events(const R *x, i64 n, int32_t *to, Mask<R> &) {
    i64 count = 0;
    for (i64 c = 0; c < n; c += 64) {
        prefetch((const char *)(x + c) + AHEAD, 64 * sizeof(R));
        count += list_bits(occupied_word(x + c, n - c), (int32_t)c, to + count);
    }
    return count;
}
#endif

// Part `index` of the samples to part `index` of the events; status 1 where they do not fit, else 2 where one of them
// does not count 1.
template <class R> static void compact(const ElmFrames *args, ElmShare *share) {
    const ElmFrames a = *args;  // a copy: what is written to the lists could be seen as written to it
    const i64 base = share->index * a.room, limit = base + a.room;
    i64 at = base, valued = base;  // events that have a value: none before a sample in which one is not 1
    R *value = (R *)a.value;
    bool counts_one = true;
    for (i64 b = share->first; b < share->last; b++) {
        const R *frames = (const R *)a.frames + b * a.frames_batch;
        const i64 first = at;
        Mask<R> others = {};  // events of this sample that do not count 1, in one of two ways
        bool other = false;
        i64 *begin = a.begin + b * a.num_steps, *end = a.end + b * a.num_steps;
        for (i64 t = 0; t < a.num_steps; t++) {
            const R *x = frames + t * a.frames_time;
            begin[t] = at;
            const bool tight = limit - at < a.num_input + BEYOND;
            if (tight) {  // rows with more room than inputs need no further look
                i64 count = 0;
                for (i64 c = 0; c < a.num_input; c++) count += x[c] != R(0);
                if (count > limit - at) {
                    share->status = 1;
                    return;
                }
                for (i64 c = 0; c < a.num_input; c += 64) {
                    uint64_t bits = occupied_word(x + c, a.num_input - c);
                    for (; bits; bits &= bits - 1) a.channel[at++] = (int32_t)(c + __builtin_ctzll(bits));
                }
            } else {
                at += list_events(x, a.num_input, a.channel + at, others);
            }
            end[t] = at;
            for (i64 e = begin[t]; (tight || !ASKED_AT_ONCE) && e < at; e++)
                other |= x[a.channel[e]] != R(1);
        }
        counts_one = counts_one && !other && !any(others);
        if (counts_one) continue;
        for (; valued < first; valued++) value[valued] = R(1);
        for (i64 t = 0; t < a.num_steps; t++)
            for (; valued < end[t]; valued++)
                value[valued] = frames[t * a.frames_time + a.channel[valued]];
    }
    if (!counts_one) share->status = 2;
    if (a.num_part == 1) return;
    for (; valued < at; valued++) value[valued] = R(1);  // another part may have values
}

}  // namespace ELM_ISA
