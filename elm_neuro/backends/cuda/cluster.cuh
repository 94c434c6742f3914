// A cluster: blocks that run side by side, from compute capability 9.0 on, and put numbers into one another's shared memory. What arrives there is
// counted, and who reads waits for the count alone: a barrier of the cluster would wait for all that was written to device memory as well.
#pragma once
#include "common.cuh"

constexpr int CLUSTER = 8;  // blocks, in the second direction of the grid

#ifndef ELM_ON_CPU
#define ELM_CLUSTER_KERNEL(name, Arguments, threads) \
    extern "C" __global__ void __cluster_dims__(1, CLUSTER, 1) __launch_bounds__(threads, 1) name(const __grid_constant__ Arguments a)

typedef unsigned long long Arrivals;  // an mbarrier

ELM_DEVICE unsigned in_shared(const void *place) { return (unsigned)__cvta_generic_to_shared(place); }
ELM_DEVICE unsigned in_block(const void *place, int rank) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(in_shared(place)), "r"(rank));
    return there;
}

// One thread of the block, before the cluster's first barrier.
ELM_DEVICE void prepare(Arrivals &arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;\nfence.mbarrier_init.release.cluster;" ::"r"(in_shared(&arrivals)) : "memory");
}

ELM_DEVICE void wait_for_cluster() { asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory"); }

// `value` to the same place in a block of the cluster, counted there.
ELM_DEVICE void send(Real value, Real &place, Arrivals &arrivals, int rank) {
#if ELM_DOUBLE
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(in_block(&place, rank)),
                 "l"(__double_as_longlong(value)), "r"(in_block(&arrivals, rank))
                 : "memory");
#else
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(in_block(&place, rank)),
                 "r"(__float_as_uint(value)), "r"(in_block(&arrivals, rank))
                 : "memory");
#endif
}

// All threads of the block: until so many bytes are there, for the `turn`-th time from 0. They lie in its own shared memory: the wait is of the
// block's scope, since one of the cluster's would throw away what is cached of device memory.
ELM_DEVICE void receive(Arrivals &arrivals, int bytes, int turn) {
    if (threadIdx.x == 0) asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(in_shared(&arrivals)), "r"(bytes) : "memory");
    unsigned there = 0;
    while (!there)
        asm volatile("{\n.reg .pred done;\nmbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\nselp.u32 %0, 1, 0, done;\n}"
                     : "=r"(there)
                     : "r"(in_shared(&arrivals)), "r"((unsigned)turn & 1)
                     : "memory");
}
#endif
