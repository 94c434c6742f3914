// What all kernels share: how a kernel is declared, the numbers it works with, 16 bytes of them at a time.
#pragma once

#ifndef ELM_ON_CPU
// Kernels are compiled one by one, side by side: of a source only the one for which ELM_ONLY_name is ",ELM_ENTRY".
#define ELM_ENTRY(name, Arguments, threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Arguments a)
#define ELM_UNUSED(name, Arguments, threads, blocks) [[maybe_unused]] static __device__ void name(const Arguments a)
#define ELM_SECOND(first, second, ...) second
#define ELM_CHOSEN(...) ELM_SECOND(__VA_ARGS__, ELM_UNUSED, )
#define ELM_KERNEL(name, ...) ELM_CHOSEN(ELM_ONLY_##name)(name, __VA_ARGS__)
#define ELM_DYNAMIC_SHARED(Type, name) extern __shared__ Type name[]
#endif
#define ELM_DEVICE static __device__ __forceinline__

typedef long long i64;
typedef ELM_REAL Real;
#if ELM_DOUBLE
typedef double2 Vector;
#else
typedef float4 Vector;
#endif
constexpr int LANES_OF_VECTOR = sizeof(Vector) / sizeof(Real);

ELM_DEVICE Real entry(const Vector &x, int i) {
#if ELM_DOUBLE
    return i == 0 ? x.x : x.y;
#else
    return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w;
#endif
}
ELM_DEVICE Vector vector_of(const Real (&x)[LANES_OF_VECTOR]) {
#if ELM_DOUBLE
    return make_double2(x[0], x[1]);
#else
    return make_float4(x[0], x[1], x[2], x[3]);
#endif
}
// Valid steps of a sample, of numbers that may be looked at only here: what lies outside is the nearest that does not.
ELM_DEVICE i64 valid_steps(const i64 *lengths, i64 sample, i64 num_steps) {
    if (!lengths) return num_steps;
    const i64 length = lengths[sample];
    return length < 0 ? 0 : length > num_steps ? num_steps : length;
}
__host__ __device__ constexpr int divided_up(int a, int b) { return (a + b - 1) / b; }

// Steps that count: where a step's discount is below the square of the unit in the last place, it is left out.
ELM_DEVICE i64 reach(Real kappa, i64 num_steps) {
    const double below = ELM_DOUBLE ? -72.1 : -31.9;
    if (kappa <= Real(0)) return num_steps < 1 ? num_steps : 1;
    if (kappa >= Real(1)) return num_steps;
    const double most = ceil(below / log((double)kappa));
    return most < (double)num_steps ? (i64)most : num_steps;
}

