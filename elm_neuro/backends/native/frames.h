// Dense frames searched for the events in them.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

constexpr i64 AHEAD = 8192;  // bytes of frames; half and twice as many are as fast

// Part `index` of the samples to part `index` of the events; status 1 where they do not fit, else 2 where one of them
// does not count 1.
template <class R> static void compact(const ElmFrames *a, ElmShare *share) {
    const i64 base = share->index * a->room, limit = base + a->room;
    i64 at = base, valued = base;  // events that have a value: none before a sample in which one is not 1
    R *value = (R *)a->value;
    bool counts_one = true;
    for (i64 b = share->first; b < share->last; b++) {
        const R *frames = (const R *)a->frames + b * a->frames_batch;
        const i64 first = at;
        bool others = false;  // events of this sample that do not count 1
        for (i64 t = 0; t < a->num_steps; t++) {
            const R *x = frames + t * a->frames_time;
            a->begin[b * a->num_steps + t] = at;
            if (limit - at < a->num_input + BEYOND) {  // rows with more room than inputs need no further look
                i64 count = 0;
                for (i64 c = 0; c < a->num_input; c++) count += x[c] != R(0);
                if (count > limit - at) {
                    share->status = 1;
                    return;
                }
                for (i64 c = 0; c < a->num_input; c++)
                    if (x[c] != R(0)) a->channel[at++] = (int32_t)c;
            } else {
                for (i64 c = 0; c < a->num_input; c += 64) {
                    // about a fifth less time at 1 to 5 % of events: the loop waits for memory
                    prefetch((const char *)(x + c) + AHEAD, 64 * sizeof(R));
                    at += list_bits(occupied_word(x + c, a->num_input - c), (int32_t)c, a->channel + at);
                }
            }
            a->end[b * a->num_steps + t] = at;
            // of the few entries that are events: a second look at the whole row took as long as the first
            for (i64 e = a->begin[b * a->num_steps + t]; e < at; e++) others |= x[a->channel[e]] != R(1);
        }
        counts_one = counts_one && !others;
        if (counts_one) continue;
        for (; valued < first; valued++) value[valued] = R(1);
        for (i64 t = 0; t < a->num_steps; t++)
            for (const i64 end = a->end[b * a->num_steps + t]; valued < end; valued++)
                value[valued] = frames[t * a->frames_time + a->channel[valued]];
    }
    if (!counts_one) share->status = 2;
    if (a->num_part == 1) return;
    for (; valued < at; valued++) value[valued] = R(1);  // another part may have values
}

}  // namespace ELM_ISA
