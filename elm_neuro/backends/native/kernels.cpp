// The ELM's kernels of one instruction set: compiled with its flags and -DELM_ISA=<name>.
#include "frames.h"
#include "scan.h"
#include "table.h"

namespace ELM_ISA {

template <class R> static int64_t padded_size(int64_t size) { return padded<R>(size); }

template <class R> static constexpr ElmKernels kernels() {
    return {Lanes<R>::W,           TILE,
            ROWS_PER_CHUNK / TILE, padded_size<R>,
            scan_forward<R>,       scan_backward<R>,
            scan_reduce<R>,        filter_forward<R>,
            filter_backward<R>,    compact<R>,
            table_forward<R>,      table_backward<R>,
            total_backward<R>};
}

extern const ElmKernels table[2];
const ElmKernels table[2] = {kernels<float>(), kernels<double>()};

}  // namespace ELM_ISA
