// A recurrent layer of small ELM neurons over a sequence, forward and backward; u_t holds the inputs of step t and the
// activity of step t - 1:
//
//     b_t = kappa_b b_{t-1} + g (sums over the synapses of each branch of w_s u_t)      without kappa_b: no trace
//     o_t = MLP([b_t, kappa_m m_{t-1}])
//     m_t = kappa_m m_{t-1} + gain 1.7159 tanh(2/3 o_t)      y_t = w_y m_t
//     r_t = kappa_r r_{t-1} + (1 - kappa_r) y_t      a_t = f(y_t - r_t + bias)          without kappa_r: no r
//
// A task is as many samples as a vector has lanes: what a synapse reads is then one vector wherever it lies, and every
// weight a number for all lanes. Of a small batch a task is one sample, and the lanes of its vectors are neurons, whose
// weights are laid out side by side; the synapses of each are added up with the steps of a chunk as lanes. Time is cut
// into chunks. What reads inputs is added up a neuron at a time through a chunk, its sums over steps in registers; what
// reads neurons, and the MLPs, run a step after the other. Backward, the steps leave the gradients of a chunk's sums
// behind, and then every neuron by itself adds up those of its weights.
#pragma once
#include "network_backward.h"
#include "network_forward.h"

namespace ELM_ISA {

// A task with vectors of as many lanes as the call names: backward where there are `sums` to add to.
template <class R, int BYTES, bool NEURONS>
static i64 network_run(const ElmNetwork &a, const NetworkShape &s, const Wiring<R> &w, i64 task, R *sums,
                       const NetworkParts *parts) {
    typedef NetworkForward<R, BYTES, NEURONS> Forward;
    typedef NetworkBackward<R, BYTES, NEURONS> Backward;
    Arena arena(sums ? Backward::bytes(a, s) : Forward::bytes(a, s));
    if (!arena.base) return 1;
    if (sums)
        Backward(a, s, w, task, arena, sums, *parts).run();
    else
        Forward(a, s, w, task, arena).run();
    return 0;
}

// Vectors of samples are whole registers, halves or quarters.
template <class R, int BYTES = VECTOR_BYTES>
static i64 network_task(const ElmNetwork &a, const NetworkShape &s, const Wiring<R> &w, i64 task, R *sums,
                        const NetworkParts *parts) {
    if constexpr (BYTES == VECTOR_BYTES)
        if (a.lanes == 1) return network_run<R, BYTES, true>(a, s, w, task, sums, parts);
    if (a.lanes * (i64)sizeof(R) == BYTES) return network_run<R, BYTES, false>(a, s, w, task, sums, parts);
    if constexpr (BYTES > 16) return network_task<R, BYTES / 2>(a, s, w, task, sums, parts);
    return 1;
}

template <class R, int BYTES = VECTOR_BYTES> static i64 network_kept(const ElmNetwork &a, const NetworkShape &s) {
    if constexpr (BYTES == VECTOR_BYTES)
        if (a.lanes == 1) return NetworkTask<R, BYTES, true>::kept_size(a, s);
    if (a.lanes * (i64)sizeof(R) == BYTES) return NetworkTask<R, BYTES, false>::kept_size(a, s);
    if constexpr (BYTES > 16) return network_kept<R, BYTES / 2>(a, s);
    return 0;
}

template <class R> static i64 network_saved(const ElmNetwork *a) {
    return (a->batch + a->lanes - 1) / a->lanes * network_kept<R>(*a, NetworkShape(*a, network_each<R>(*a)));
}

// The lanes that take the least time, counted in steps of a neuron in a vector of 32 bytes of samples. In lanes of
// neurons the synapses of one take a fifth of that, for they lie along the steps, and the rest of a vector of neurons a
// little more than one; and their weights have to be laid out, which a few steps do not pay for.
template <class R> static i64 network_lanes(i64 batch, i64 num_neuron, i64 num_steps, i64 threads) {
    const auto turns = [&](i64 lanes) { return double(((batch + lanes - 1) / lanes + threads - 1) / threads); };
    const i64 each = VECTOR_BYTES / sizeof(R), units = (num_neuron + each - 1) / each;
    double least = turns(1) * (0.2 * num_neuron + 1.3 * units) * num_steps + 5.0 * num_neuron;
    i64 best = 1;
    for (int bytes = 16; bytes <= VECTOR_BYTES; bytes *= 2) {
        const i64 lanes = bytes / sizeof(R);
        const double time = turns(lanes) * num_neuron * num_steps * (bytes == 16 ? 0.88 : bytes == 32 ? 1.0 : 1.55);
        if (time <= least) best = lanes, least = time;
    }
    return best;
}

template <class R> static void network_forward(const ElmNetwork *a, ElmShare *share) {
    const NetworkShape s(*a, network_each<R>(*a));
    Arena arena(Wiring<R>::bytes(*a, s));
    share->status = !arena.base;
    if (share->status) return;
    const Wiring<R> w(*a, s, false, arena);
    for (i64 task = share->first; task < share->last; task++)
        share->status |= network_task<R>(*a, s, w, task, nullptr, nullptr);
}

template <class R> static void network_backward(const ElmNetwork *a, ElmShare *share) {
    const NetworkShape s(*a, network_each<R>(*a));
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
    const Wiring<R> w(*a, s, true, arena);
    for (i64 task = share->first; task < share->last; task++)
        share->status |= network_task<R>(*a, s, w, task, (R *)sums, &parts);
}

// The threads' sums in their order; returns 1 where one of them lacked memory.
template <class R> static i64 network_reduce(const ElmNetwork *a, const ElmShare *share, i64 num_share) {
    const NetworkShape s(*a, network_each<R>(*a));
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
