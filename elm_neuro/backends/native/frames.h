// Dense frames searched for the events in them.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

constexpr i64 AHEAD = 8192;  // bytes of frames; half and twice as many are as fast

// Whether an event counts other than 1 is asked of all entries while they are in registers, where masks have registers
// of their own: two operations a vector. Elsewhere that costs more than to look again at the few that are events.
#if defined(__AVX512F__)
constexpr bool ASKED_AT_ONCE = true;
#else
constexpr bool ASKED_AT_ONCE = false;
#endif

// As occupied_word; `others` takes in the entries that are neither 0 nor 1, where that is asked at once.
template <class R> ELM_INLINE uint64_t events_word(const R *p, i64 left, Mask<R> &others) {
    constexpr int W = Lanes<R>::W;
    const Vector<R> zero = {}, one = all<R>(R(1));
    if (ASKED_AT_ONCE && left >= 64)
#pragma GCC unroll 64
        for (int k = 0; k < 64; k += W) others |= differs(load(p + k), zero) & differs(load(p + k), one);
    else
        for (i64 k = 0; ASKED_AT_ONCE && k < left; k += W) {
            const Vector<R> x = load_upto(p + k, left - k);
            others |= differs(x, zero) & differs(x, one);
        }
    return occupied_word(p, left);
}

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
            if (limit - at < a.num_input + BEYOND) {  // rows with more room than inputs need no further look
                i64 count = 0;
                for (i64 c = 0; c < a.num_input; c++) count += x[c] != R(0);
                if (count > limit - at) {
                    share->status = 1;
                    return;
                }
                for (i64 c = 0; c < a.num_input; c += 64) {
                    uint64_t bits = events_word(x + c, a.num_input - c, others);
                    for (; bits; bits &= bits - 1) a.channel[at++] = (int32_t)(c + __builtin_ctzll(bits));
                }
            } else {
                for (i64 c = 0; c < a.num_input; c += 64) {
                    // about a fifth less time at 1 to 5 % of events: the loop waits for memory
                    prefetch((const char *)(x + c) + AHEAD, 64 * sizeof(R));
                    at += list_bits(events_word(x + c, a.num_input - c, others), (int32_t)c, a.channel + at);
                }
            }
            end[t] = at;
            for (i64 e = begin[t]; !ASKED_AT_ONCE && e < at; e++)
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
