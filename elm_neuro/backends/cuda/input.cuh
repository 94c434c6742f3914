// What arrives at a neuron: sums over the events of a step, leaky integration over time, and the sum of a sequence's inputs discounted to its
// end. All sums have a fixed order: the same call gives the same bits.
#pragma once
#include "common.cuh"

constexpr int INPUT_THREADS = 256, AHEAD = 8;

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

struct Discount {
    i64 num_steps, num_input, x_batch, x_time;
    const i64 *lengths;    // (batch,), or null: all steps
    const Real *kappa;     // one number
    const Real *x;         // (batch, time, num_input), rows contiguous; null: events
    const i64 *begin, *channel;  // of row sample * num_steps + step
    const Real *value;
    Real *total;           // (batch, num_input)
};

static_assert(sizeof(Gather) == ELM_BYTES_GATHER && sizeof(Filter) == ELM_BYTES_FILTER && sizeof(Discount) == ELM_BYTES_DISCOUNT, "structures of input.cuh and _input.py");

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

// Steps that count: where a step's discount is below the square of the unit in the last place, it is left out.
ELM_DEVICE i64 reach(Real kappa, i64 num_steps) {
    const double below = ELM_DOUBLE ? -72.1 : -31.9;
    if (kappa <= Real(0)) return num_steps < 1 ? num_steps : 1;
    if (kappa >= Real(1)) return num_steps;
    const double most = ceil(below / log((double)kappa));
    return most < (double)num_steps ? (i64)most : num_steps;
}
ELM_DEVICE double power(double kappa, i64 exponent) {
    double result = 1.0;
    for (; exponent > 0; exponent /= 2, kappa *= kappa)
        if (exponent % 2) result *= kappa;
    return result;
}

// total_i = sum_t kappa^(length - 1 - t) x_ti
ELM_KERNEL(elm_discount_frames, Discount, INPUT_THREADS, 1) {
    const i64 input = (i64)blockIdx.y * INPUT_THREADS + threadIdx.x, sample = blockIdx.x;
    if (input >= a.num_input) return;
    const Real kappa = *a.kappa;
    const i64 length = a.lengths ? a.lengths[sample] : a.num_steps;
    const Real *x = a.x + sample * a.x_batch + input;
    Real sum = Real(0);
    for (i64 t = length - reach(kappa, length); t < length; t += AHEAD) {
        Real next[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) next[i] = t + i < length ? x[(t + i) * a.x_time] : Real(0);
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (t + i < length) sum = kappa * sum + next[i];
    }
    a.total[sample * a.num_input + input] = sum;
}

// The same for events: a block a sample. Each thread looks up the discount of one event at a time; then each adds up those of its own inputs.
ELM_KERNEL(elm_discount_events, Discount, INPUT_THREADS, 1) {
    ELM_DYNAMIC_SHARED(Vector, room);
    Real *const weight = (Real *)room;
    int *const channel = (int *)(weight + INPUT_THREADS);
    const int thread = threadIdx.x;
    const i64 sample = blockIdx.x;
    const Real kappa = *a.kappa;
    const i64 length = a.lengths ? a.lengths[sample] : a.num_steps, *begin = a.begin + sample * a.num_steps;
    Real *const total = a.total + sample * a.num_input;
    for (i64 i = thread; i < a.num_input; i += INPUT_THREADS) total[i] = Real(0);
    const i64 first = length - reach(kappa, length), from = begin[first], to = begin[length];
    for (i64 start = from; start < to; start += INPUT_THREADS) {
        const i64 e = start + thread;
        if (e < to) {
            i64 low = first, high = length - 1;  // the last step whose events begin at `e` or before
            while (low < high) {
                const i64 middle = (low + high + 1) / 2;
                if (begin[middle] <= e)
                    low = middle;
                else
                    high = middle - 1;
            }
            weight[thread] = Real(power(kappa, length - 1 - low)) * (a.value ? a.value[e] : Real(1));
            channel[thread] = int(a.channel[e]);
        }
        __syncthreads();
        const int count = to - start < INPUT_THREADS ? int(to - start) : INPUT_THREADS;
        for (int i = 0; i < count; i++)
            if (channel[i] % INPUT_THREADS == thread) total[channel[i]] += weight[i];
        __syncthreads();
    }
}
