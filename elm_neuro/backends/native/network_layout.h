// How a layer of ELM neurons is laid out: its vectors, its sizes, its synapses by what they read, its gradients, and
// products of its vectors.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

// Sums that a product keeps in registers, and the sides of a tile of outer products.
constexpr int PRODUCT_SUMS = 12, TILE_ROWS = NUM_REGISTER == 32 ? 5 : 3, TILE_COLUMNS = 4;

// The order that interleaves two vectors of B: 0, L, 1, L + 1, ... from FROM on.
template <class B, int FROM, int K, int... ORDER> struct Interleave {
    static ELM_INLINE_MEMBER typename B::V of(typename B::V a, typename B::V b) {
        return Interleave<B, FROM, K - 1, FROM + (K - 1) / 2 + (K - 1) % 2 * B::L, ORDER...>::of(a, b);
    }
};
template <class B, int FROM, int... ORDER> struct Interleave<B, FROM, 0, ORDER...> {
    static ELM_INLINE_MEMBER typename B::V of(typename B::V a, typename B::V b) {
#if defined(__clang__) || __GNUC__ >= 12
        return __builtin_shufflevector(a, b, ORDER...);
#else
        typedef decltype(a < b) Order;
        return __builtin_shuffle(a, b, Order{ORDER...});
#endif
    }
};

// Vectors of a task. A lane is a sample, and a weight one number for all of them; or, of `NEURONS`, a lane is a neuron of
// the only sample, and a weight a vector. Either way a source is a row over a chunk of steps, of every step its samples.
template <class R, int BYTES, bool NEURONS> struct Batch {
    static constexpr int L = BYTES / sizeof(R), SAMPLES = NEURONS ? 1 : L, EACH = NEURONS ? L : 1;  // EACH: of a weight
    // Bytes of a source over a chunk. A cache line more to the next source: the same step of all of them would else share
    // an eighth of the first cache.
    static constexpr int CHUNK_BYTES = NEURONS ? 4 * VECTOR_BYTES : 512, SOURCE_BYTES = CHUNK_BYTES + 64;
    static constexpr int STEPS = CHUNK_BYTES / sizeof(R) / SAMPLES, SOURCE = SOURCE_BYTES / sizeof(R);
    static_assert(STEPS >= 8, "as _native_pass.py makes room for them: FEWEST_STEPS_OF_A_CHUNK");
    static constexpr int VECTORS = CHUNK_BYTES / BYTES;  // of a source
    static constexpr int BLOCK = VECTORS < 8 ? VECTORS : NUM_REGISTER == 32 && VECTORS >= 16 ? 16 : 8;  // in registers
    typedef R V __attribute__((vector_size(BYTES)));
    static ELM_INLINE_MEMBER V at(const R *p) {
        V x;
        __builtin_memcpy(&x, p, BYTES);
        return x;
    }
    static ELM_INLINE_MEMBER void put(R *p, V x) { __builtin_memcpy(p, &x, BYTES); }
    static ELM_INLINE_MEMBER V all(R x) { return x - V{}; }
    static ELM_INLINE_MEMBER V weight(const R *p) {
        if constexpr (NEURONS)
            return at(p);
        else
            return all(*p);
    }
    static ELM_INLINE_MEMBER R sum(V x) {
        if constexpr (BYTES > 16) {
            typedef Batch<R, BYTES / 2, NEURONS> Half;
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
    // L rows of L entries, turned: the first halves of the rows interleaved with the second as often as it takes.
    static ELM_INLINE_MEMBER void turn(const R *from, i64 from_row, R *to, i64 to_row) {
        V x[L], y[L];
#pragma GCC unroll 16
        for (int k = 0; k < L; k++) x[k] = at(from + k * from_row);
#pragma GCC unroll 4
        for (int done = 1; done < L; done *= 2) {
#pragma GCC unroll 8
            for (int k = 0; k < L / 2; k++) {
                y[2 * k] = Interleave<Batch, 0, L>::of(x[k], x[k + L / 2]);
                y[2 * k + 1] = Interleave<Batch, L / 2, L>::of(x[k], x[k + L / 2]);
            }
#pragma GCC unroll 16
            for (int k = 0; k < L; k++) x[k] = y[k];
        }
#pragma GCC unroll 16
        for (int k = 0; k < L; k++) put(to + k * to_row, x[k]);
    }
    static ELM_INLINE_MEMBER bool any(V x) {
        const auto set = x != V{};
        i64 words[BYTES / 8], found = 0;
        __builtin_memcpy(words, &set, BYTES);
        for (i64 word : words) found |= word;
        return found;
    }
    // Adds a sum to that of one entry of a weight's gradient: of all samples, or of `count` neurons, `apart` entries each.
    static ELM_INLINE_MEMBER void settle(R *to, i64 apart, i64 count, V x) {
        if constexpr (NEURONS)
#pragma GCC unroll 1
            for (i64 lane = 0; lane < count; lane++) to[lane * apart] += ((const R *)&x)[lane];
        else
            *to += sum(x);
    }
};

// Lanes that hold a weight: those of a vector where it is of neurons.
template <class R> ELM_INLINE i64 network_each(const ElmNetwork &a) { return a.lanes == 1 ? VECTOR_BYTES / sizeof(R) : 1; }

struct NetworkShape {
    i64 n, each, units;  // neurons; how many a vector holds; vectors for all of them
    i64 inputs, sources, branches, synapses, d, layers, in;  // synapses: of a neuron; in: branches and memory
    i64 hidden, widest;  // hidden: units of all layers but the last; widest: of any layer
    bool trace, high_pass, kinked;  // kinked: the output's slope is not 1 everywhere, so that its input is kept
    NetworkShape(const ElmNetwork &a, i64 lanes_each)
        : n(a.num_neuron),
          each(lanes_each),
          units((n + each - 1) / each),
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

// Synapses by what they read, their weights scaled. Those of one branch that read inputs lie together. Those that read
// neurons lie by what they read, ascending: what a neuron sends, and to which branch. Where many neurons send at a time
// they lie by neuron, a branch after the other and then its next synapse, so that sums of one branch do not follow each
// other: they would wait for one another.
template <class R> struct Wiring {
    struct Feed {
        int32_t source;
        R weight;
    };
    struct Loop {
        int32_t source, branch;
        R weight;
    };
    struct Send {
        int32_t branch;  // of the layer's, (unit, branch, each)
        R weight;
    };
    const bool by_source;  // `send`, else `loop`
    i64 *feed_begin, *loop_begin, *send_begin;  // of branches, of neurons, of the neurons that are read
    Feed *feed;
    Loop *loop;
    Send *send;
    // As the vectors read them, (unit, entries, each): the operands themselves where a vector's lanes are samples.
    const R *w_y, *bias, *kappa_m, *gain, *kappa_b, *kappa_r;
    const R *weight[ELM_MAX_LAYERS], *transposed[ELM_MAX_LAYERS], *layer_bias[ELM_MAX_LAYERS];  // transposed: (in, out)

    static bool sends(const ElmNetwork &a, const NetworkShape &s, bool backward) {
        return s.each > 1 || (a.output == ELM_OUTPUT_SPIKE && !backward);
    }
    static i64 loops(const ElmNetwork &a, const NetworkShape &s) {
        i64 count = 0;
        for (i64 k = 0; k < s.n * s.synapses; k++) count += a.index[k] >= s.inputs;
        return count;
    }
    static size_t bytes(const ElmNetwork &a, const NetworkShape &s) {
        size_t size = (size_t)(s.n * (s.branches + 2) + 3) * sizeof(i64);
        size += (size_t)s.n * s.synapses * sizeof(Feed) + loops(a, s) * sizeof(Loop);
        i64 weights = 3 * s.d + s.branches + 2;
        for (i64 l = 0; l < s.layers; l++) weights += 2 * s.weights(a, l) + a.width[l];
        return size + (size_t)weights * s.units * s.each * sizeof(R);
    }
    Wiring(const ElmNetwork &a, const NetworkShape &s, bool backward, Arena &arena)
        : by_source(sends(a, s, backward)) {
        const i64 num_loop = loops(a, s);
        feed_begin = arena.take<i64>(s.n * s.branches + 1);
        feed = arena.take<Feed>(s.n * s.synapses - num_loop);
        i64 feeds = 0;
        for (i64 j = 0; j < s.n * s.branches; j++) {
            feed_begin[j] = feeds;
            for (i64 k = j * a.num_synapse; k < (j + 1) * a.num_synapse; k++)
                if (a.index[k] < s.inputs) feed[feeds++] = {(int32_t)a.index[k], scaled(a, k)};
        }
        feed_begin[s.n * s.branches] = feeds;
        if (by_source)
            sort_by_source(a, s, num_loop, arena);
        else
            sort_by_neuron(a, s, num_loop, arena);
        w_y = lay_out(a.w_y, s, s.d, arena), bias = lay_out(a.bias, s, 1, arena);
        kappa_m = lay_out(a.kappa_m, s, s.d, arena), gain = lay_out(a.gain, s, s.d, arena);
        kappa_b = lay_out(a.kappa_b, s, s.branches, arena), kappa_r = lay_out(a.kappa_r, s, 1, arena);
        for (i64 l = 0; l < s.layers; l++) {
            weight[l] = backward ? lay_out(a.weight[l], s, s.weights(a, l), arena) : nullptr;
            transposed[l] = backward ? nullptr : transpose((const R *)a.weight[l], s, s.reads(a, l), a.width[l], arena);
            layer_bias[l] = lay_out(a.layer_bias[l], s, a.width[l], arena);
        }
    }

   private:
    static R scaled(const ElmNetwork &a, i64 slot) { return ((const R *)a.w_s)[slot] * R(a.input_scale); }

    void sort_by_neuron(const ElmNetwork &a, const NetworkShape &s, i64 num_loop, Arena &arena) {
        loop_begin = arena.take<i64>(s.n + 1);
        loop = arena.take<Loop>(num_loop);
        i64 count = 0;
        for (i64 n = 0; n < s.n; n++) {
            loop_begin[n] = count;
            for (i64 k = 0; k < a.num_synapse; k++)
                for (i64 j = 0; j < s.branches; j++) {
                    const i64 slot = n * s.synapses + j * a.num_synapse + k, source = a.index[slot] - s.inputs;
                    if (source >= 0) loop[count++] = {(int32_t)source, (int32_t)j, scaled(a, slot)};
                }
        }
        loop_begin[s.n] = count;
    }

    void sort_by_source(const ElmNetwork &a, const NetworkShape &s, i64 num_loop, Arena &arena) {
        send_begin = arena.take<i64>(s.n + 2);  // counted two places on, then one: filling moves the beginnings
        send = arena.take<Send>(num_loop);
        std::memset(send_begin, 0, (s.n + 2) * sizeof(i64));
        for (i64 k = 0; k < s.n * s.synapses; k++)
            if (a.index[k] >= s.inputs) send_begin[a.index[k] - s.inputs + 2]++;
        for (i64 n = 0; n < s.n; n++) send_begin[n + 2] += send_begin[n + 1];
        for (i64 n = 0; n < s.n; n++)
            for (i64 j = 0; j < s.branches; j++) {
                const i64 branch = n * s.branches + j;
                const int32_t to = (int32_t)((n / s.each * s.branches + j) * s.each + n % s.each);
                for (i64 k = branch * a.num_synapse; k < (branch + 1) * a.num_synapse; k++) {
                    const i64 source = a.index[k] - s.inputs;
                    if (source >= 0) send[send_begin[source + 1]++] = {to, scaled(a, k)};
                }
            }
    }

    // Zero for the neurons that the last unit lacks.
    static const R *lay_out(const void *from, const NetworkShape &s, i64 entries, Arena &arena) {
        if (s.each == 1 || !from) return (const R *)from;
        R *to = arena.take<R>(s.units * entries * s.each);
        for (i64 n = 0; n < s.n; n++) {
            R *lane = to + n / s.each * entries * s.each + n % s.each;
            for (i64 k = 0; k < entries; k++) lane[k * s.each] = ((const R *)from)[n * entries + k];
        }
        return to;
    }

    static const R *transpose(const R *from, const NetworkShape &s, i64 in, i64 out, Arena &arena) {
        R *to = arena.take<R>(s.units * in * out * s.each);
        for (i64 n = 0; n < s.n; n++) {
            R *lane = to + n / s.each * in * out * s.each + n % s.each;
            for (i64 i = 0; i < in; i++)
                for (i64 o = 0; o < out; o++) lane[(i * out + o) * s.each] = from[(n * out + o) * in + i];
        }
        return to;
    }
};

// out[k] = bias[k] + sum over i of w[i][k] x[i], for SIZE columns of w.
template <class B, class R, int SIZE>
ELM_INLINE void product_columns(const R *w, i64 row, const R *bias, const R *x, i64 terms, R *out) {
    typename B::V sum[SIZE];
#pragma GCC unroll 16
    for (int k = 0; k < SIZE; k++) sum[k] = bias ? B::weight(bias + k * B::EACH) : typename B::V{};
    for (i64 i = 0; i < terms; i++) {
        const typename B::V factor = B::at(x + i * B::L);
#pragma GCC unroll 16
        for (int k = 0; k < SIZE; k++) sum[k] += factor * B::weight(w + (i * row + k) * B::EACH);
    }
#pragma GCC unroll 16
    for (int k = 0; k < SIZE; k++) B::put(out + k * B::L, sum[k]);
}

template <class B, class R, int SIZE = PRODUCT_SUMS>
static void product_of(i64 size, const R *w, i64 row, const R *bias, const R *x, i64 terms, R *out) {
    if (size == SIZE) return product_columns<B, R, SIZE>(w, row, bias, x, terms, out);
    if constexpr (SIZE > 1) product_of<B, R, SIZE - 1>(size, w, row, bias, x, terms, out);
}

// The same for any number of columns, in blocks of equal size; `bias` may be null.
template <class B, class R>
ELM_INLINE void product(const R *w, i64 columns, const R *bias, const R *x, i64 terms, R *out) {
    const i64 blocks = (columns + PRODUCT_SUMS - 1) / PRODUCT_SUMS;
    for (i64 k = 0; k < blocks; k++) {
        const i64 from = columns * k / blocks, to = columns * (k + 1) / blocks;
        product_of<B, R>(to - from, w + from * B::EACH, columns, bias ? bias + from * B::EACH : nullptr, x, terms,
                      out + from * B::L);
    }
}

// to[i * row + k] += sum over steps of x[i] y[k], of ROWS by COLUMNS entries, settled as Batch says; `x_step`, `y_step`: to
// the next step.
template <class B, class R, int ROWS, int COLUMNS>
ELM_INLINE void outer_tile(const R *x, i64 x_step, const R *y, i64 y_step, i64 steps, R *to, i64 row,
                           i64 apart, i64 count) {
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
        for (int k = 0; k < COLUMNS; k++) B::settle(to + i * row + k, apart, count, sum[i][k]);
}

template <class B, class R, int ROWS = TILE_ROWS, int COLUMNS = TILE_COLUMNS>
static void outer_of(i64 rows, i64 columns, const R *x, i64 x_step, const R *y, i64 y_step, i64 steps, R *to, i64 row,
                     i64 apart, i64 count) {
    if (rows == ROWS && columns == COLUMNS)
        outer_tile<B, R, ROWS, COLUMNS>(x, x_step, y, y_step, steps, to, row, apart, count);
    else if (rows < ROWS) {
        if constexpr (ROWS > 1)
            outer_of<B, R, ROWS - 1, COLUMNS>(rows, columns, x, x_step, y, y_step, steps, to, row, apart, count);
    } else if constexpr (COLUMNS > 1)
        outer_of<B, R, ROWS, COLUMNS - 1>(rows, columns, x, x_step, y, y_step, steps, to, row, apart, count);
}

// The same for any number of rows of x and columns of y, in tiles of about equal size.
template <class B, class R>
ELM_INLINE void outer(const R *x, i64 x_step, i64 rows, const R *y, i64 y_step, i64 columns, i64 steps, R *to,
                      i64 count) {
    constexpr int L = B::L;
    const i64 down = (rows + TILE_ROWS - 1) / TILE_ROWS, across = (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    for (i64 i = 0; i < down; i++)
        for (i64 k = 0; k < across; k++) {
            const i64 top = rows * i / down, left = columns * k / across;
            outer_of<B>(rows * (i + 1) / down - top, columns * (k + 1) / across - left, x + top * L, x_step,
                               y + left * L, y_step, steps, to + top * columns + left, columns, rows * columns, count);
        }
}

}  // namespace ELM_ISA
