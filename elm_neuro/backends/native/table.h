// The first layer as a table: what one spike of an input adds to the hidden units, through all synapses that it
// reaches.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

constexpr i64 SIDE = 16;  // of the squares in which a matrix is transposed

ELM_INLINE i64 lesser(i64 a, i64 b) { return a < b ? a : b; }

// Without routing, input j is branch j: table[c][h] = weight[h][c] * w_s[c], squares of inputs by hidden units at a
// time.
template <class R> static void scale_columns(const ElmTable &a, const R *weight, const R *w_s, R *table) {
    const i64 row = a.num_branch + a.num_memory;
    // One of the two arrays is always crossed: in squares of SIDE both are touched a cache line at a time.
    for (i64 c0 = 0; c0 < a.num_branch; c0 += SIDE) {
        const i64 c1 = lesser(c0 + SIDE, a.num_branch);
        for (i64 h0 = 0; h0 < a.hidden; h0 += SIDE) {
            const i64 h1 = lesser(h0 + SIDE, a.hidden);
            R square[SIDE][SIDE];
            for (i64 h = h0; h < h1; h++)
                for (i64 c = c0; c < c1; c++) square[c - c0][h - h0] = weight[h * row + c];
            for (i64 c = c0; c < c1; c++)
                for (i64 h = h0; h < h1; h++) table[c * a.table_row + h] = square[c - c0][h - h0] * w_s[c];
        }
    }
}

template <class R>
static void scale_columns_backward(const ElmTable &a, const R *weight, const R *w_s, const R *grad_table,
                                   R *grad_weight, R *grad_w_s) {
    const i64 row = a.num_branch + a.num_memory;
    for (i64 c0 = 0; c0 < a.num_branch; c0 += SIDE) {
        const i64 c1 = lesser(c0 + SIDE, a.num_branch);
        R sum[SIDE] = {};
        for (i64 h0 = 0; h0 < a.hidden; h0 += SIDE) {
            const i64 h1 = lesser(h0 + SIDE, a.hidden);
            R square[SIDE][SIDE];
            for (i64 c = c0; c < c1; c++)
                for (i64 h = h0; h < h1; h++) square[h - h0][c - c0] = grad_table[c * a.table_row + h];
            for (i64 h = h0; h < h1; h++) {
                const R *w = weight + h * row;
                R *to = grad_weight + h * row;
                for (i64 c = c0; c < c1; c++) {
                    sum[c - c0] += square[h - h0][c - c0] * w[c];
                    to[c] = square[h - h0][c - c0] * w_s[c];
                }
            }
        }
        for (i64 c = c0; c < c1; c++) grad_w_s[c] = sum[c - c0];
    }
}

// With routing: table[routing[j][k]] += w_s[j][k] * column j of the weight, which stands in `column`, padded.
template <class R>
static void add_synapses(const ElmTable &a, const i64 *routing, const R *weight, const R *w_s, R *column, R *table) {
    constexpr int W = Lanes<R>::W;
    const i64 row = a.num_branch + a.num_memory;
    // Synapses in the order of branches: the column of a branch is gathered once and serves all its synapses.
    for (i64 j = 0; j < a.num_branch; j++) {
        for (i64 h = 0; h < a.hidden; h++) column[h] = weight[h * row + j];
        for (i64 k = j * a.num_synapse; k < (j + 1) * a.num_synapse; k++) {
            if (routing[k] < 0) continue;
            R *to = table + routing[k] * a.table_row;
            const Vector<R> factor = all<R>(w_s[k]);
            for (i64 h = 0; h < a.table_row; h += W) store(to + h, load(to + h) + factor * load(column + h));
        }
    }
}

template <class R>
static void add_synapses_backward(const ElmTable &a, const i64 *routing, const R *weight, const R *w_s, R *column,
                                  R *grad_column, const R *grad_table, R *grad_weight, R *grad_w_s) {
    constexpr int W = Lanes<R>::W;
    const i64 row = a.num_branch + a.num_memory;
    for (i64 j = 0; j < a.num_branch; j++) {
        for (i64 h = 0; h < a.hidden; h++) column[h] = weight[h * row + j];
        std::memset(grad_column, 0, a.table_row * sizeof(R));
        for (i64 k = j * a.num_synapse; k < (j + 1) * a.num_synapse; k++) {
            grad_w_s[k] = R(0);
            if (routing[k] < 0) continue;
            const R *from = grad_table + routing[k] * a.table_row;
            const Vector<R> factor = all<R>(w_s[k]);
            Vector<R> sum = {};
            for (i64 h = 0; h < a.table_row; h += W) {
                sum += load(from + h) * load(column + h);
                store(grad_column + h, load(grad_column + h) + factor * load(from + h));
            }
            for (int i = 0; i < W; i++) grad_w_s[k] += sum[i];
        }
        for (i64 h = 0; h < a.hidden; h++) grad_weight[h * row + j] = grad_column[h];
    }
}

// What the input summed over time, `total`, leaves on the branches of neuron n: arrived[j] = sum_k w_s[j][k]
// total[routing[j][k]].
template <class R> static void sum_synapses(const ElmTable &a, i64 n, const i64 *routing, const R *w_s) {
    for (i64 b = 0; b < a.batch; b++) {
        const R *total =
            (const R *)a.total + b * (a.total_neuron ? a.num_neuron * a.num_input : a.num_input) + n * a.total_neuron;
        R *arrived = (R *)a.arrived + (b * a.num_neuron + n) * a.num_branch;
        for (i64 j = 0; !routing && j < a.num_branch; j++) arrived[j] = w_s[j] * total[j];
        for (i64 j = 0; routing && j < a.num_branch; j++) {
            R sum = 0;
            for (i64 k = j * a.num_synapse; k < (j + 1) * a.num_synapse; k++)
                if (routing[k] >= 0) sum += w_s[k] * total[routing[k]];
            arrived[j] = sum;
        }
    }
}

template <class R>
static void sum_synapses_backward(const ElmTable &a, i64 n, const i64 *routing, R *grad_w_s) {
    for (i64 b = 0; b < a.batch; b++) {
        const i64 at = b * (a.total_neuron ? a.num_neuron * a.num_input : a.num_input) + n * a.total_neuron;
        const R *total = (const R *)a.total + at,
                *grad = (const R *)a.grad_arrived + (b * a.num_neuron + n) * a.num_branch;
        for (i64 j = 0; j < a.num_branch; j++)
            for (i64 k = j * a.num_synapse; k < (j + 1) * a.num_synapse; k++) {
                const i64 input = routing ? routing[k] : j;
                if (input >= 0) grad_w_s[k] += grad[j] * total[input];
            }
    }
}

// The synaptic weights that a table is made of: those of the caller, or `room` with them rectified (a NaN stays).
template <class R> static const R *rectified(const ElmTable &a, const R *w_s, R *room) {
    if (!a.rectify) return w_s;
    for (i64 k = 0; k < a.num_branch * a.num_synapse; k++) room[k] = w_s[k] <= R(0) ? R(0) : w_s[k];
    return room;
}

template <class R> static void table_forward(const ElmTable *a, ElmShare *share) {  // neurons
    const i64 row = a->num_branch + a->num_memory, synapses = a->num_branch * a->num_synapse;
    Arena arena(((size_t)a->table_row + (a->rectify ? synapses : 0)) * sizeof(R));
    share->status = !arena.base;
    if (share->status) return;
    R *column = arena.take<R>(a->table_row), *room = a->rectify ? arena.room<R>(synapses) : nullptr;
    for (i64 n = share->first; n < share->last; n++) {
        const R *weight = (const R *)a->weight + n * a->hidden * row,
                *w_s = rectified(*a, (const R *)a->w_s + n * synapses, room);
        const i64 *routing = a->routing ? a->routing + n * a->routing_neuron : nullptr;
        sum_synapses(*a, n, routing, w_s);
        if (!a->table) continue;
        R *table = (R *)a->table + n * a->num_input * a->table_row;
        if (routing)
            add_synapses(*a, routing, weight, w_s, column, table);
        else
            scale_columns(*a, weight, w_s, table);
        for (i64 h = 0; h < a->hidden; h++)
            copy_row((R *)a->w_m + (n * a->hidden + h) * a->num_memory, weight + h * row + a->num_branch,
                     a->num_memory);
    }
}

template <class R> static void table_backward(const ElmTable *a, ElmShare *share) {
    const i64 row = a->num_branch + a->num_memory, synapses = a->num_branch * a->num_synapse;
    Arena arena(((size_t)2 * a->table_row + (a->rectify ? synapses : 0)) * sizeof(R));
    share->status = !arena.base;
    if (share->status) return;
    R *column = arena.take<R>(a->table_row), *grad_column = arena.take<R>(a->table_row);
    R *room = a->rectify ? arena.room<R>(synapses) : nullptr;
    for (i64 n = share->first; n < share->last; n++) {
        const R *weight = (const R *)a->weight + n * a->hidden * row, *proto = (const R *)a->w_s + n * synapses,
                *w_s = rectified(*a, proto, room);
        R *grad_w_s = (R *)a->grad_w_s + n * synapses;
        const i64 *routing = a->routing ? a->routing + n * a->routing_neuron : nullptr;
        const R *grad_table = (const R *)a->grad_table + n * a->num_input * a->table_row;
        R *grad_weight = (R *)a->grad_weight + n * a->hidden * row;
        if (!a->grad_table)
            std::memset(grad_w_s, 0, synapses * sizeof(R));
        else if (routing)
            add_synapses_backward(*a, routing, weight, w_s, column, grad_column, grad_table, grad_weight, grad_w_s);
        else
            scale_columns_backward(*a, weight, w_s, grad_table, grad_weight, grad_w_s);
        if (a->grad_arrived) sum_synapses_backward(*a, n, routing, grad_w_s);
        for (i64 k = 0; a->rectify && k < synapses; k++) grad_w_s[k] = proto[k] <= R(0) ? R(0) : grad_w_s[k];
        for (i64 h = 0; a->grad_table && h < a->hidden; h++)
            copy_row(grad_weight + h * row + a->num_branch,
                     (const R *)a->grad_w_m + (n * a->hidden + h) * a->num_memory, a->num_memory);
    }
}

// Gradient of the input summed over time, samples a share: neurons that have it in common add to the same entries.
template <class R> static void total_backward(const ElmTable *a, ElmShare *share) {
    const i64 synapses = a->num_branch * a->num_synapse;
    for (i64 b = share->first; b < share->last; b++)
        for (i64 n = 0; n < a->num_neuron; n++) {
            const R *grad = (const R *)a->grad_arrived + (b * a->num_neuron + n) * a->num_branch,
                    *w_s = (const R *)a->w_s + n * synapses;
            R *to = (R *)a->grad_total + b * (a->total_neuron ? a->num_neuron * a->num_input : a->num_input) +
                    n * a->total_neuron;
            const i64 *routing = a->routing ? a->routing + n * a->routing_neuron : nullptr;
            for (i64 j = 0; j < a->num_branch; j++)
                for (i64 k = j * a->num_synapse; k < (j + 1) * a->num_synapse; k++) {
                    const i64 input = routing ? routing[k] : j;
                    if (input < 0 || (a->rectify && w_s[k] <= R(0))) continue;
                    to[input] += grad[j] * w_s[k];
                }
        }
}

}  // namespace ELM_ISA
