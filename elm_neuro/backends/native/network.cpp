// The kernels of layers of ELM neurons of one instruction set: compiled with its flags and -DELM_ISA=<name>.
#include "network.h"

namespace ELM_ISA {

template <class R> static constexpr ElmNetworkKernels network_kernels() {
    return {network_lanes<R>, network_saved<R>, network_forward<R>, network_backward<R>, network_reduce<R>};
}

extern const ElmNetworkKernels network_table[2];
const ElmNetworkKernels network_table[2] = {network_kernels<float>(), network_kernels<double>()};

}  // namespace ELM_ISA
