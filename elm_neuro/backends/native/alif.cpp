// The kernels of LIF layers of one instruction set: compiled with its flags and -DELM_ISA=<name>.
#include "alif.h"

namespace ELM_ISA {

extern const ElmAlifKernels alif_table[2];
const ElmAlifKernels alif_table[2] = {
    {alif_saved<float>, alif_forward<float>, alif_backward<float>, alif_reduce<float>},
    {alif_saved<double>, alif_forward<double>, alif_backward<double>, alif_reduce<double>}};

}  // namespace ELM_ISA
