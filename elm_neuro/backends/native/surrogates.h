// What learning sees in place of the derivative of a spike's step, as elm_neuro/functional/_spike.py defines it.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

// The slope at a distance x from the threshold. What it is computed from stands in registers: made of the class's
// fields once, in their order in `setting`, since a division in a loop costs as much as an exponential.
template <class R> struct Slope {
    i64 surrogate;
    Vector<R> scale, factor, side_scale, side_factor, mean;
    Vector<R> most, terms[2];  // of WIDE_SIDES: the largest square, from which on the sides are 0; terms of the series

    ELM_INLINE_MEMBER Slope(i64 kind, const double *setting) : surrogate(kind) {
        double of_scale = setting[0], of_factor = setting[0], of_side_scale = 0, of_side_factor = 0, of_mean = 0;
        double ratio = 0;
        switch (kind) {
            case ELM_ATAN: of_scale *= 1.5707963267948966, of_factor *= 0.5; break;
            case ELM_FAST_SIGMOID: break;
            case ELM_BOXCAR: of_scale *= 0.5, of_factor = setting[1]; break;
            case ELM_MULTI_GAUSSIAN: {
                const double h = setting[1], wide = setting[2] * setting[0], peak = setting[3] * 0.3989422804014327;
                of_mean = setting[0];
                of_scale = 0.7071067811865476 / of_mean, of_factor = (1.0 + h) * peak / of_mean;
                of_side_scale = 0.7071067811865476 / wide, of_side_factor = h * peak / wide;
                if (sizeof(R) == sizeof(float) && setting[2] >= 5.0 && of_mean >= 1e-6 && wide <= 1e6) {
                    surrogate = WIDE_SIDES;
                    of_scale *= of_scale * -1.4426950408889634, of_side_scale *= of_side_scale * -1.4426950408889634;
                    of_side_factor *= 2.0 * std::exp(-0.5 / (setting[2] * setting[2]));
                    ratio = of_mean * of_mean / (wide * wide * wide * wide);
                }
                break;
            }
            default: break;
        }
        scale = all<R>(R(of_scale)), factor = all<R>(R(of_factor)), mean = all<R>(R(of_mean));
        side_scale = all<R>(R(of_side_scale)), side_factor = all<R>(R(of_side_factor));
        most = all<R>(R(-125.0 / of_side_scale)), terms[0] = all<R>(R(ratio / 2.0 * of_side_factor));
        terms[1] = all<R>(R(ratio * ratio / 24.0 * of_side_factor));
    }

    ELM_INLINE_MEMBER Vector<R> operator()(Vector<R> x) const {
        switch (surrogate) {
            case ELM_ATAN: return of<ELM_ATAN>(x);
            case ELM_FAST_SIGMOID: return of<ELM_FAST_SIGMOID>(x);
            case ELM_BOXCAR: return of<ELM_BOXCAR>(x);
            case ELM_MULTI_GAUSSIAN: return of<ELM_MULTI_GAUSSIAN>(x);
            case WIDE_SIDES: return of<WIDE_SIDES>(x);
            default: return of<ELM_SIGMOID>(x);
        }
    }

    // The slopes at `count` vectors of distances: a pass of its own, in which none waits for another.
    ELM_INLINE_MEMBER void operator()(const R *x, R *slopes, i64 count) const {
        switch (surrogate) {
            case ELM_ATAN: return slopes_of<ELM_ATAN>(x, slopes, count);
            case ELM_FAST_SIGMOID: return slopes_of<ELM_FAST_SIGMOID>(x, slopes, count);
            case ELM_BOXCAR: return slopes_of<ELM_BOXCAR>(x, slopes, count);
            case ELM_MULTI_GAUSSIAN: return slopes_of<ELM_MULTI_GAUSSIAN>(x, slopes, count);
            case WIDE_SIDES: return slopes_of<WIDE_SIDES>(x, slopes, count);
            default: return slopes_of<ELM_SIGMOID>(x, slopes, count);
        }
    }

private:
    // The multi-Gaussian in float32 whose sides are at least five times as wide as its middle: together they are
    // exp(-(x^2 + mean^2) / (2 width^2)) 2 cosh(x mean / width^2), of which three terms of the series of cosh leave out
    // less than 1e-6 of their height.
    static constexpr int WIDE_SIDES = ELM_SIGMOID + 1;

    template <int KIND> ELM_INLINE_MEMBER void slopes_of(const R *x, R *slopes, i64 count) const {
        for (i64 j = 0; j < count * Lanes<R>::W; j += Lanes<R>::W) store(slopes + j, of<KIND>(load(x + j)));
    }

    template <int KIND> ELM_INLINE_MEMBER Vector<R> of(Vector<R> x) const {
        const Vector<R> one = all<R>(R(1)), zero = {}, distance = x < zero ? -x : x;
        if constexpr (KIND == ELM_ATAN) {  // alpha / 2 / (1 + (pi / 2 alpha x)^2)
            const Vector<R> scaled = x * scale;
            return factor / (scaled * scaled + one);
        } else if constexpr (KIND == ELM_FAST_SIGMOID) {  // 1 / (1 + k |x|)^2
            const Vector<R> denominator = distance * scale + one;
            return one / (denominator * denominator);
        } else if constexpr (KIND == ELM_BOXCAR) {  // height within width / 2
            return distance < scale ? factor : zero;
        } else if constexpr (KIND == ELM_MULTI_GAUSSIAN) {
            // gamma [(1 + h) N(0, sigma) - h N(sigma, s sigma) - h N(-sigma, s sigma)]
            const Vector<R> sides = bell((x - mean) * side_scale) + bell((x + mean) * side_scale);
            return bell(x * scale) * factor - sides * side_factor;
        } else if constexpr (KIND == WIDE_SIDES && sizeof(R) == sizeof(float)) {
            const Vector<R> least = all<R>(R(-125)), far = x * x, squared = far > most ? most : far;
            const Vector<R> sides = (terms[1] * squared + terms[0]) * squared + side_factor, middle = squared * scale;
            return power_of_two(middle < least ? least : middle) * factor - power_of_two(squared * side_scale) * sides;
        } else {  // k sigmoid(k x) (1 - sigmoid(k x))
            const Vector<R> s = sigmoid_of(x * scale);
            return s * (one - s) * factor;
        }
    }
    static ELM_INLINE_MEMBER Vector<R> bell(Vector<R> z) { return exp_of(-(z * z)); }
};

// The same for one vector.
template <class R> ELM_INLINE Vector<R> slope_of(Vector<R> x, i64 surrogate, const double *setting) {
    return Slope<R>(surrogate, setting)(x);
}

}  // namespace ELM_ISA
