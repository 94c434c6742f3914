// What arrives at a neuron: sums over the events of a step, leaky integration over time, and the sum of a sequence's inputs discounted to its
// end. All sums have a fixed order: the same call gives the same bits.
#pragma once
#include "common.cuh"

constexpr int INPUT_THREADS = 256, ARRANGE_THREADS = 512, AHEAD = 8;

struct Gather {
    i64 num_row, num_part, width;
    const i64 *begin, *end;  // (num_row,): events of each row; null `end`: up to the next row's
    const i64 *index;        // row of `table` of each event
    const Real *value;       // null: all 1
    const Real *table;       // (any, width)
    Real *out;               // (num_part, num_row, width)
};

struct Filter {
    i64 num_steps, width, num_kappa, v_batch, v_time, reverse;
    const Real *v;        // (batch, time, width), rows contiguous
    const Real *kappa;    // (num_kappa,): of column c number c % num_kappa
    const Real *initial;  // (batch, width), or null
    Real *out;            // (batch, time, width)
};

struct Arrange {
    i64 num_steps, num_input;
    const i64 *lengths;          // (batch,), or null: all steps
    const Real *kappa;           // one number
    const i64 *begin, *channel;  // of row sample * num_steps + step
    const Real *value;           // null: all 1
    int *cursor;                 // (batch, num_input), where shared memory is too small; else null
    i64 *first;                  // (batch, num_input + 1): where the events of each input begin
    i64 *row;                    // (num_events,): of each event in the new order
    Real *ordered;               // (num_events,): its value
    Real *total;                 // (batch, num_input)
};

struct GatherInputs {
    i64 batch, num_input, num_part, width;
    const i64 *first, *row;  // of Arrange
    const Real *value;       // null: all 1
    const Real *table;       // (batch * time, width)
    Real *out;               // (num_part, num_input, width)
};

static_assert(sizeof(Gather) == ELM_BYTES_GATHER && sizeof(Filter) == ELM_BYTES_FILTER, "structures of input.cuh and _input.py");
static_assert(sizeof(Arrange) == ELM_BYTES_ARRANGE && sizeof(GatherInputs) == ELM_BYTES_GATHERINPUTS, "structures of input.cuh and _input.py");

// A thread sums one column of one part of a row; neighbours read neighbouring entries of the table.
ELM_KERNEL(elm_gather, Gather, INPUT_THREADS, 1) {
    const i64 at = (i64)blockIdx.x * INPUT_THREADS + threadIdx.x, row = at / a.width, column = at % a.width, part = blockIdx.y;
    if (row >= a.num_row) return;
    const i64 first = a.begin[row], last = a.end ? a.end[row] : a.begin[row + 1], share = (last - first + a.num_part - 1) / a.num_part;
    const i64 begin = first + part * share, end = begin + share < last ? begin + share : last;
    Real sum = Real(0);
    i64 e = begin;
    for (; e + 4 <= end; e += 4) {  // four loads on their way at a time
        Real x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = a.table[a.index[e + i] * a.width + column];
#pragma unroll
        for (int i = 0; i < 4; i++) sum += a.value ? a.value[e + i] * x[i] : x[i];
    }
    for (; e < end; e++) sum += (a.value ? a.value[e] : Real(1)) * a.table[a.index[e] * a.width + column];
    a.out[(part * a.num_row + row) * a.width + column] = sum;
}

// f_t = kappa f_{t-1} + v_t, or with `reverse` its transpose g_t = v_t + kappa g_{t+1}; a thread a column of a sample.
ELM_KERNEL(elm_filter, Filter, INPUT_THREADS, 1) {
    const i64 column = (i64)blockIdx.y * INPUT_THREADS + threadIdx.x, sample = blockIdx.x;
    if (column >= a.width) return;
    const Real kappa = a.kappa[column % a.num_kappa];
    Real f = a.initial ? a.initial[sample * a.width + column] : Real(0);
    const i64 from_row = a.reverse ? -a.v_time : a.v_time, to_row = a.reverse ? -a.width : a.width, last = a.reverse ? a.num_steps - 1 : 0;
    const Real *from = a.v + sample * a.v_batch + last * a.v_time + column;
    Real *to = a.out + (sample * a.num_steps + last) * a.width + column;
    for (i64 t = 0; t < a.num_steps; t += AHEAD) {
        Real x[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) x[i] = t + i < a.num_steps ? from[(t + i) * from_row] : Real(0);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            f = kappa * f + x[i];
            if (t + i < a.num_steps) to[(t + i) * to_row] = f;
        }
    }
}

ELM_DEVICE double power(double kappa, i64 exponent) {
    double result = 1.0;
    for (; exponent > 0; exponent /= 2, kappa *= kappa)
        if (exponent % 2) result *= kappa;
    return result;
}

// The same for events, and the order in which the backward pass reads them: those of a sample by input, earlier steps first. A block a
// sample counts the events of each input, adds the counts up to places, and hands these out in the events' order.
ELM_KERNEL(elm_arrange, Arrange, ARRANGE_THREADS, 1) {
    ELM_DYNAMIC_SHARED(int, room);
    int *const in_thread = room;  // (ARRANGE_THREADS,)
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const i64 sample = blockIdx.x, length = valid_steps(a.lengths, sample, a.num_steps);
    const i64 *begin = a.begin + sample * a.num_steps;
    const i64 from = begin[0], to = begin[length];  // what stands past a sample's end is left out
    int *const next = a.cursor ? a.cursor + sample * a.num_input : room + ARRANGE_THREADS;
    i64 *const first = a.first + sample * (a.num_input + 1);
    for (i64 i = thread; i < a.num_input; i += ARRANGE_THREADS) next[i] = 0;
    __syncthreads();
    for (i64 e = from + thread; e < to; e += ARRANGE_THREADS) atomicAdd(&next[a.channel[e]], 1);
    __syncthreads();

    const i64 share = (a.num_input + ARRANGE_THREADS - 1) / ARRANGE_THREADS, mine = thread * share;
    const i64 end = mine + share < a.num_input ? mine + share : a.num_input;
    int count = 0;
    for (i64 i = mine; i < end; i++) count += next[i];
    in_thread[thread] = count;
    __syncthreads();
    int place = 0;
    for (int i = 0; i < thread; i++) place += in_thread[i];
    for (i64 i = mine; i < end; i++) {
        const int of_input = next[i];
        next[i] = place;
        first[i] = from + place;
        place += of_input;
    }
    if (thread == 0) first[a.num_input] = to;
    __syncthreads();

    for (i64 start = from; start < to; start += ARRANGE_THREADS) {
        const i64 e = start + thread;
        const int channel = e < to ? int(a.channel[e]) : -1;
        i64 step = 0;
        Real value = Real(1);
        if (e < to) {
            i64 high = length - 1;  // the last step whose events begin at `e` or before
            while (step < high) {
                const i64 middle = (step + high + 1) / 2;
                if (begin[middle] <= e)
                    step = middle;
                else
                    high = middle - 1;
            }
            if (a.value) value = a.value[e];
        }
        const unsigned same = __match_any_sync(~0u, channel);
        const int before = __popc(same & ((1u << lane) - 1));
        for (int turn = 0; turn < ARRANGE_THREADS / 32; turn++) {  // warps one after the other: the events keep their order
            if (turn == warp) {
                const int base = channel >= 0 ? next[channel] : 0;
                __syncwarp();
                if (channel >= 0) {
                    const i64 at = from + base + before;
                    a.row[at] = sample * a.num_steps + step;
                    if (a.value) a.ordered[at] = value;
                    if (before == 0) next[channel] = base + __popc(same);
                }
            }
            __syncthreads();
        }
    }

    const Real kappa = *a.kappa;
    const i64 old = length - reach(kappa, length);
    for (i64 i = thread; i < a.num_input; i += ARRANGE_THREADS) {
        Real sum = Real(0);
        const i64 last = i + 1 < a.num_input ? first[i + 1] : to;
        for (i64 e = last - 1; e >= first[i]; e--) {
            const i64 step = a.row[e] - sample * a.num_steps;
            if (step < old) break;
            sum += Real(power(kappa, length - 1 - step)) * (a.value ? a.ordered[e] : Real(1));
        }
        a.total[sample * a.num_input + i] = sum;
    }
}

// Sums over the events of each input: the gradient of `table`, whose rows elm_gather adds up. A part takes some of the samples.
ELM_KERNEL(elm_gather_inputs, GatherInputs, INPUT_THREADS, 1) {
    const i64 at = (i64)blockIdx.x * INPUT_THREADS + threadIdx.x, input = at / a.width, column = at % a.width, part = blockIdx.y;
    if (input >= a.num_input) return;
    const i64 share = (a.batch + a.num_part - 1) / a.num_part, end = (part + 1) * share < a.batch ? (part + 1) * share : a.batch;
    Real sum = Real(0);
    for (i64 sample = part * share; sample < end; sample++) {
        const i64 *first = a.first + sample * (a.num_input + 1) + input;
        for (i64 e = first[0]; e < first[1]; e++) sum += (a.value ? a.value[e] : Real(1)) * a.table[a.row[e] * a.width + column];
    }
    a.out[(part * a.num_input + input) * a.width + column] = sum;
}
