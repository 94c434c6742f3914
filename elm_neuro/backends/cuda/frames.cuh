// Frames, of bytes, which are read as they are, or of numbers: their product with a table, the gradient of the table, and the sum of a
// sequence discounted to its end. All sums have a fixed order: the same call gives the same bits.
#pragma once
#include "common.cuh"

#if ELM_FRAMES_OF_BYTES
typedef unsigned char Frame;
#else
typedef Real Frame;
#endif

// A block computes a tile of a product. Its warps are WARPS_DOWN rows of SLICES: each warp all columns, and of the terms every SLICES-th one; the
// slices are added up at the end. The threads of a warp are DOWN x ACROSS, with OWN_ROWS x OWN_COLUMNS sums each.
constexpr int WARPS = ELM_WARPS, PRODUCT_THREADS = 32 * WARPS, DOWN = 8, ACROSS = 4, TILE_TERMS = 4 * WARPS;
constexpr int WARPS_DOWN = ELM_WARPS_DOWN, OWN_ROWS = ELM_OWN_ROWS, OWN_COLUMNS = ELM_OWN_COLUMNS, SLICES = WARPS / WARPS_DOWN;
constexpr int TILE_ROWS = WARPS_DOWN * DOWN * OWN_ROWS, TILE_COLUMNS = ACROSS * OWN_COLUMNS;
constexpr int TILE = TILE_TERMS * (TILE_ROWS + 1 + TILE_COLUMNS);  // numbers of both factors
constexpr int FOURS = TILE_ROWS / 32;                                                                           // of entries, that a thread fetches
constexpr int TERMS_AT_ONCE = PRODUCT_THREADS / TILE_COLUMNS, FACTORS = divided_up(TILE_TERMS, TERMS_AT_ONCE);  // and numbers of the table
constexpr int ROWS_AT_ONCE = 2;  // of a thread, when slices are added up
constexpr int BLOCKS = ELM_DOUBLE || WARPS > 8 ? 1 : 2;  // that fit a multiprocessor's registers
static_assert(OWN_COLUMNS % 2 == 0 && OWN_ROWS % LANES_OF_VECTOR == 0 && OWN_ROWS % ROWS_AT_ONCE == 0, "threads read pairs and vectors");
static_assert(TILE_ROWS % 32 == 0 && SLICES % 4 == 0, "threads fetch four entries at a time, and step over four terms or more");

struct alignas(2 * sizeof(Real)) Pair {
    Real first, second;
};

struct Product {
    i64 num_row, num_neuron, num_input, num_part, width;
    i64 share;                       // terms of a part
    i64 factor_row, out_row;         // from a row of one neuron to the next
    i64 num_steps, x_batch, x_time;  // row i of x lies at i / num_steps * x_batch + i % num_steps * x_time
    i64 sign;                        // 128: bytes that are signed; else 0
    const Frame *x;                  // (batch, time, num_neuron, num_input), rows of all neurons contiguous
    const Real *factor;              // (num_neuron, num_input, width); for the gradient of it (num_row, num_neuron, width)
    Real *out;                       // (num_row, num_neuron, width); (num_part, num_neuron, num_input, width)
};

struct Discount {
    i64 num_steps, num_input, x_batch, x_time, sign;
    const i64 *lengths;  // (batch,), or null: all steps
    const Real *kappa;   // one number
    const Frame *x;      // (batch, time, num_input), rows contiguous
    Real *total;         // (batch, num_input)
};

static_assert(sizeof(Product) == ELM_BYTES_PRODUCT && sizeof(Discount) == ELM_BYTES_DISCOUNT, "structures of frames.cuh and _frames.py");

#if ELM_FRAMES_OF_BYTES
ELM_DEVICE Real number(unsigned char byte, int sign) { return Real((int(byte) ^ sign) - sign); }

// Bytes from anywhere, by words; no word is read but one that holds a byte of the row, of which `left` are left.
template <int FOURS> struct Fetched {
    unsigned word[FOURS + 1];
};
template <int FOURS, bool WHOLE> ELM_DEVICE Fetched<FOURS> fetch_entries(const unsigned char *at, int left) {
    const int offset = int((unsigned long long)at & 3), end = offset + (left < 4 * FOURS ? left : 4 * FOURS);
    const unsigned *from = (const unsigned *)(at - offset);
    Fetched<FOURS> result;
#pragma unroll
    for (int i = 0; i <= FOURS; i++) result.word[i] = WHOLE || (left > 0 && 4 * i < end) ? from[i] : 0u;
    return result;
}
// The four bytes of a word. A float takes two instructions: 2^23 and a byte are the bits of a float.
template <int FOURS> ELM_DEVICE void numbers(const Fetched<FOURS> &fetched, int i, const unsigned char *at, int sign, Real (&x)[4]) {
    const unsigned words = __funnelshift_r(fetched.word[i], fetched.word[i + 1], 8 * (unsigned)((unsigned long long)at & 3));
    const unsigned word = words ^ unsigned(sign) * 0x01010101u;
#pragma unroll
    for (int j = 0; j < 4; j++)
#if ELM_DOUBLE
        x[j] = Real(int(word >> 8 * j & 255) - sign);
#else
        x[j] = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7540 + j)) - float((1 << 23) + sign);
#endif
}
#else
ELM_DEVICE Real number(Real entry, int) { return entry; }

// Of the row `left` entries are left.
template <int FOURS> struct Fetched {
    Real entry[4 * FOURS];
};
template <int FOURS, bool WHOLE> ELM_DEVICE Fetched<FOURS> fetch_entries(const Real *at, int left) {
    Fetched<FOURS> result;
#pragma unroll
    for (int i = 0; i < 4 * FOURS; i++) result.entry[i] = WHOLE || i < left ? at[i] : Real(0);
    return result;
}
template <int FOURS> ELM_DEVICE void numbers(const Fetched<FOURS> &fetched, int i, const Real *, int, Real (&x)[4]) {
#pragma unroll
    for (int j = 0; j < 4; j++) x[j] = fetched.entry[4 * i + j];
}
#endif

// Where a number lies in a tile (terms, rows). What threads store at a time goes to different banks: entries of a row, which are terms, four by
// four shifted; vectors of rows because those of the upper half lie in pairs exchanged.
ELM_DEVICE int exchanged(int row) { return row ^ (row >> 3 & 4); }
ELM_DEVICE int place(int term, int row) { return term * TILE_ROWS + (term & ~3) + exchanged(row); }
// Where the rows of a thread's sums lie, of those of its warp: vectors of neighbours side by side.
ELM_DEVICE int place_of(int i, int down) { return i / LANES_OF_VECTOR * DOWN * LANES_OF_VECTOR + down * LANES_OF_VECTOR + i % LANES_OF_VECTOR; }

template <bool VALUE_> struct Bool {
    static constexpr bool VALUE = VALUE_;
};

// out = x factor, or out = x^T factor over a part of the rows: a tile of `out`, from tiles of both factors in shared memory. While its threads
// compute with one pair of tiles they fetch the next, and store it in the other half.
template <bool GRADIENT>
ELM_DEVICE void multiply(const Product &a, Real *room) {
    const int thread = threadIdx.x, sign = int(a.sign), slice = thread / 32 % SLICES, warp_down = thread / 32 / SLICES;
    const int down = thread % 32 / ACROSS, across = thread % ACROSS;
    const int num_part = int(a.num_part), neuron = GRADIENT ? int(blockIdx.y) / num_part : int(blockIdx.y), part = GRADIENT ? int(blockIdx.y) % num_part : 0;
    const int tiles_across = (int(a.width) + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const i64 first_row = i64(int(blockIdx.x) / tiles_across) * TILE_ROWS;
    const int first_column = int(blockIdx.x) % tiles_across * TILE_COLUMNS;
    const i64 num_out = GRADIENT ? a.num_input : a.num_row, num_term = GRADIENT ? a.num_row : a.num_input;
    const i64 begin = GRADIENT ? part * a.share : 0;
    Real *const out = a.out + (GRADIENT ? (part * a.num_neuron + neuron) * a.num_input * a.width : neuron * a.width) + first_row * a.out_row + first_column;
    const int rows_of_out = int(num_out - first_row < TILE_ROWS ? num_out - first_row : TILE_ROWS), columns_of_out = int(a.width) - first_column;

    // A thread fetches entries that lie side by side, along the inputs, which are terms, or rows of the gradient.
    constexpr int THREADS_ALONG = (GRADIENT ? TILE_ROWS : TILE_TERMS) / (4 * FOURS);
    const int along = thread % THREADS_ALONG * 4 * FOURS, beside = thread / THREADS_ALONG;
    const i64 row = (GRADIENT ? begin : first_row) + beside, valid = row < a.num_row ? row : a.num_row - 1;
    const int num_steps = int(a.num_steps);
    int step = int(valid % num_steps);
    const Frame *at = a.x + valid / num_steps * a.x_batch + step * a.x_time + neuron * a.num_input + (GRADIENT ? first_row : 0) + along;
    // neighbours fetch neighbours of a row of the table; what lies beyond its last column is not stored at the end
    const int term_of_factor = thread / TILE_COLUMNS;
    const i64 column_of_factor = first_column + thread % TILE_COLUMNS, last_column = a.width - 1;
    const Real *factor_at = a.factor + neuron * (GRADIENT ? a.width : a.num_input * a.width) + (begin + term_of_factor) * a.factor_row;
    factor_at += column_of_factor < last_column ? column_of_factor : last_column;

    Fetched<FOURS> entries;
    Real factor[FACTORS];
    // the tile's first terms of `left` terms; as most are, WHOLE: there are all of it, and four entries beyond
    const auto fetch_tile = [&](auto whole, int left) {
        constexpr bool WHOLE = decltype(whole)::VALUE;
        entries = fetch_entries<FOURS, WHOLE>(at, !GRADIENT ? left - along : beside < left ? int(a.num_input - first_row) - along : 0);
        const Real *from = factor_at;
#pragma unroll
        for (int i = 0; i < FACTORS; i++, from += TERMS_AT_ONCE * a.factor_row) {
            const int term = term_of_factor + i * TERMS_AT_ONCE;
            factor[i] = ((i + 1) * TERMS_AT_ONCE <= TILE_TERMS || term < TILE_TERMS) && (WHOLE || term < left) ? *from : Real(0);
        }
    };
    const bool in_row = !GRADIENT || a.num_input - first_row >= TILE_ROWS + 4;
    const auto fetch = [&](int left) {
        if (in_row && left >= TILE_TERMS + 4)
            fetch_tile(Bool<true>(), left);
        else
            fetch_tile(Bool<false>(), left);
    };
    const int at_left = GRADIENT ? place(beside, along) : place(along, beside);
    const auto store = [&](Real *left) {
        Real *const right = left + TILE_TERMS * (TILE_ROWS + 1);
#pragma unroll
        for (int i = 0; i < FOURS; i++) {
            Real x[4];
            numbers(entries, i, at, sign, x);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (!GRADIENT) left[at_left + (4 * i + j) * TILE_ROWS + 4 * i] = x[j];
                if (!GRADIENT || j % LANES_OF_VECTOR) continue;
                Real side_by_side[LANES_OF_VECTOR];
#pragma unroll
                for (int l = 0; l < LANES_OF_VECTOR; l++) side_by_side[l] = x[(j + l) % 4];
                *(Vector *)(left + place(beside, along + 4 * i + j)) = vector_of(side_by_side);
            }
        }
#pragma unroll
        for (int i = 0; i < FACTORS; i++) {
            const int at = i * TERMS_AT_ONCE * TILE_COLUMNS + thread;
            if (thread < TERMS_AT_ONCE * TILE_COLUMNS && at < TILE_TERMS * TILE_COLUMNS) right[at] = factor[i];
        }
        factor_at += TILE_TERMS * a.factor_row;
        at += GRADIENT ? TILE_TERMS * a.x_time : TILE_TERMS;
        if (GRADIENT)
            for (step += TILE_TERMS; step >= num_steps; step -= num_steps) at += a.x_batch - num_steps * a.x_time;
    };

    Real sum[OWN_ROWS][OWN_COLUMNS] = {};
    const int own_left = slice * TILE_ROWS + (slice & ~3) + warp_down * DOWN * OWN_ROWS + down * LANES_OF_VECTOR;
    const int own_right = TILE_TERMS * (TILE_ROWS + 1) + slice * TILE_COLUMNS + across * 2;
    const auto add_up = [&](const Real *tile) {
        const Real *left = tile + own_left, *right = tile + own_right;
#pragma unroll (OWN_ROWS * OWN_COLUMNS > 48 ? 1 : 2)
        for (int k = 0; k < TILE_TERMS; k += SLICES, left += SLICES * (TILE_ROWS + 1), right += SLICES * TILE_COLUMNS) {
            Real x[OWN_ROWS], y[OWN_COLUMNS];
#pragma unroll
            for (int i = 0; i < OWN_ROWS; i += LANES_OF_VECTOR) {
                const Vector some = *(const Vector *)(left + i * DOWN);
#pragma unroll
                for (int l = 0; l < LANES_OF_VECTOR; l++) x[i + l] = entry(some, l);
            }
#pragma unroll
            for (int j = 0; j < OWN_COLUMNS; j += 2) {
                const Pair some = *(const Pair *)(right + j * ACROSS);
                y[j] = some.first, y[j + 1] = some.second;
            }
#pragma unroll
            for (int i = 0; i < OWN_ROWS; i++)
#pragma unroll
                for (int j = 0; j < OWN_COLUMNS; j++) sum[i][j] += x[i] * y[j];
        }
    };

    int left = int(a.share < num_term - begin ? a.share : num_term - begin);
    if (left > 0) {
        fetch(left);
        store(room);
    }
    __syncthreads();
    for (int half = 0; left > 0; left -= TILE_TERMS, half = TILE - half) {
        if (left > TILE_TERMS) fetch(left - TILE_TERMS);
        add_up(room + half);
        if (left > TILE_TERMS) store(room + TILE - half);
        __syncthreads();
    }

    // (slice, row of a thread, threads down, column)
    constexpr int ALL_DOWN = WARPS_DOWN * DOWN, ENTRIES = ROWS_AT_ONCE * ALL_DOWN * TILE_COLUMNS;
#pragma unroll
    for (int first = 0; first < OWN_ROWS; first += ROWS_AT_ONCE) {
#pragma unroll
        for (int i = 0; i < ROWS_AT_ONCE; i++)
#pragma unroll
            for (int j = 0; j < OWN_COLUMNS; j += 2) {
                const int entry = (i * ALL_DOWN + warp_down * DOWN + down) * TILE_COLUMNS + j * ACROSS + across * 2;
                *(Pair *)(room + slice * ENTRIES + entry) = Pair{sum[first + i][j], sum[first + i][j + 1]};
            }
        __syncthreads();
        for (int entry = thread; entry < ENTRIES; entry += PRODUCT_THREADS) {
            Real total = room[entry];
#pragma unroll
            for (int s = 1; s < SLICES; s++) total += room[s * ENTRIES + entry];
            const int i = first + entry / TILE_COLUMNS / ALL_DOWN, all_down = entry / TILE_COLUMNS % ALL_DOWN;
            const int row = exchanged(all_down / DOWN * DOWN * OWN_ROWS + place_of(i, all_down % DOWN)), column = entry % TILE_COLUMNS;
            if (row < rows_of_out && column < columns_of_out) out[row * a.out_row + column] = total;
        }
        __syncthreads();
    }
}

ELM_KERNEL(elm_multiply, Product, PRODUCT_THREADS, BLOCKS) {
    ELM_DYNAMIC_SHARED(Vector, room);
    multiply<false>(a, (Real *)room);
}

ELM_KERNEL(elm_multiply_inputs, Product, PRODUCT_THREADS, BLOCKS) {
    ELM_DYNAMIC_SHARED(Vector, room);
    multiply<true>(a, (Real *)room);
}

// total_i = sum_t kappa^(length - 1 - t) x_ti
ELM_KERNEL(elm_discount, Discount, PRODUCT_THREADS, 1) {
    constexpr int AHEAD = 8;  // loads on their way at a time
    const i64 input = (i64)blockIdx.y * PRODUCT_THREADS + threadIdx.x, sample = blockIdx.x;
    if (input >= a.num_input) return;
    const Real kappa = *a.kappa;
    const int sign = int(a.sign);
    const i64 length = valid_steps(a.lengths, sample, a.num_steps);
    const Frame *x = a.x + sample * a.x_batch + input;
    Real sum = Real(0);
    for (i64 t = length - reach(kappa, length); t < length; t += AHEAD) {
        Frame next[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) next[i] = t + i < length ? x[(t + i) * a.x_time] : Frame(0);
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (t + i < length) sum = kappa * sum + number(next[i], sign);
    }
    a.total[sample * a.num_input + input] = sum;
}
