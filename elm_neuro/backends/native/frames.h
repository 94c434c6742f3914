// Dense frames searched for the events in them.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

// Part `index` of the samples to part `index` of the events; status 1 where they do not fit.
template <class R> static void compact(const ElmFrames *a, ElmShare *share) {
    constexpr int W = Lanes<R>::W, GROUP = 64 / Lanes<R>::W;
    const i64 base = share->index * a->room, limit = base + a->room;
    i64 at = base;
    R *value = (R *)a->value;
    for (i64 b = share->first; b < share->last; b++) {
        for (i64 t = 0; t < a->num_steps; t++) {
            const R *x = (const R *)a->frames + b * a->frames_batch + t * a->frames_time;
            a->begin[b * a->num_steps + t] = at;
            if (limit - at < a->num_input) {  // rows with more room than inputs need no further look
                i64 count = 0;
                for (i64 c = 0; c < a->num_input; c++) count += x[c] != R(0);
                if (count > limit - at) {
                    share->status = 1;
                    return;
                }
            }
            i64 c = 0;
            // 64 entries at a time become one word of bits, so that silence, which is most of it, costs one branch
            for (; c + 64 <= a->num_input; c += 64) {
                uint64_t bits = 0;
#pragma GCC unroll 64
                for (int k = 0; k < GROUP; k++) bits |= (uint64_t)occupied(x + c + k * W) << (k * W);
                for (; bits; bits &= bits - 1, at++) {
                    const i64 found = c + __builtin_ctzll(bits);
                    a->channel[at] = (int32_t)found;
                    value[at] = x[found];
                }
            }
            uint64_t bits = 0;  // what is left, the last vector in part: one branch again
            for (i64 k = c; k < a->num_input; k += W) {
                R lanes[W];
                store(lanes, load_upto(x + k, a->num_input - k));
                bits |= (uint64_t)occupied(lanes) << (k - c);
            }
            for (; bits; bits &= bits - 1, at++) {
                const i64 found = c + __builtin_ctzll(bits);
                a->channel[at] = (int32_t)found;
                value[at] = x[found];
            }
            a->end[b * a->num_steps + t] = at;
        }
    }
}

}  // namespace ELM_ISA
