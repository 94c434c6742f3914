// Frames of bytes, read as they are: their product with a table, the gradient of the table, and the sum of a sequence discounted to its end.
// All sums have a fixed order: the same call gives the same bits.
#pragma once
#include "common.cuh"

constexpr int BYTE_THREADS = 256, TILE_ROWS = 64, TILE_COLUMNS = 32, TILE_TERMS = 32, PITCH = TILE_ROWS + 1;  // a pitch without bank conflicts
constexpr int LOADS = TILE_ROWS * TILE_TERMS / BYTE_THREADS, FACTORS = TILE_COLUMNS * TILE_TERMS / BYTE_THREADS;
constexpr int OWN_COLUMNS = 2, OWN_ROWS = 4, ACROSS = TILE_COLUMNS / OWN_COLUMNS, DOWN = TILE_ROWS / OWN_ROWS;  // of a thread
static_assert(ACROSS * DOWN == BYTE_THREADS, "every entry of a tile has a thread");

struct Bytes {
    i64 num_row, num_steps, num_input, num_part, width, x_batch, x_time;
    i64 sign;                // 128: the bytes are signed; else 0
    const unsigned char *x;  // (batch, time, num_neuron, num_input), rows of all neurons contiguous
    const Real *factor;      // (num_neuron, num_input, width); for the gradient of it (num_row, num_neuron, width)
    Real *out;               // (num_row, num_neuron, width); (num_part, num_neuron, num_input, width)
};

struct DiscountBytes {
    i64 num_steps, num_input, x_batch, x_time, sign;
    const i64 *lengths;      // (batch,), or null: all steps
    const Real *kappa;       // one number
    const unsigned char *x;  // (batch, time, num_input), rows contiguous
    Real *total;             // (batch, num_input)
};

static_assert(sizeof(Bytes) == ELM_BYTES_BYTES && sizeof(DiscountBytes) == ELM_BYTES_DISCOUNTBYTES, "structures of bytes.cuh and _bytes.py");

ELM_DEVICE Real number(unsigned char byte, int sign) { return Real((int(byte) ^ sign) - sign); }

// out = x factor, or out = x^T factor over a part of the rows. A block computes a tile of `out`, term by term of a sum from shared memory,
// while its threads fetch the next terms.
template <bool GRADIENT>
ELM_DEVICE void multiply_bytes(const Bytes &a, Real *room) {
    Real *const left = room, *const right = room + TILE_TERMS * PITCH;  // (terms, rows) and (terms, columns)
    const int thread = threadIdx.x, sign = int(a.sign);
    const i64 num_neuron = gridDim.y / a.num_part, neuron = blockIdx.y / a.num_part, part = blockIdx.y % a.num_part;
    const i64 tiles_across = (a.width + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const i64 first_row = blockIdx.x / tiles_across * TILE_ROWS, first_column = blockIdx.x % tiles_across * TILE_COLUMNS;
    const i64 num_out = GRADIENT ? a.num_input : a.num_row, num_term = GRADIENT ? a.num_row : a.num_input;
    const i64 share = (num_term + a.num_part - 1) / a.num_part, begin = part * share, end = begin + share < num_term ? begin + share : num_term;
    const bool in_one_piece = a.x_batch == a.num_steps * a.x_time;

    // neighbours read neighbours: inputs lie side by side
    const auto row_of = [&](int i) { return GRADIENT ? thread % TILE_ROWS : thread / TILE_TERMS + i * (BYTE_THREADS / TILE_TERMS); };
    const auto term_of = [&](int i) { return GRADIENT ? thread / TILE_ROWS + i * (BYTE_THREADS / TILE_ROWS) : thread % TILE_TERMS; };
    unsigned char byte[LOADS];
    Real factor[FACTORS];
    const auto fetch = [&](i64 term) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) {
            const i64 out_row = first_row + row_of(i), one = term + term_of(i);
            const i64 row = GRADIENT ? one : out_row, input = GRADIENT ? out_row : one;
            byte[i] = 0;
            if (out_row < num_out && one < end) {
                const i64 at = in_one_piece ? row * a.x_time : row / a.num_steps * a.x_batch + row % a.num_steps * a.x_time;
                byte[i] = a.x[at + neuron * a.num_input + input];
            }
        }
#pragma unroll
        for (int i = 0; i < FACTORS; i++) {
            const i64 column = first_column + thread % TILE_COLUMNS, one = term + thread / TILE_COLUMNS + i * (BYTE_THREADS / TILE_COLUMNS);
            const i64 row = GRADIENT ? one * num_neuron + neuron : neuron * a.num_input + one;
            factor[i] = column < a.width && one < end ? a.factor[row * a.width + column] : Real(0);
        }
    };

    Real sum[OWN_ROWS][OWN_COLUMNS] = {};
    fetch(begin);
    for (i64 term = begin; term < end; term += TILE_TERMS) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) left[term_of(i) * PITCH + row_of(i)] = number(byte[i], sign);
#pragma unroll
        for (int i = 0; i < FACTORS; i++) right[thread + i * BYTE_THREADS] = factor[i];
        __syncthreads();
        if (term + TILE_TERMS < end) fetch(term + TILE_TERMS);
#pragma unroll
        for (int k = 0; k < TILE_TERMS; k++) {
            Real x[OWN_ROWS], y[OWN_COLUMNS];
#pragma unroll
            for (int i = 0; i < OWN_ROWS; i++) x[i] = left[k * PITCH + thread / ACROSS + i * DOWN];
#pragma unroll
            for (int j = 0; j < OWN_COLUMNS; j++) y[j] = right[k * TILE_COLUMNS + thread % ACROSS + j * ACROSS];
#pragma unroll
            for (int i = 0; i < OWN_ROWS; i++)
#pragma unroll
                for (int j = 0; j < OWN_COLUMNS; j++) sum[i][j] += x[i] * y[j];
        }
        __syncthreads();  // the tile is read
    }
#pragma unroll
    for (int i = 0; i < OWN_ROWS; i++)
#pragma unroll
        for (int j = 0; j < OWN_COLUMNS; j++) {
            const i64 row = first_row + thread / ACROSS + i * DOWN, column = first_column + thread % ACROSS + j * ACROSS;
            if (row >= num_out || column >= a.width) continue;
            const i64 at = GRADIENT ? (part * num_neuron + neuron) * a.num_input + row : row * num_neuron + neuron;
            a.out[at * a.width + column] = sum[i][j];
        }
}

ELM_KERNEL(elm_multiply_bytes, Bytes, BYTE_THREADS, 2) {
    ELM_DYNAMIC_SHARED(Real, room);
    multiply_bytes<false>(a, room);
}

ELM_KERNEL(elm_multiply_bytes_inputs, Bytes, BYTE_THREADS, 2) {
    ELM_DYNAMIC_SHARED(Real, room);
    multiply_bytes<true>(a, room);
}

// total_i = sum_t kappa^(length - 1 - t) x_ti
ELM_KERNEL(elm_discount_bytes, DiscountBytes, BYTE_THREADS, 1) {
    constexpr int AHEAD = 8;  // loads on their way at a time
    const i64 input = (i64)blockIdx.y * BYTE_THREADS + threadIdx.x, sample = blockIdx.x;
    if (input >= a.num_input) return;
    const Real kappa = *a.kappa;
    const int sign = int(a.sign);
    const i64 length = a.lengths ? a.lengths[sample] : a.num_steps;
    const unsigned char *x = a.x + sample * a.x_batch + input;
    Real sum = Real(0);
    for (i64 t = length - reach(kappa, length); t < length; t += AHEAD) {
        unsigned char next[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) next[i] = t + i < length ? x[(t + i) * a.x_time] : 0;
#pragma unroll
        for (int i = 0; i < AHEAD; i++)
            if (t + i < length) sum = kappa * sum + number(next[i], sign);
    }
    a.total[sample * a.num_input + input] = sum;
}
