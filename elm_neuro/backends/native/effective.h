// The backward pass of what a neuron's learned numbers become in a step (functional/_timescales.py): a few hundred
// numbers, for which a call of each operation of torch would take longer than the numbers. The forward pass is torch's:
// a decay that differs in its last bit moves the outputs of a published neuron by 1e-5 over 500 steps.
#pragma once
#include <cmath>

#include "api.h"

namespace {

constexpr double TAU_FLOOR_MS = 1e-6;  // time constants below it count as it

template <class R> inline R decay(R tau, R delta_t) {
    return std::exp(R(1) / (tau < R(TAU_FLOOR_MS) ? R(TAU_FLOOR_MS) : tau) * -delta_t);
}

template <class R> inline R sigmoid(R x) { return R(1) / (R(1) + std::exp(-x)); }

template <class R> void effective_backward(const ElmEffective &a) {
    const R *proto_w_s = (const R *)a.proto_w_s, *proto_tau_m = (const R *)a.proto_tau_m;
    const R *of_w_s = (const R *)a.of_w_s, *of_kappa_m = (const R *)a.of_kappa_m, *of_gain = (const R *)a.of_gain;
    R *grad_w_s = (R *)a.grad_w_s, *grad_tau_m = (R *)a.grad_tau_m;
    for (int64_t i = 0; grad_w_s && i < a.num_w_s; i++) grad_w_s[i] = proto_w_s[i] <= R(0) ? R(0) : of_w_s[i];
    for (int64_t i = 0; grad_tau_m && i < a.num_memory; i++) {
        const R share = sigmoid(proto_tau_m[i]), tau = R(a.width) * share + R(a.low), steps = R(a.lambda * a.delta_t);
        R of_kappa = of_kappa_m ? of_kappa_m[i] : R(0), by_tau = R(0);  // by_tau: times tau^2, until it is divided
        if (of_gain && a.v2)
            by_tau = -of_gain[i] * decay(tau, steps) * steps;
        else if (of_gain)
            of_kappa -= R(a.lambda) * of_gain[i];
        by_tau += of_kappa * decay(tau, R(a.delta_t)) * R(a.delta_t);
        by_tau = tau < R(TAU_FLOOR_MS) ? R(0) : by_tau / (tau * tau);
        grad_tau_m[i] = by_tau * R(a.width) * share * (R(1) - share);
    }
}

}  // namespace
