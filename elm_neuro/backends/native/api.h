// What the library and its caller share: arguments as plain structs of 64-bit integers, doubles and pointers, in the
// order of _library.py. At load the caller compares the size of each struct (elm_size_of) with that of its own copy.
#pragma once
#include <cstdint>

enum { ELM_MAX_LAYERS = 8 };
enum { ELM_ATAN = 1, ELM_FAST_SIGMOID, ELM_BOXCAR, ELM_MULTI_GAUSSIAN, ELM_SIGMOID };  // of the spikes' derivative
enum { ELM_RELU_SQUARED = 1, ELM_RELU, ELM_SILU };  // of a network's MLPs
enum { ELM_OUTPUT_RELU = 1, ELM_OUTPUT_IDENTITY, ELM_OUTPUT_SPIKE };  // of a network's neurons
enum { ELM_ALIF_CHUNK = 16 };    // steps through which a neuron of a LIF layer runs at most before the next one does
enum { ELM_ALIF_STRETCH = 48 };  // the same on the way back, where nothing that the layer sends comes back to it
enum { ELM_ALIF_ROWS = 3, ELM_ALIF_BLOCK_ROWS = 6 };  // numbers of a neuron that a chunk of its steps begins with

// The neuron over a sequence: what arrives is integrated, f_t = kappa_b f_{t-1} + v_t, the memory advances from
// f_t + bias, and y_t reads it. v_t is the sum of the events' rows of `table`, or given in `dense`. Rows of every array
// are contiguous; strides are in entries; a pointer that says "or null" is null where it is not asked for.
struct ElmScan {
    int64_t batch, num_steps, num_neuron, num_memory, num_layers, hidden, silu, num_output, num_input;
    int64_t first_step, all_steps, wide;  // events of a step: row sample * all_steps + first_step + step; `wide`: int64
    int64_t tile, num_task, accumulate;   // samples that one task takes, tasks; whether sums are added to what is there
    int64_t dense_batch, dense_time, dense_neuron;  // of dense and grad_dense
    int64_t y_batch, y_time, y_neuron;              // of y and spikes
    int64_t grad_y_batch, grad_y_time, grad_y_neuron;
    int64_t grad_spikes_batch, grad_spikes_time, grad_spikes_neuron;
    int64_t w_m_neuron, w_m_row;  // of w_m
    int64_t one_threshold;        // whether `threshold` is a single number; its gradient has num_output nevertheless
    int64_t surrogate;            // ELM_ATAN, ...: whose derivative the backward pass takes for that of the spikes
    double slope;                 // its alpha, or its scale
    const int64_t *begin, *end, *lengths;  // null without events; lengths (batch,) or null: valid steps of each sample
    const void *channel, *value;           // value null where every event counts 1
    const void *table;                     // (num_neuron, num_input, padded(first)), the padding 0
    const void *dense, *kappa_b;           // kappa_b: one number, null where nothing is integrated
    const void *f_0, *bias, *m_0;          // f_{-1} and m_{-1}, (batch, num_neuron, ...), or null for zeros
    const void *kappa, *gain, *w_m, *w_y, *b_y;
    const void *threshold;                                            // (num_neuron, num_output) or one, or null: no spikes
    const void *weight[ELM_MAX_LAYERS], *layer_bias[ELM_MAX_LAYERS];  // of the layers after the first, contiguous
    void *y, *spikes, *m_last, *f_last;  // but for m_last or null; the backward pass reads y where there are spikes
    void *y_last;  // y of each sample's last step, (batch, num_neuron, num_output), or null; without steps left alone
    void *saved;  // what the backward pass reads, or null where none will follow
    const void *grad_y, *grad_spikes, *grad_m_last, *grad_f_last;  // each or null
    void *grad_table, *grad_dense, *grad_f_0, *grad_m_0;           // each or null; the table's comes zeroed
    void *grad_bias, *grad_kappa, *grad_gain;  // each or null
    void *grad_w_m, *grad_w_y, *grad_b_y;
    void *grad_threshold;  // or null
    void *grad_weight[ELM_MAX_LAYERS], *grad_layer_bias[ELM_MAX_LAYERS];
};

// A layer of adaptive LIF neurons over a sequence (alif.h). What arrives is the sum of rows of `table`, those of the
// events and those of the layer's own neurons that fired, and of `dense` where the input is no events. Arrays over
// neurons are contiguous; a pointer that says "or null" is null where it is not asked for.
struct ElmAlif {
    int64_t batch, num_steps, num_neuron, num_input;  // num_input: 0 without events
    int64_t latency, chunk;                           // chunk: at most ELM_ALIF_CHUNK; latency + 1 with w_rec
    int64_t wide, dense_batch, dense_time, spikes_batch, spikes_time, grad_batch, grad_time;  // as in ElmScan
    int64_t surrogate, detach_reset, detach_recurrent, blocks;  // blocks: the gradient of Blocks, which detaches both
    double setting[4];                     // of the surrogate
    const int64_t *begin, *end, *lengths;  // null without events; lengths or null
    const void *channel, *value;           // value null where every event counts 1
    const void *table, *dense;  // table (num_input, then num_neuron with w_rec; padded(num_neuron)), the padding 0
    const void *bias, *beta, *p, *b, *w_rec;  // b null: no adaptation, the threshold is 1; w_rec (to, from) or null
    const void *v_0, *a_0, *s_0;              // before the first step, or null for zeros; s_0 (batch, latency + 1, neuron)
    void *spikes, *v_last, *a_last, *s_last;  // spikes (batch, num_steps, num_neuron); the backward pass reads them
    void *saved;  // what the backward pass reads, or null where none will follow
    const void *grad_spikes, *grad_v_last, *grad_a_last, *grad_s_last;  // each or null
    void *grad_table, *grad_dense, *grad_v_0, *grad_a_0, *grad_s_0;     // each or null; grad_dense contiguous
    void *grad_bias, *grad_beta, *grad_p, *grad_b;                      // grad_p and grad_b or null
};

// A recurrent layer of small ELM neurons over a sequence (network.h). A synapse reads input `index`, or the activity of
// neuron index - num_input one step before. What arrives are events, or the frames `x`. Arrays are contiguous but for the
// rows of x, a and grad_a; a pointer that says "or null" is null where it is not asked for.
struct ElmNetwork {
    int64_t batch, num_steps, num_neuron, num_input, num_branch, num_synapse, num_memory;  // num_synapse: of a branch
    int64_t num_layers, activation, output, surrogate;  // num_layers: of the MLP, the linear last one among them
    int64_t lanes, wide;                                // samples of a task, 1 for lanes of neurons; `wide`: int64
    int64_t x_batch, x_time, a_batch, a_time, grad_batch, grad_time;  // strides of x, of a, of grad_a
    double input_scale;
    double setting[4];              // of the surrogate
    int64_t width[ELM_MAX_LAYERS];  // outputs of the MLP's layers, the last num_memory
    const int64_t *index;           // (num_neuron, num_branch * num_synapse), branch-major
    const int64_t *begin, *end, *lengths;     // as in ElmAlif
    const void *channel, *value, *x;          // begin null where there are frames
    const void *input_mask, *recurrent_mask;  // (batch, num_input), (batch, num_neuron), or null
    const void *w_s, *w_y, *bias, *kappa_m, *gain;
    const void *kappa_b, *kappa_r;                // (num_neuron, num_branch) or null: no trace; (num_neuron,) or null
    const void *a_0, *b_0, *m_0, *r_0;            // b_0 with kappa_b, r_0 with kappa_r
    void *a, *change;                             // change (batch, num_neuron): sum over steps of the mean |o|
    void *a_last, *b_last, *m_last, *r_last;      // b_last with kappa_b, r_last with kappa_r
    void *saved;                                  // what the backward pass reads, or null where none will follow
    const void *grad_a, *grad_change;             // each or null, and so are the next four
    const void *grad_a_last, *grad_b_last, *grad_m_last, *grad_r_last;
    void *grad_x;                                 // (batch, num_steps, num_input) or null, and so are the next four
    void *grad_a_0, *grad_b_0, *grad_m_0, *grad_r_0;
    void *grad_w_s, *grad_w_y, *grad_bias, *grad_kappa_m, *grad_gain;
    void *grad_kappa_b, *grad_kappa_r;            // or null
    const void *weight[ELM_MAX_LAYERS], *layer_bias[ELM_MAX_LAYERS];
    void *grad_weight[ELM_MAX_LAYERS], *grad_layer_bias[ELM_MAX_LAYERS];
};

// Branch traces, integrated alone where something other than the first layer reads them: f_t = kappa f_{t-1} + v_t.
struct ElmFilter {
    int64_t batch, num_steps, width, table_row, num_input;  // table_row: width padded, the same for grad_table
    int64_t dense_batch, dense_time;                        // strides of dense, of grad_out in the backward pass
    int64_t wide;                                           // whether `channel` holds int64 instead of int32
    const int64_t *begin, *end;                   // events of row batch * num_steps + time; null without events
    const void *channel, *value;                  // value null where every event counts 1
    const void *table, *dense, *kappa, *initial;  // kappa (width,); initial (batch, width) or null
    void *out;                                    // (batch, num_steps, width)
    const void *grad_out;
    void *grad_table, *grad_dense, *grad_initial;  // grad_dense (batch, num_steps, width); null where not asked for
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

// The first layer, weight (num_neuron, hidden, num_branch + num_memory), as what an input adds to it, table
// (num_neuron, num_input, table_row), and the memory's part of it, w_m; and what `total`, the input summed over time,
// adds to the branches; without a table, only the latter.
struct ElmTable {
    int64_t num_neuron, hidden, num_input, num_branch, num_synapse, num_memory, table_row;
    int64_t rectify;              // whether w_s is still to be rectified, and its gradient to pass through that
    int64_t routing_neuron;       // stride of routing, 0 where the neurons share it
    int64_t batch, total_neuron;  // of total, (batch, num_input); stride, 0 where the neurons share it
    const int64_t *routing;       // (num_branch, num_synapse), -1 where empty; null: input j is branch j
    const void *weight, *w_s, *total;
    void *table, *w_m, *arrived;                       // table and w_m or null; arrived (batch, num_neuron, num_branch)
    const void *grad_table, *grad_w_m, *grad_arrived;  // each or null; without grad_table there is no grad_weight
    void *grad_weight, *grad_w_s, *grad_total;         // grad_total or null; it comes zeroed
};

// The neuron from its events on, in one call each way: those in frames are searched for, they are added up to their end
// and through the first layer, and the recurrence runs on the table. Both ways get the same structs, in which what is
// passed from one step to the next lies where the caller has room for it: events, `total`, `table`, `w_m`, `saved`.
// `table.grad_table` and `grad_w_m`, `scan.grad_table` and `grad_w_m` stay null.
struct ElmPass {
    int64_t search;     // whether the events are those in `frames`, which has room for all events in one part
    int64_t reach;      // steps before its end from which on an event does not count any more in what it leaves behind
    double kappa_b;     // decay of what has arrived
    int64_t *weighted;  // out, of a search: whether an event counts other than 1; the way back reads it. Null without
    ElmFrames frames;
    ElmTable table;
    ElmScan scan;
};

// From the gradients of w_s, kappa_m and gain, each or null, those of the learned numbers that they are made of.
struct ElmEffective {
    int64_t num_w_s, num_memory, v2;
    double low, width, delta_t, lambda;  // bounds of the memory time constants and the time step in ms
    const void *proto_w_s, *proto_tau_m, *of_w_s, *of_kappa_m, *of_gain;
    void *grad_w_s, *grad_tau_m;  // of the protos, each or null
};

// One thread's share of a call: tasks, samples or columns `first` to `last`.
struct ElmShare {
    int64_t first, last, index;
    void *scratch;   // what the thread leaves for the reduction
    int64_t status;  // 0; 1 where the events do not fit, or there was not enough memory; 2 where a
                     // remembered spike is neither 0 nor 1, or an event found in frames is not 1
};

struct ElmKernels {
    int64_t lanes, tile, chunk;  // chunk: steps after which the memory is kept, for a whole tile
    int64_t (*padded)(int64_t);
    void (*scan_forward)(const ElmScan *, ElmShare *);
    void (*scan_backward)(const ElmScan *, ElmShare *);
    int64_t (*scan_reduce)(const ElmScan *, const ElmShare *, int64_t num_share);
    void (*filter_forward)(const ElmFilter *, ElmShare *);
    void (*filter_backward)(const ElmFilter *, ElmShare *);
    void (*compact)(const ElmFrames *, ElmShare *);
    void (*table_forward)(const ElmTable *, ElmShare *);
    void (*table_backward)(const ElmTable *, ElmShare *);
    void (*total_backward)(const ElmTable *, ElmShare *);
};

struct ElmAlifKernels {
    int64_t (*saved)(const ElmAlif *);
    void (*forward)(const ElmAlif *, ElmShare *);
    void (*backward)(const ElmAlif *, ElmShare *);
    int64_t (*reduce)(const ElmAlif *, const ElmShare *, int64_t num_share);
};

struct ElmNetworkKernels {
    int64_t (*lanes)(int64_t batch, int64_t num_neuron, int64_t num_steps, int64_t threads);
    int64_t (*saved)(const ElmNetwork *);
    void (*forward)(const ElmNetwork *, ElmShare *);
    void (*backward)(const ElmNetwork *, ElmShare *);
    int64_t (*reduce)(const ElmNetwork *, const ElmShare *, int64_t num_share);
};
