// A device for torch of which nothing runs, beside benchmarks/host_speed.py: memory is the host's, products are not computed, and the driver's
// calls do nothing. What is left is what a pass asks its host for, and autograd's thread of the device.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace {

constexpr c10::DeviceType KIND = c10::DeviceType::PrivateUse1;
const c10::Device DEVICE(KIND, 0);

// One device with one stream, on which there is never anything to wait for.
struct Guard final : c10::impl::DeviceGuardImplInterface {
    c10::DeviceType type() const override { return KIND; }
    c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
    c10::Device getDevice() const override { return DEVICE; }
    void setDevice(c10::Device) const override {}
    void uncheckedSetDevice(c10::Device) const noexcept override {}
    c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
    c10::Stream getDefaultStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
    c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
    void record(void **, const c10::Stream &, const c10::DeviceIndex, const c10::EventFlag) const override {}
    void block(void *, const c10::Stream &) const override {}
    bool queryEvent(void *) const override { return true; }
    void destroyEvent(void *, const c10::DeviceIndex) const noexcept override {}
    bool queryStream(const c10::Stream &) const override { return true; }
    void synchronizeStream(const c10::Stream &) const override {}
    void synchronizeEvent(void *) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

// As torch's allocator on GPUs, it keeps what is freed for the next that asks for as much.
struct Block {
    void *memory;
    size_t size;
};
std::unordered_map<size_t, std::vector<void *>> freed;
std::mutex freeing;

void free_block(void *context) {
    auto *block = static_cast<Block *>(context);
    {
        std::lock_guard<std::mutex> guard(freeing);
        freed[block->size].push_back(block->memory);
    }
    delete block;
}

struct Memory final : c10::Allocator {
    c10::DataPtr allocate(size_t wanted) override {
        const size_t size = (wanted + 511) / 512 * 512;
        void *memory = nullptr;
        {
            std::lock_guard<std::mutex> guard(freeing);
            auto &spare = freed[size];
            if (!spare.empty()) memory = spare.back(), spare.pop_back();
        }
        if (!memory && size) memory = aligned_alloc(512, size);
        return {memory, new Block{memory, size}, &free_block, DEVICE};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
    void copy_data(void *to, const void *from, size_t size) const override { std::memcpy(to, from, size); }
} memory_of_device;
REGISTER_ALLOCATOR(KIND, &memory_of_device);

struct Hooks : at::PrivateUse1HooksInterface {
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    bool isAvailable() const override { return true; }
    bool isBuilt() const override { return true; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
};
const bool registered = (at::RegisterPrivateUse1HooksInterface(new Hooks()), true);

using Type = std::optional<c10::ScalarType>;
using Layout = std::optional<c10::Layout>;
using Place = std::optional<c10::Device>;
using Flag = std::optional<bool>;

at::Tensor empty(c10::IntArrayRef size, Type type, Layout, Place, Flag, std::optional<c10::MemoryFormat> format) {
    return at::detail::empty_generic(size, &memory_of_device, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), type.value_or(at::kFloat), format);
}
at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, Type type, Layout, Place, Flag) {
    const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
    return at::detail::empty_strided_generic(size, stride, &memory_of_device, keys, type.value_or(at::kFloat));
}
at::Tensor here(const at::Tensor &x) {
    return x.is_cpu() ? x : at::from_blob(x.data_ptr(), x.sizes(), x.strides(), x.options().device(at::kCPU));
}
at::Tensor copy_from(const at::Tensor &from, const at::Tensor &to, bool) {
    here(to).copy_(here(from));
    return to;
}
at::Tensor copy_and_resize(const at::Tensor &from, const at::Tensor &to) { return copy_from(from, to, false); }
at::Tensor as_strided(const at::Tensor &x, c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<int64_t> offset) {
    return at::native::as_strided_tensorimpl(x, size, stride, offset);
}
at::Tensor view(const at::Tensor &x, c10::IntArrayRef size) { return at::native::view(x, size); }
at::Tensor reshape_alias(const at::Tensor &x, c10::IntArrayRef size, c10::IntArrayRef stride) { return at::native::_reshape_alias(x, size, stride); }
at::Scalar number(const at::Tensor &x) { return here(x).item(); }
at::Tensor &zero(at::Tensor &x) {
    std::memset(x.data_ptr(), 0, x.nbytes());
    return x;
}
at::Tensor mm(const at::Tensor &a, const at::Tensor &b) { return at::empty({a.size(0), b.size(1)}, a.options()); }
at::Tensor bmm(const at::Tensor &a, const at::Tensor &b) { return at::empty({a.size(0), a.size(1), b.size(2)}, a.options()); }
void by_the_cpu(const c10::OperatorHandle &operation, torch::jit::Stack *stack) { at::native::cpu_fallback(operation, stack); }

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
    m.impl("empty.memory_format", empty);
    m.impl("empty_strided", empty_strided);
    m.impl("as_strided", as_strided);
    m.impl("_copy_from", copy_from);
    m.impl("_copy_from_and_resize", copy_and_resize);
    m.impl("_local_scalar_dense", number);
    m.impl("zero_", zero);
    m.impl("view", view);
    m.impl("_reshape_alias", reshape_alias);
    m.impl("mm", mm);
    m.impl("bmm", bmm);
}
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>()); }

// In the place of libcuda.
extern "C" {
int cuLaunchKernelEx(void *, void *, void *, void *) { return 0; }
int cuModuleLoadData(void *, void *) { return 0; }
int cuModuleGetFunction(void *, void *, void *) { return 0; }
int cuFuncSetAttribute(void *, int, int) { return 0; }
int cuCtxGetCurrent(void *) { return 0; }
int cuCtxSetCurrent(void *) { return 0; }
int cuDeviceGet(void *, int) { return 0; }
int cuDevicePrimaryCtxRetain(void *, int) { return 0; }
}
