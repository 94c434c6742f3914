// The readout of every step and its gradients, where outputs are few: a product so narrow costs cuBLAS more time on the host than here.
#pragma once
#include "common.cuh"

constexpr int READOUT_THREADS = 256, MAX_OUTPUT = 8, LANES = 32;

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

// Where a row of a record is: which step of which sample. Rows are gone through in strides, without a division each.
struct Place {
    i64 sample, step;
};
ELM_DEVICE Place place_of(i64 row, i64 num_steps) { return {row / num_steps, row % num_steps}; }
ELM_DEVICE void move(Place &at, int rows, i64 num_steps) {
    for (at.step += rows; at.step >= num_steps; at.step -= num_steps) at.sample++;
}

// Gradient of the memory of a part's rows: as many threads a row as it has units, 32 at most.
ELM_DEVICE void memory_gradient(const ReadoutBackward &a, const Real *grad_y, const Real *w, i64 begin, i64 end, Real *grad_memory) {
    const int num_memory = int(a.num_memory), lanes = num_memory < LANES ? num_memory : LANES, at_once = READOUT_THREADS / lanes;
    const int first = threadIdx.x / lanes;
    if (first >= at_once) return;
    Place at = place_of(begin + first, a.num_steps);
    for (i64 row = begin + first; row < end; row += at_once, move(at, at_once, a.num_steps)) {
        const bool valid = !a.lengths || at.step < a.lengths[at.sample];
        const Real *grad = grad_y + at.sample * a.grad_batch + at.step * a.grad_time;
        for (int k = threadIdx.x % lanes; k < num_memory; k += lanes) {
            Real sum = Real(0);
            for (int output = 0; valid && output < a.num_output; output++) sum += grad[output * a.grad_output] * w[output * num_memory + k];
            grad_memory[row * num_memory + k] = sum;
        }
    }
}

// Sums over every `groups`-th row of a part of what the outputs' gradients give the weights of a unit, or, past the last, the biases.
ELM_DEVICE void products_of(const ReadoutBackward &a, const Real *grad_y, const Real *memory, i64 first, i64 end, int groups, int k, Real (&sum)[MAX_OUTPUT]) {
    constexpr int AHEAD = 8;  // rows whose units are on their way at a time
    Place at = place_of(first, a.num_steps);
    for (i64 row = first; row < end; row += AHEAD * groups) {
        Real unit[AHEAD];
        i64 grad[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const i64 next = row + i * groups;
            const bool counts = next < end && (!a.lengths || at.step < a.lengths[at.sample]);
            unit[i] = counts && k < a.num_memory ? memory[next * a.num_memory + k] : Real(1);
            grad[i] = counts ? at.sample * a.grad_batch + at.step * a.grad_time : -1;
            move(at, groups, a.num_steps);
        }
#pragma unroll
        for (int output = 0; output < MAX_OUTPUT; output++)
#pragma unroll
            for (int i = 0; i < AHEAD; i++)
                if (output < a.num_output && grad[i] >= 0) sum[output] += grad_y[grad[i] + output * a.grad_output] * unit[i];
    }
}

// Products over a part's rows: a thread a unit, where these are few over some of the rows.
ELM_KERNEL(elm_readout_backward, ReadoutBackward, READOUT_THREADS, 1) {
    ELM_DYNAMIC_SHARED(Real, room);
    const i64 neuron = blockIdx.y, num_row = a.batch * a.num_steps, share = (num_row + a.num_part - 1) / a.num_part;
    const i64 begin = blockIdx.x * share, end = begin + share < num_row ? begin + share : num_row;
    const int width = int(a.num_memory) + 1, groups = width < READOUT_THREADS ? READOUT_THREADS / width : 1;
    const Real *memory = a.memory + neuron * num_row * a.num_memory, *grad_y = a.grad_y + neuron * a.grad_neuron;
    memory_gradient(a, grad_y, a.w_y + neuron * a.num_output * a.num_memory, begin, end, a.grad_memory + neuron * num_row * a.num_memory);
    Real *product = a.product + (neuron * a.num_part + blockIdx.x) * a.num_output * width;
    for (int first = 0; first < width; first += READOUT_THREADS) {
        const int k = first + threadIdx.x % (groups > 1 ? width : READOUT_THREADS), group = groups > 1 ? threadIdx.x / width : 0;
        const bool mine = k < width && group < groups;
        Real sum[MAX_OUTPUT] = {};
        if (mine) products_of(a, grad_y, memory, begin + group, end, groups, k, sum);
#pragma unroll
        for (int output = 0; output < MAX_OUTPUT; output++) {
            if (output >= a.num_output) break;
            if (groups > 1) {
                __syncthreads();
                room[threadIdx.x] = sum[output];
                __syncthreads();
                for (int other = 1; group == 0 && mine && other < groups; other++) sum[output] += room[other * width + k];
            }
            if (mine && group == 0) product[output * width + k] = sum[output];
        }
    }
}
