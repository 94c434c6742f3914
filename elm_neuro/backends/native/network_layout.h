// How a layer of ELM neurons is laid out: its sizes, its synapses by what they read, its gradients, and products whose
// vectors hold a sample in each lane.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

// Bytes of one source over a chunk of steps: steps * samples * entry. A cache line more to the next source: the same step
// of all of them would else share an eighth of the first cache.
constexpr int CHUNK_BYTES = 512, SOURCE_BYTES = CHUNK_BYTES + 64;
// Sums that a product keeps in registers, and the sides of a tile of outer products.
constexpr int PRODUCT_SUMS = 12, TILE_ROWS = NUM_REGISTER == 32 ? 5 : 3, TILE_COLUMNS = 4;

// Vectors of a task: one sample a lane.
template <class R, int BYTES> struct Batch {
    static constexpr int L = BYTES / sizeof(R), STEPS = CHUNK_BYTES / BYTES, SOURCE = SOURCE_BYTES / sizeof(R);
    static constexpr int BLOCK = NUM_REGISTER == 32 && STEPS >= 16 ? 16 : 8;  // steps whose sums stay in registers
    typedef R V __attribute__((vector_size(BYTES)));
    static ELM_INLINE_MEMBER V at(const R *p) {
        V x;
        __builtin_memcpy(&x, p, BYTES);
        return x;
    }
    static ELM_INLINE_MEMBER void put(R *p, V x) { __builtin_memcpy(p, &x, BYTES); }
    static ELM_INLINE_MEMBER V all(R x) { return x - V{}; }
    static ELM_INLINE_MEMBER R sum(V x) {
        if constexpr (BYTES > 16) {
            typedef Batch<R, BYTES / 2> Half;
#if defined(__AVX512F__)
            if constexpr (BYTES == 64)
                return Half::sum((typename Half::V)_mm512_castpd512_pd256((__m512d)x) +
                                 (typename Half::V)_mm512_extractf64x4_pd((__m512d)x, 1));
#endif
#if defined(__AVX2__)
            if constexpr (BYTES == 32)
                return Half::sum((typename Half::V)_mm256_castpd256_pd128((__m256d)x) +
                                 (typename Half::V)_mm256_extractf128_pd((__m256d)x, 1));
#endif
            return Half::sum(Half::at((const R *)&x) + Half::at((const R *)&x + L / 2));
        } else if constexpr (L == 4)
            return (x[0] + x[2]) + (x[1] + x[3]);
        else
            return x[0] + x[1];
    }
};

struct NetworkShape {
    i64 n, inputs, sources, branches, synapses, d, layers, in;  // synapses: of a neuron; in: branches and memory
    i64 hidden, widest;  // hidden: units of all layers but the last; widest: of any layer
    bool trace, high_pass, kinked;  // kinked: the output's slope is not 1 everywhere, so that its input is kept
    explicit NetworkShape(const ElmNetwork &a)
        : n(a.num_neuron),
          inputs(a.num_input),
          sources(a.num_input + a.num_neuron),
          branches(a.num_branch),
          synapses(a.num_branch * a.num_synapse),
          d(a.num_memory),
          layers(a.num_layers),
          in(branches + d),
          hidden(0),
          widest(d),
          trace(a.kappa_b != nullptr),
          high_pass(a.kappa_r != nullptr),
          kinked(a.output != ELM_OUTPUT_IDENTITY) {
        for (i64 l = 0; l + 1 < layers; l++) {
            hidden += a.width[l];
            widest = a.width[l] > widest ? a.width[l] : widest;
        }
    }
    i64 reads(const ElmNetwork &a, i64 l) const { return l ? a.width[l - 1] : in; }  // inputs of layer l
    i64 weights(const ElmNetwork &a, i64 l) const { return a.width[l] * reads(a, l); }
    // Vectors kept of a neuron: of every step its hidden units (the input of silu, else the rectified sums), the tanh,
    // the output's input; of the start of every chunk its memory, traces and running mean.
    i64 kept() const { return hidden + d + kinked; }
    i64 start() const { return d + (trace ? branches : 0) + high_pass; }
};

// The gradients of the parameters, one behind the other, and where each goes.
struct NetworkParts {
    enum { W_S, W_Y, BIAS, KAPPA_M, GAIN, KAPPA_B, KAPPA_R, WEIGHT, LAYER_BIAS = WEIGHT + ELM_MAX_LAYERS,
           COUNT = LAYER_BIAS + ELM_MAX_LAYERS };
    i64 begin[COUNT + 1];
    void *to[COUNT];
    NetworkParts(const ElmNetwork &a, const NetworkShape &s) {
        i64 size[COUNT] = {s.n * s.synapses, s.n * s.d, s.n, s.n * s.d, s.n * s.d, s.trace ? s.n * s.branches : 0,
                           s.high_pass ? s.n : 0};
        void *const fixed[] = {a.grad_w_s,  a.grad_w_y,    a.grad_bias,   a.grad_kappa_m,
                               a.grad_gain, a.grad_kappa_b, a.grad_kappa_r};
        for (int k = 0; k < COUNT; k++) to[k] = k < WEIGHT ? fixed[k] : nullptr;
        for (i64 l = 0; l < s.layers; l++) {
            size[WEIGHT + l] = s.n * s.weights(a, l);
            size[LAYER_BIAS + l] = s.n * a.width[l];
            to[WEIGHT + l] = a.grad_weight[l];
            to[LAYER_BIAS + l] = a.grad_layer_bias[l];
        }
        begin[0] = 0;
        for (int k = 0; k < COUNT; k++) begin[k + 1] = begin[k] + size[k];
    }
};

// Synapses by what they read, their weights scaled. Those of one branch that read inputs lie together; those that read
// neurons lie by neuron, a branch after the other and then its next synapse, so that sums of one branch do not follow
// each other: they would wait for one another.
template <class R> struct Wiring {
    struct Feed {
        int32_t source;
        R weight;
    };
    struct Loop {
        int32_t source, branch;
        R weight;
    };
    i64 *feed_begin, *loop_begin;  // of branches, of neurons
    Feed *feed;
    Loop *loop;
    R *transposed[ELM_MAX_LAYERS];  // weights of the MLPs, (neuron, in, out)
    static i64 loops(const ElmNetwork &a, const NetworkShape &s) {
        i64 count = 0;
        for (i64 k = 0; k < s.n * s.synapses; k++) count += a.index[k] >= s.inputs;
        return count;
    }
    static size_t bytes(const ElmNetwork &a, const NetworkShape &s) {
        size_t size = (size_t)(s.n * (s.branches + 1) + 2) * sizeof(i64);
        size += (size_t)s.n * s.synapses * sizeof(Feed) + loops(a, s) * sizeof(Loop);
        for (i64 l = 0; l < s.layers; l++) size += (size_t)s.n * s.weights(a, l) * sizeof(R);
        return size;
    }
    Wiring(const ElmNetwork &a, const NetworkShape &s, Arena &arena) {
        const i64 of_branch = a.num_synapse, num_loop = loops(a, s);
        feed_begin = arena.take<i64>(s.n * s.branches + 1);
        loop_begin = arena.take<i64>(s.n + 1);
        feed = arena.take<Feed>(s.n * s.synapses - num_loop);
        loop = arena.take<Loop>(num_loop);
        i64 feeds = 0, fed_back = 0;
        for (i64 n = 0; n < s.n; n++) {
            const i64 *index = a.index + n * s.synapses;
            const R *w_s = (const R *)a.w_s + n * s.synapses;
            for (i64 j = 0; j < s.branches; j++) {
                feed_begin[n * s.branches + j] = feeds;
                for (i64 k = j * of_branch; k < (j + 1) * of_branch; k++)
                    if (index[k] < s.inputs) feed[feeds++] = {(int32_t)index[k], w_s[k] * R(a.input_scale)};
            }
            loop_begin[n] = fed_back;
            for (i64 k = 0; k < of_branch; k++)
                for (i64 j = 0; j < s.branches; j++) {
                    const i64 slot = j * of_branch + k;
                    if (index[slot] >= s.inputs)
                        loop[fed_back++] = {(int32_t)(index[slot] - s.inputs), (int32_t)j,
                                            w_s[slot] * R(a.input_scale)};
                }
        }
        feed_begin[s.n * s.branches] = feeds;
        loop_begin[s.n] = fed_back;
        for (i64 l = 0; l < s.layers; l++) {
            const i64 in = s.reads(a, l), out = a.width[l];
            transposed[l] = arena.take<R>(s.n * in * out);
            for (i64 n = 0; n < s.n; n++)
                for (i64 i = 0; i < in; i++)
                    for (i64 o = 0; o < out; o++)
                        transposed[l][(n * in + i) * out + o] = ((const R *)a.weight[l])[(n * out + o) * in + i];
        }
    }
};

// out[k] = bias[k] + sum over i of w[i][k] x[i], for SIZE columns of w.
template <class R, int BYTES, int SIZE>
ELM_INLINE void product_columns(const R *w, i64 row, const R *bias, const R *x, i64 terms, R *out) {
    typedef Batch<R, BYTES> B;
    typename B::V sum[SIZE];
#pragma GCC unroll 16
    for (int k = 0; k < SIZE; k++) sum[k] = bias ? B::all(bias[k]) : typename B::V{};
    for (i64 i = 0; i < terms; i++) {
        const typename B::V factor = B::at(x + i * B::L);
#pragma GCC unroll 16
        for (int k = 0; k < SIZE; k++) sum[k] += factor * w[i * row + k];
    }
#pragma GCC unroll 16
    for (int k = 0; k < SIZE; k++) B::put(out + k * B::L, sum[k]);
}

template <class R, int BYTES, int SIZE = PRODUCT_SUMS>
static void product_of(i64 size, const R *w, i64 row, const R *bias, const R *x, i64 terms, R *out) {
    if (size == SIZE) return product_columns<R, BYTES, SIZE>(w, row, bias, x, terms, out);
    if constexpr (SIZE > 1) product_of<R, BYTES, SIZE - 1>(size, w, row, bias, x, terms, out);
}

// The same for any number of columns, in blocks of equal size; `bias` may be null.
template <class R, int BYTES>
ELM_INLINE void product(const R *w, i64 columns, const R *bias, const R *x, i64 terms, R *out) {
    const i64 blocks = (columns + PRODUCT_SUMS - 1) / PRODUCT_SUMS;
    for (i64 k = 0; k < blocks; k++) {
        const i64 from = columns * k / blocks, to = columns * (k + 1) / blocks;
        product_of<R, BYTES>(to - from, w + from, columns, bias ? bias + from : nullptr, x, terms,
                             out + from * Batch<R, BYTES>::L);
    }
}

// sum[i * row + k] += sum over steps and lanes of x[i] y[k], of ROWS by COLUMNS entries; `x_step`, `y_step`: to the
// next step.
template <class R, int BYTES, int ROWS, int COLUMNS>
ELM_INLINE void outer_tile(const R *x, i64 x_step, const R *y, i64 y_step, i64 steps, R *to, i64 row) {
    typedef Batch<R, BYTES> B;
    typename B::V sum[ROWS][COLUMNS];
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int k = 0; k < COLUMNS; k++) sum[i][k] = typename B::V{};
    for (i64 t = 0; t < steps; t++, x += x_step, y += y_step) {
        typename B::V right[COLUMNS];
#pragma GCC unroll 8
        for (int k = 0; k < COLUMNS; k++) right[k] = B::at(y + k * B::L);
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            const typename B::V left = B::at(x + i * B::L);
#pragma GCC unroll 8
            for (int k = 0; k < COLUMNS; k++) sum[i][k] += left * right[k];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
        for (int k = 0; k < COLUMNS; k++) to[i * row + k] += B::sum(sum[i][k]);
}

template <class R, int BYTES, int ROWS = TILE_ROWS, int COLUMNS = TILE_COLUMNS>
static void outer_of(i64 rows, i64 columns, const R *x, i64 x_step, const R *y, i64 y_step, i64 steps, R *to, i64 row) {
    if (rows == ROWS && columns == COLUMNS)
        outer_tile<R, BYTES, ROWS, COLUMNS>(x, x_step, y, y_step, steps, to, row);
    else if (rows < ROWS) {
        if constexpr (ROWS > 1)
            outer_of<R, BYTES, ROWS - 1, COLUMNS>(rows, columns, x, x_step, y, y_step, steps, to, row);
    } else if constexpr (COLUMNS > 1)
        outer_of<R, BYTES, ROWS, COLUMNS - 1>(rows, columns, x, x_step, y, y_step, steps, to, row);
}

// The same for any number of rows of x and columns of y, in tiles of about equal size.
template <class R, int BYTES>
ELM_INLINE void outer(const R *x, i64 x_step, i64 rows, const R *y, i64 y_step, i64 columns, i64 steps, R *to) {
    constexpr int L = Batch<R, BYTES>::L;
    const i64 down = (rows + TILE_ROWS - 1) / TILE_ROWS, across = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    for (i64 i = 0; i < down; i++)
        for (i64 k = 0; k < across; k++) {
            const i64 top = rows * i / down, left = columns * k / across;
            outer_of<R, BYTES>(rows * (i + 1) / down - top, columns * (k + 1) / across - left, x + top * L, x_step,
                               y + left * L, y_step, steps, to + top * columns + left, columns);
        }
}

}  // namespace ELM_ISA
