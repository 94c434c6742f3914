// What learning sees in place of the derivative of a spike's step, as elm_neuro/functional/_spike.py defines it.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

// Density of the normal distribution.
template <class R> ELM_INLINE Vector<R> gaussian(Vector<R> x, double mean, double sigma) {
    const Vector<R> z = (x - all<R>(R(mean))) * all<R>(R(1.0 / sigma));
    return exp_of(z * z * all<R>(R(-0.5))) * all<R>(R(0.3989422804014327 / sigma));
}

// The slope at a distance x from the threshold; `setting` in the order of the class's fields.
template <class R> ELM_INLINE Vector<R> slope_of(Vector<R> x, i64 surrogate, const double *setting) {
    const Vector<R> one = all<R>(R(1)), zero = {}, distance = x < zero ? -x : x;
    switch (surrogate) {
        case ELM_ATAN: {  // alpha / 2 / (1 + (pi / 2 alpha x)^2)
            const Vector<R> scaled = x * all<R>(R(1.5707963267948966 * setting[0]));
            return all<R>(R(0.5 * setting[0])) / (scaled * scaled + one);
        }
        case ELM_FAST_SIGMOID: {  // 1 / (1 + k |x|)^2
            const Vector<R> denominator = distance * all<R>(R(setting[0])) + one;
            return one / (denominator * denominator);
        }
        case ELM_BOXCAR:  // height within width / 2
            return distance < all<R>(R(0.5 * setting[0])) ? all<R>(R(setting[1])) : zero;
        case ELM_MULTI_GAUSSIAN: {  // gamma [(1 + h) N(0, sigma) - h N(sigma, s sigma) - h N(-sigma, s sigma)]
            const double sigma = setting[0], h = setting[1], wide = setting[2] * sigma, gamma = setting[3];
            const Vector<R> sides = gaussian<R>(x, sigma, wide) + gaussian<R>(x, -sigma, wide);
            return gaussian<R>(x, 0.0, sigma) * all<R>(R(gamma * (1.0 + h))) - sides * all<R>(R(gamma * h));
        }
        default: {  // k sigmoid(k x) (1 - sigmoid(k x))
            const Vector<R> s = sigmoid_of(x * all<R>(R(setting[0])));
            return s * (one - s) * all<R>(R(setting[0]));
        }
    }
}

}  // namespace ELM_ISA
