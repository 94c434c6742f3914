// The readout of every step and its gradients, where outputs are few: a product so narrow costs cuBLAS more time on the host than here.
#pragma once
#include "common.cuh"

constexpr int READOUT_THREADS = 256;

struct Readout {
    i64 batch, num_steps, num_neuron, num_output, num_memory;
    const i64 *lengths;                 // null: all steps are valid
    const Real *memory, *w_y, *b_y;     // (neuron, batch, step, memory)
    Real *y;                            // (batch, step, neuron, output)
};

struct ReadoutBackward {
    i64 batch, num_steps, num_neuron, num_output, num_memory;
    i64 num_part;                                           // of the rows, a block each
    i64 grad_batch, grad_time, grad_neuron, grad_output;    // strides of grad_y
    const i64 *lengths;
    const Real *memory, *w_y, *grad_y;
    Real *grad_memory;                                      // shape of memory
    Real *product;                                          // (neuron, part, output, memory + 1): of the weight, last of the bias
};

static_assert(sizeof(Readout) == ELM_BYTES_READOUT && sizeof(ReadoutBackward) == ELM_BYTES_READOUTBACKWARD, "structures of readout.cuh and _readout.py");

// y = W_y m + b_y, 0 past a sample's end; a thread an output.
ELM_KERNEL(elm_readout, Readout, READOUT_THREADS, 1) {
    const i64 at = (i64)blockIdx.x * READOUT_THREADS + threadIdx.x, output = at % a.num_output, neuron = at / a.num_output % a.num_neuron, row = at / a.num_output / a.num_neuron;
    const i64 num_row = a.batch * a.num_steps;
    if (row >= num_row) return;
    if (a.lengths && row % a.num_steps >= a.lengths[row / a.num_steps]) {
        a.y[at] = Real(0);
        return;
    }
    const Real *m = a.memory + (neuron * num_row + row) * a.num_memory, *w = a.w_y + (neuron * a.num_output + output) * a.num_memory;
    Real sum = a.b_y[neuron * a.num_output + output];
#pragma unroll 4
    for (i64 k = 0; k < a.num_memory; k++) sum += w[k] * m[k];
    a.y[at] = sum;
}

// Sum over some rows of a part of what an output's gradient gives the weight of a unit, or, past the last, the bias.
ELM_DEVICE Real product_of(const ReadoutBackward &a, const Real *grad_y, const Real *memory, i64 first, i64 end, int stride, i64 output, i64 k) {
    constexpr int AHEAD = 8;  // rows whose numbers are on their way at a time
    i64 sample = first / a.num_steps, step = first % a.num_steps;
    Real sum = Real(0);
    for (i64 row = first; row < end; row += AHEAD * stride) {
        Real grad[AHEAD], unit[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const bool counts = row + i * stride < end && (!a.lengths || step < a.lengths[sample]);
            grad[i] = counts ? grad_y[sample * a.grad_batch + step * a.grad_time + output * a.grad_output] : Real(0);
            unit[i] = counts && k < a.num_memory ? memory[(row + i * stride) * a.num_memory + k] : Real(1);
            for (step += stride; step >= a.num_steps; step -= a.num_steps) sample++;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) sum += grad[i] * unit[i];
    }
    return sum;
}

// Gradient of the memory, a thread an entry; products over a part's rows, a thread an entry, where there are few over some of the rows.
ELM_KERNEL(elm_readout_backward, ReadoutBackward, READOUT_THREADS, 1) {
    ELM_DYNAMIC_SHARED(Real, room);
    const i64 neuron = blockIdx.y, num_row = a.batch * a.num_steps, share = (num_row + a.num_part - 1) / a.num_part;
    const i64 begin = blockIdx.x * share, end = begin + share < num_row ? begin + share : num_row;
    const int num_memory = int(a.num_memory), entries = int(a.num_output) * (num_memory + 1), rows = end > begin ? int(end - begin) : 0;
    const Real *w = a.w_y + neuron * a.num_output * a.num_memory, *memory = a.memory + neuron * num_row * a.num_memory;
    const Real *grad_y = a.grad_y + neuron * a.grad_neuron;
    Real *grad_memory = a.grad_memory + (neuron * num_row + begin) * a.num_memory;
    for (int at = threadIdx.x; at < rows * num_memory; at += READOUT_THREADS) {
        const i64 row = begin + at / num_memory, sample = row / a.num_steps, step = row % a.num_steps;
        const bool valid = !a.lengths || step < a.lengths[sample];
        const Real *grad = grad_y + sample * a.grad_batch + step * a.grad_time;
        Real sum = Real(0);
        for (i64 output = 0; valid && output < a.num_output; output++) sum += grad[output * a.grad_output] * w[output * a.num_memory + at % num_memory];
        grad_memory[at] = sum;
    }
    const int groups = entries < READOUT_THREADS ? READOUT_THREADS / entries : 1, group = threadIdx.x / entries;
    Real *product = a.product + (neuron * a.num_part + blockIdx.x) * entries;
    for (int first = 0; first < entries; first += READOUT_THREADS) {
        const int entry = groups > 1 ? threadIdx.x % entries : first + threadIdx.x;
        const bool mine = groups > 1 ? group < groups : entry < entries;
        Real sum = mine ? product_of(a, grad_y, memory, begin + (groups > 1 ? group : 0), end, groups, entry / (num_memory + 1), entry % (num_memory + 1)) : Real(0);
        if (groups > 1) {
            room[threadIdx.x] = sum;
            __syncthreads();
            for (int other = 1; threadIdx.x < entries && other < groups; other++) sum += room[other * entries + threadIdx.x];
        }
        if (mine && (groups == 1 || group == 0)) product[entry] = sum;
    }
}
