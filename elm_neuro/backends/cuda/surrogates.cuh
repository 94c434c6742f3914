// The slope that stands for a spike's derivative, at a distance from the threshold, from what _surrogates.py makes of a surrogate's settings:
// arguments, so that they may change from step to step without another compilation.
#pragma once
#include "common.cuh"

enum { ATAN = 1, FAST_SIGMOID, BOXCAR, MULTI_GAUSSIAN, SIGMOID };

struct Slope {
    double scale, factor, side_scale, side_factor, mean;
};

ELM_DEVICE Real bell(Real z) { return exp(z * z * Real(-0.5)); }

ELM_DEVICE Real slope_at(int surrogate, const Slope &slope, Real x) {
    const Real scale = Real(slope.scale), factor = Real(slope.factor), side_scale = Real(slope.side_scale), side_factor = Real(slope.side_factor), mean = Real(slope.mean);
    const Real distance = x < Real(0) ? -x : x;
    switch (surrogate) {
        case ATAN: return factor / (x * scale * (x * scale) + Real(1));
        case FAST_SIGMOID: return Real(1) / ((distance * scale + Real(1)) * (distance * scale + Real(1)));
        case BOXCAR: return distance < scale ? factor : Real(0);
        case MULTI_GAUSSIAN:
            return bell(x * scale) * factor - (bell((x - mean) * side_scale) + bell((x + mean) * side_scale)) * side_factor;
        default: {
            const Real y = Real(1) / (Real(1) + exp(-x * scale));
            return y * (Real(1) - y) * scale;
        }
    }
}
