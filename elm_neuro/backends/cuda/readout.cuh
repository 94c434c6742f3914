// The readout of every step and its gradients, where outputs are few: a product so narrow costs cuBLAS more time on the host than here.
#pragma once
#include "common.cuh"

constexpr int READOUT_THREADS = 256, WARP = 32, WARPS = READOUT_THREADS / WARP;

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

// Gradient of the memory, a warp a row; products over a part's rows, a thread an entry.
ELM_KERNEL(elm_readout_backward, ReadoutBackward, READOUT_THREADS, 1) {
    const i64 neuron = blockIdx.y, num_row = a.batch * a.num_steps, share = (num_row + a.num_part - 1) / a.num_part;
    const i64 begin = blockIdx.x * share, end = begin + share < num_row ? begin + share : num_row;
    const Real *w = a.w_y + neuron * a.num_output * a.num_memory, *memory = a.memory + neuron * num_row * a.num_memory;
    const Real *grad_y = a.grad_y + neuron * a.grad_neuron;
    Real *grad_memory = a.grad_memory + neuron * num_row * a.num_memory;
    for (i64 row = begin + threadIdx.x / WARP; row < end; row += WARPS) {
        const i64 sample = row / a.num_steps, step = row % a.num_steps;
        const bool valid = !a.lengths || step < a.lengths[sample];
        const Real *grad = grad_y + sample * a.grad_batch + step * a.grad_time;
        for (i64 k = threadIdx.x % WARP; k < a.num_memory; k += WARP) {
            Real sum = Real(0);
            for (i64 output = 0; valid && output < a.num_output; output++) sum += grad[output * a.grad_output] * w[output * a.num_memory + k];
            grad_memory[row * a.num_memory + k] = sum;
        }
    }
    const i64 width = a.num_memory + 1;
    Real *product = a.product + (neuron * a.num_part + blockIdx.x) * a.num_output * width;
    for (i64 entry = threadIdx.x; entry < a.num_output * width; entry += READOUT_THREADS) {
        const i64 output = entry / width, k = entry % width;
        i64 sample = begin / a.num_steps, step = begin % a.num_steps;
        Real sum = Real(0);
        for (i64 row = begin; row < end; row++) {
            if (!a.lengths || step < a.lengths[sample]) {
                const Real grad = grad_y[sample * a.grad_batch + step * a.grad_time + output * a.grad_output];
                sum += k < a.num_memory ? grad * memory[row * a.num_memory + k] : grad;
            }
            if (++step == a.num_steps) step = 0, sample++;
        }
        product[entry] = sum;
    }
}
