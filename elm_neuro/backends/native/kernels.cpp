// The kernels of one instruction set: compiled with its flags and -DELM_ISA=<name>.
#include "drive.h"
#include "memory.h"

namespace ELM_ISA {

template <class R> static int64_t padded_size(int64_t size) { return padded<R>(size); }

template <class R> static constexpr ElmKernels kernels() {
    return {Lanes<R>::W,       TILE,           padded_size<R>,       memory_forward<R>, memory_backward<R>, memory_reduce<R>,
            drive_forward<R>, drive_backward<R>, compact<R>, first_layer<R>,    first_layer_backward<R>};
}

extern const ElmKernels table[2];
const ElmKernels table[2] = {kernels<float>(), kernels<double>()};

}  // namespace ELM_ISA
