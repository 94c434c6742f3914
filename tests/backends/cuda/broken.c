/* NVRTC and the CUDA driver as far as they are asked when a device is tried: what they answer is decided by macros. */
#include <string.h>

#define ANSWER(name) \
    int name(void) { return 0; }

#ifndef ARCHITECTURE
#define ARCHITECTURE 90
#endif
#ifndef COMPILES
#define COMPILES 0
#endif
#ifndef LOADS
#define LOADS 0
#endif

const char *nvrtcGetErrorString(int status) { return status == 7 ? "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE" : "an error"; }
int nvrtcVersion(int *major, int *minor) { return *major = 13, *minor = 0, 0; }
#ifndef OLD
int nvrtcGetNumSupportedArchs(int *count) { return *count = 1, 0; }
int nvrtcGetSupportedArchs(int *found) { return *found = ARCHITECTURE, 0; }
#endif
ANSWER(nvrtcCreateProgram)
ANSWER(nvrtcDestroyProgram)
int nvrtcCompileProgram(void) { return COMPILES; }
int nvrtcGetProgramLogSize(void *program, size_t *size) { return *size = 14, 0; }
int nvrtcGetProgramLog(void *program, char *log) { return strcpy(log, "what it says."), 0; }
int nvrtcGetCUBINSize(void *program, size_t *size) { return *size = 4, 0; }
int nvrtcGetCUBIN(void *program, char *code) { return memcpy(code, "code", 4), 0; }

ANSWER(cuLaunchKernelEx)
ANSWER(cuCtxGetCurrent)
ANSWER(cuDeviceGet)
ANSWER(cuDevicePrimaryCtxRetain)
ANSWER(cuCtxSetCurrent)
int cuModuleLoadData(void **module, const void *code) { return LOADS; }
ANSWER(cuModuleGetFunction)
int cuGetErrorName(int status, const char **text) { return *text = status == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR_INVALID_IMAGE", 0; }
int cuGetErrorString(int status, const char **text) { return *text = "what it means", 0; }
