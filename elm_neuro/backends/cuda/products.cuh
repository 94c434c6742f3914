// A step of the memory recurrence is two products of a matrix with a vector, and the matrices do not change over the sequence. One block of
// threads holds both: each thread a tile of each, in registers as far as they reach, in shared memory after that, in the second-level cache
// beyond. What is multiplied lies in shared memory. The sums over a row's lanes are exchanged in registers, and end one by one in the lanes.
#pragma once
#include "common.cuh"

// How the threads of a block share a product of a ROWS x COLUMNS matrix with one vector a sample. LANES threads side by side, a group, take
// TILE_ROWS rows together and TILE_COLUMNS columns each. The weights of a thread are numbered column by column; KEPT of its vectors of
// weights stay in registers, NEAR of them in shared memory, the rest is read from the packed copy in each step.
template <int ROWS_, int COLUMNS_, int THREADS_, int LANES_, int SAMPLES_, int KEPT_, int NEAR_> struct Product {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, THREADS = THREADS_, LANES = LANES_, SAMPLES = SAMPLES_, KEPT = KEPT_, NEAR = NEAR_;
    static constexpr int TILE_ROWS = divided_up(ROWS, THREADS / LANES), TILE_COLUMNS = divided_up(COLUMNS, LANES);
    static constexpr int WEIGHTS = TILE_ROWS * TILE_COLUMNS, VECTORS = divided_up(WEIGHTS, LANES_OF_VECTOR);
    static constexpr int FAR = VECTORS - KEPT - NEAR;
    static constexpr int VALUES = SAMPLES * TILE_ROWS;
    // Lanes read vectors at a distance of STRIDE: an odd number of vectors, so that they lie in different banks.
    static constexpr int STRIDE = (divided_up(TILE_COLUMNS, LANES_OF_VECTOR) | 1) * LANES_OF_VECTOR, WIDTH = LANES * STRIDE;
    // Fewer than four chains of dependent additions would leave the adders waiting.
    static constexpr int CHAINS = VALUES == 1 ? 4 : VALUES <= 3 ? 2 : 1;

    static constexpr int shared_among(int values, int lanes) { return lanes == 1 ? values : shared_among((values + 1) / 2, lanes / 2); }
    static constexpr int OWNED = shared_among(VALUES, LANES);  // sums that end in one lane

    static __device__ __forceinline__ int place(int column) { return column / TILE_COLUMNS * STRIDE + column % TILE_COLUMNS; }
};

// What `thread` owns after the sums are gathered: values `first` to `end` of its group, value = sample * TILE_ROWS + row of the tile.
struct Share {
    int first, end;
};
template <class P> ELM_DEVICE Share share_of(int lane) {
    Share share = {0, P::VALUES};
    int count = P::VALUES;
#pragma unroll
    for (int offset = P::LANES / 2; offset > 0; offset /= 2) {
        const int half = (count + 1) / 2, split = share.first + half;
        if (lane & offset)
            share.first = split;
        else if (split < share.end)
            share.end = split;
        count = half;
    }
    return share;
}

// Sums over the lanes of a group. In each round a lane gives half of its values away and adds the other half of its partner's.
template <int COUNT, int OFFSET, int N> ELM_DEVICE void gather_sums(Real (&z)[N], int lane) {
    if constexpr (OFFSET > 0) {
        constexpr int HALF = (COUNT + 1) / 2;
        if constexpr (COUNT == 1) {
            z[0] += __shfl_xor_sync(~0u, z[0], OFFSET);
        } else {
            const bool upper = lane & OFFSET;
#pragma unroll
            for (int i = 0; i < HALF; i++) {
                const Real high = i + HALF < COUNT ? z[i + HALF < COUNT ? i + HALF : 0] : Real(0);
                const Real given = upper ? z[i] : high, own = upper ? high : z[i];
                z[i] = own + __shfl_xor_sync(~0u, given, OFFSET);
            }
        }
        gather_sums<HALF, OFFSET / 2>(z, lane);
    }
}

template <class P> struct Weights {
    Real kept[P::KEPT > 0 ? P::KEPT * LANES_OF_VECTOR : 1];
    const Vector *near, *far;
};

// The weight of number `number` of a thread, from a matrix whose entry (row, column) lies at row * row_stride + column * column_stride.
template <class P> ELM_DEVICE Real weight_at(const Real *matrix, i64 row_stride, i64 column_stride, int thread, int number) {
    const int row = thread / P::LANES * P::TILE_ROWS + number % P::TILE_ROWS, in_tile = number / P::TILE_ROWS, column = thread % P::LANES * P::TILE_COLUMNS + in_tile;
    return in_tile < P::TILE_COLUMNS && row < P::ROWS && column < P::COLUMNS ? matrix[row * row_stride + column * column_stride] : Real(0);
}

// `packed` holds the tile of each thread, vector by vector; `room` is shared memory for NEAR of them.
template <class P> ELM_DEVICE void take_packed(Weights<P> &w, const Vector *packed, Vector *room, int thread) {
#pragma unroll
    for (int v = 0; v < P::KEPT; v++) {
        const Vector x = packed[v * P::THREADS + thread];
#pragma unroll
        for (int i = 0; i < LANES_OF_VECTOR; i++) w.kept[v * LANES_OF_VECTOR + i] = entry(x, i);
    }
    for (int v = 0; v < P::NEAR; v++) room[v * P::THREADS + thread] = packed[(P::KEPT + v) * P::THREADS + thread];
    w.near = room + thread;
    w.far = packed + (P::KEPT + P::NEAR) * P::THREADS + thread;
}

// The same from the matrix itself, where there are no more than KEPT and NEAR.
template <class P> ELM_DEVICE void take_weights(Weights<P> &w, const Real *matrix, i64 row_stride, i64 column_stride, Vector *room, int thread) {
#pragma unroll
    for (int i = 0; i < P::KEPT * LANES_OF_VECTOR; i++) w.kept[i] = weight_at<P>(matrix, row_stride, column_stride, thread, i);
    for (int v = 0; v < P::NEAR; v++) {
        Real x[LANES_OF_VECTOR];
#pragma unroll
        for (int i = 0; i < LANES_OF_VECTOR; i++) x[i] = weight_at<P>(matrix, row_stride, column_stride, thread, (P::KEPT + v) * LANES_OF_VECTOR + i);
        room[v * P::THREADS + thread] = vector_of(x);
    }
    w.near = room + thread;
    w.far = nullptr;
}

// sum[value] = the thread's part of row * operand, then the sums over the group: those that the lane owns come first.
template <class P> ELM_DEVICE void multiply(const Weights<P> &w, const Real *operand, int lane, Real (&sum)[P::VALUES]) {
    Real part[P::CHAINS][P::VALUES];
#pragma unroll
    for (int c = 0; c < P::CHAINS; c++)
#pragma unroll
        for (int i = 0; i < P::VALUES; i++) part[c][i] = Real(0);
    const Real *from = operand + lane * P::STRIDE;
    Vector x[P::SAMPLES], weight = {};
#pragma unroll
    for (int column = 0; column < P::TILE_COLUMNS; column++) {
        if (column % LANES_OF_VECTOR == 0) {
#pragma unroll
            for (int s = 0; s < P::SAMPLES; s++) x[s] = *(const Vector *)(from + s * P::WIDTH + column);
        }
#pragma unroll
        for (int row = 0; row < P::TILE_ROWS; row++) {
            const int number = column * P::TILE_ROWS + row, vector = number / LANES_OF_VECTOR, i = number % LANES_OF_VECTOR;
            if (vector >= P::KEPT && i == 0) weight = vector < P::KEPT + P::NEAR ? w.near[(vector - P::KEPT) * P::THREADS] : w.far[(vector - P::KEPT - P::NEAR) * P::THREADS];
            const Real factor = vector < P::KEPT ? w.kept[vector < P::KEPT ? number : 0] : entry(weight, i);
#pragma unroll
            for (int s = 0; s < P::SAMPLES; s++) part[column % P::CHAINS][s * P::TILE_ROWS + row] += factor * entry(x[s], column % LANES_OF_VECTOR);
        }
    }
#pragma unroll
    for (int i = 0; i < P::VALUES; i++) {
        sum[i] = part[0][i];
#pragma unroll
        for (int c = 1; c < P::CHAINS; c++) sum[i] += part[c][i];
    }
    gather_sums<P::VALUES, P::LANES / 2>(sum, lane);
}
