// What learning sees in place of the derivative of a spike's step, as elm_neuro/functional/_spike.py defines it.
#pragma once
#include "lanes.h"

namespace ELM_ISA {

// The slope at a distance x from the threshold. What it is computed from stands in registers: made of the class's fields
// once, in their order in `setting`, since a division in a loop over neurons costs as much as an exponential.
template <class R> struct Slope {
    i64 surrogate;
    Vector<R> scale, factor, side_scale, side_factor, mean;

    ELM_INLINE_MEMBER Slope(i64 kind, const double *setting) : surrogate(kind) {
        double of_scale = setting[0], of_factor = setting[0], of_side_scale = 0, of_side_factor = 0, of_mean = 0;
        switch (kind) {
            case ELM_ATAN: of_scale *= 1.5707963267948966, of_factor *= 0.5; break;
            case ELM_FAST_SIGMOID: break;
            case ELM_BOXCAR: of_scale *= 0.5, of_factor = setting[1]; break;
            case ELM_MULTI_GAUSSIAN: {
                const double h = setting[1], wide = setting[2] * setting[0], peak = setting[3] * 0.3989422804014327;
                of_mean = setting[0];
                of_scale = 0.7071067811865476 / of_mean, of_factor = (1.0 + h) * peak / of_mean;
                of_side_scale = 0.7071067811865476 / wide, of_side_factor = h * peak / wide;
                break;
            }
            default: break;
        }
        scale = all<R>(R(of_scale)), factor = all<R>(R(of_factor)), mean = all<R>(R(of_mean));
        side_scale = all<R>(R(of_side_scale)), side_factor = all<R>(R(of_side_factor));
    }

    ELM_INLINE_MEMBER Vector<R> operator()(Vector<R> x) const {
        const Vector<R> one = all<R>(R(1)), zero = {}, distance = x < zero ? -x : x;
        switch (surrogate) {
            case ELM_ATAN: {  // alpha / 2 / (1 + (pi / 2 alpha x)^2)
                const Vector<R> scaled = x * scale;
                return factor / (scaled * scaled + one);
            }
            case ELM_FAST_SIGMOID: {  // 1 / (1 + k |x|)^2
                const Vector<R> denominator = distance * scale + one;
                return one / (denominator * denominator);
            }
            case ELM_BOXCAR: return distance < scale ? factor : zero;  // height within width / 2
            case ELM_MULTI_GAUSSIAN: {  // gamma [(1 + h) N(0, sigma) - h N(sigma, s sigma) - h N(-sigma, s sigma)]
                const Vector<R> sides = bell((x - mean) * side_scale) + bell((x + mean) * side_scale);
                return bell(x * scale) * factor - sides * side_factor;
            }
            default: {  // k sigmoid(k x) (1 - sigmoid(k x))
                const Vector<R> s = sigmoid_of(x * scale);
                return s * (one - s) * factor;
            }
        }
    }

private:
    static ELM_INLINE_MEMBER Vector<R> bell(Vector<R> z) { return exp_of(-(z * z)); }
};

// The same for one vector.
template <class R> ELM_INLINE Vector<R> slope_of(Vector<R> x, i64 surrogate, const double *setting) {
    return Slope<R>(surrogate, setting)(x);
}

}  // namespace ELM_ISA
