// A recurrent layer of small ELM neurons over a sequence, forward and backward; u_t holds the inputs of step t and the
// activity of step t - 1:
//
//     b_t = kappa_b b_{t-1} + g (sums over the synapses of each branch of w_s u_t)      without kappa_b: no trace
//     o_t = MLP([b_t, kappa_m m_{t-1}])
//     m_t = kappa_m m_{t-1} + gain 1.7159 tanh(2/3 o_t)      y_t = w_y m_t
//     r_t = kappa_r r_{t-1} + (1 - kappa_r) y_t      a_t = f(y_t - r_t + bias)          without kappa_r: no r
//
// A task is as many samples as a vector has lanes: what a synapse reads is then one vector wherever it lies, and every
// weight a number for all lanes. Time is cut into chunks. What reads inputs is added up a neuron at a time through a
// chunk, its sums over steps in registers; what reads neurons, and the MLPs, run a step after the other. Backward, the
// steps leave the gradients of a chunk's sums behind, and then every neuron by itself adds up those of its weights.
#pragma once
#include "network_backward.h"
#include "network_forward.h"

namespace ELM_ISA {

// A task with vectors of as many lanes as the call names: backward where there are `sums` to add to.
template <class R, int BYTES = VECTOR_BYTES>
static i64 network_task(const ElmNetwork &a, const NetworkShape &s, const Wiring<R> &w, i64 task, R *sums,
                        const NetworkParts *parts) {
    if (a.lanes * (i64)sizeof(R) == BYTES) {
        Arena arena(sums ? NetworkBackward<R, BYTES>::bytes(s) : NetworkForward<R, BYTES>::bytes(s));
        if (!arena.base) return 1;
        if (sums)
            NetworkBackward<R, BYTES>(a, s, w, task, arena, sums, *parts).run();
        else
            NetworkForward<R, BYTES>(a, s, w, task, arena).run();
        return 0;
    }
    if constexpr (BYTES > 16) return network_task<R, BYTES / 2>(a, s, w, task, sums, parts);
    return 1;
}

template <class R, int BYTES = VECTOR_BYTES> static i64 network_kept(const ElmNetwork &a, const NetworkShape &s) {
    if (a.lanes * (i64)sizeof(R) == BYTES) return NetworkTask<R, BYTES>::kept_size(a, s);
    if constexpr (BYTES > 16) return network_kept<R, BYTES / 2>(a, s);
    return 0;
}

template <class R> static i64 network_saved(const ElmNetwork *a) {
    return (a->batch + a->lanes - 1) / a->lanes * network_kept<R>(*a, NetworkShape(*a));
}

// The vectors that take the least time: a task of the widest takes about 1.6 times that of half as wide ones, which
// takes hardly longer than that of a quarter, and tasks share the threads.
template <class R> static i64 network_lanes(i64 batch, i64 threads) {
    i64 best = 0;
    double least = 0.0;
    for (int bytes = 16; bytes <= VECTOR_BYTES; bytes *= 2) {
        const i64 lanes = bytes / sizeof(R), tasks = (batch + lanes - 1) / lanes;
        const double time = (double)((tasks + threads - 1) / threads) * (bytes == 16 ? 1.0 : bytes == 32 ? 1.1 : 1.7);
        if (!best || time < least) best = lanes, least = time;
    }
    return best;
}

template <class R> static void network_forward(const ElmNetwork *a, ElmShare *share) {
    const NetworkShape s(*a);
    Arena arena(Wiring<R>::bytes(*a, s));
    share->status = !arena.base;
    if (share->status) return;
    const Wiring<R> w(*a, s, arena);
    for (i64 task = share->first; task < share->last; task++)
        share->status |= network_task<R>(*a, s, w, task, nullptr, nullptr);
}

template <class R> static void network_backward(const ElmNetwork *a, ElmShare *share) {
    const NetworkShape s(*a);
    const NetworkParts parts(*a, s);
    Arena arena(Wiring<R>::bytes(*a, s));
    share->status = !arena.base;
    void *sums = nullptr;
    const size_t bytes = (size_t)parts.begin[NetworkParts::COUNT] * sizeof(R);
    if (share->status || posix_memalign(&sums, 64, bytes)) {
        share->status = 1;
        return;
    }
    std::memset(sums, 0, bytes);
    share->scratch = sums;
    const Wiring<R> w(*a, s, arena);
    for (i64 task = share->first; task < share->last; task++)
        share->status |= network_task<R>(*a, s, w, task, (R *)sums, &parts);
}

// The threads' sums in their order; returns 1 where one of them lacked memory.
template <class R> static i64 network_reduce(const ElmNetwork *a, const ElmShare *share, i64 num_share) {
    const NetworkShape s(*a);
    const NetworkParts parts(*a, s);
    i64 lacking = 0;
    for (i64 k = 0; k < num_share; k++) lacking |= share[k].status;
    R *total = (R *)share[0].scratch;
    for (i64 k = 1; k < num_share && !lacking; k++)
        for (i64 j = 0; j < parts.begin[NetworkParts::COUNT]; j++) total[j] += ((const R *)share[k].scratch)[j];
    for (int k = 0; k < NetworkParts::COUNT && !lacking; k++)
        if (parts.to[k])
            std::memcpy(parts.to[k], total + parts.begin[k], (parts.begin[k + 1] - parts.begin[k]) * sizeof(R));
    for (i64 k = 0; k < num_share; k++) free(share[k].scratch);
    return lacking;
}

}  // namespace ELM_ISA
