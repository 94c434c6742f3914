// What the library and its caller share: arguments as plain structs of 64-bit integers and pointers, in the order of _library.py.
#pragma once
#include <cstdint>

enum { ELM_MAX_LAYERS = 8 };

// The memory recurrence. Rows of u, memory and their gradients are contiguous; the strides of (batch, time, neuron) are in entries.
struct ElmMemory {
    int64_t batch, num_steps, num_neuron, num_memory, num_layers, hidden, silu;
    int64_t u_batch, u_time, u_neuron;           // of u and grad_u
    int64_t memory_batch, memory_time, memory_neuron;
    int64_t grad_batch, grad_time, grad_neuron;  // of grad_memory
    int64_t w_m_neuron, w_m_row;                 // of w_m
    int64_t tile, num_task;                      // samples that one task takes, tasks
    const void *u, *m_0, *kappa, *gain, *w_m;    // m_0 (batch, num_neuron, num_memory) or null for zeros
    const void *weight[ELM_MAX_LAYERS], *bias[ELM_MAX_LAYERS];  // of the layers after the first, contiguous
    void *memory;
    void *saved;  // elm_saved_size entries, or null where no backward pass will follow
    const void *grad_memory;
    void *grad_u, *grad_m_0, *grad_kappa, *grad_gain, *grad_w_m;
    void *grad_weight[ELM_MAX_LAYERS], *grad_bias[ELM_MAX_LAYERS];
};

// Input of every time step summed over its events and integrated: out_t = f_t + bias, f_t = kappa f_{t-1} + v_t.
// v_t is the sum of the events' rows of `table`, or given in `dense`.
struct ElmDrive {
    int64_t batch, num_steps, width, table_row, num_input;  // table_row: width padded with zeros, the same for grad_table
    int64_t dense_batch, dense_time;                        // strides of dense, of grad_out in the backward pass
    int64_t wide;                                           // whether `channel` holds int64 instead of int32
    const int64_t *begin, *end;                             // events of row batch * num_steps + time; null without events
    const void *channel, *value;                            // value null where every event counts 1
    const void *table, *dense, *kappa, *initial, *bias;     // kappa (width,); initial (batch, width) or null; bias (width,) or null
    void *out;                                              // (batch, num_steps, width)
    const void *grad_out;
    void *grad_table, *grad_dense, *grad_initial, *grad_bias;  // grad_dense (batch, num_steps, width); null where not asked for
};

// Dense frames to events, each thread its samples.
struct ElmFrames {
    int64_t batch, num_steps, num_input, frames_batch, frames_time;
    int64_t room;  // events that fit, for each of the `num_part` equal parts of channel and value
    int64_t num_part;
    const void *frames;
    int64_t *begin, *end;
    int32_t *channel;
    void *value;
};

// The memory's and the inputs' part of the first layer's weight (num_neuron, hidden, num_input + num_memory): table (num_input,
// table_row) holds weight * w_s for every neuron's hidden units side by side.
struct ElmFirstLayer {
    int64_t num_neuron, hidden, num_input, num_memory, table_row;
    const void *weight, *w_s;
    void *table, *w_m;
    const void *grad_table, *grad_w_m;
    void *grad_weight, *grad_w_s;
};

// One thread's share of a call: tasks, samples or columns `first` to `last`.
struct ElmShare {
    int64_t first, last, index;
    void *scratch;  // what the thread leaves for the reduction
    int64_t status;  // 0; 1 where the events do not fit, or there was not enough memory
};

struct ElmKernels {
    int64_t lanes, tile;
    int64_t (*padded)(int64_t);
    void (*memory_forward)(const ElmMemory *, ElmShare *);
    void (*memory_backward)(const ElmMemory *, ElmShare *);
    int64_t (*memory_reduce)(const ElmMemory *, const ElmShare *, int64_t num_share);
    void (*drive_forward)(const ElmDrive *, ElmShare *);
    void (*drive_backward)(const ElmDrive *, ElmShare *);
    void (*compact)(const ElmFrames *, ElmShare *);
    void (*first_layer)(const ElmFirstLayer *, ElmShare *);
    void (*first_layer_backward)(const ElmFirstLayer *, ElmShare *);
};
