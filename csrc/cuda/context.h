// What a launch needs from the torch it runs under: the device to be current, its stream, readable
// errors.
//
// The same object is loaded under a CPU-only torch, which has no libtorch_cuda.so, so nothing of
// that library may be an undefined symbol here. Its one function that is needed is looked up when
// the first kernel is launched: in the library itself (RTLD_NOLOAD: it is there already or it is
// not), because a weak symbol or dlsym(RTLD_DEFAULT) does not see it, torch loads it with local
// visibility.
#pragma once

#include <cuda_runtime_api.h>

#include "../common/checks.h"

#ifndef SPARSEVAE_CUDA_EMULATED
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace sparsevae::cuda {

inline void check_cuda(const char* op, cudaError_t error) {
  SPARSEVAE_CHECK(error == cudaSuccess, op, "(): CUDA error: ", cudaGetErrorString(error));
}

#ifndef SPARSEVAE_CUDA_EMULATED

using CurrentStreamFunction = int32_t (*)(int32_t device_index, void** stream);

inline CurrentStreamFunction current_stream_function() {
  static const CurrentStreamFunction function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<CurrentStreamFunction>(symbol);
  }();
  return function;
}

// Makes the tensor's device current for its lifetime.
class Context {
 public:
  Context(const char* op, const Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(device_) {
    const CurrentStreamFunction current_stream = current_stream_function();
    SPARSEVAE_CHECK(current_stream, op,
                    "(): expected a torch built with CUDA, but libtorch_cuda.so is not loaded");
    void* stream = nullptr;
    SPARSEVAE_CHECK(current_stream(device_, &stream) == 0, op,
                    "(): could not get the current CUDA stream of cuda:", device_);
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

#else

// The kernels run on the CPU, in the calling thread.
class Context {
 public:
  Context(const char*, const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

#endif

}  // namespace sparsevae::cuda
