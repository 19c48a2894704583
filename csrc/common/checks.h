// Argument checks shared by every op and device, and the one place where their error texts are
// made.
//
// User errors are plain C++ exceptions, which the Python binding turns into RuntimeError
// (std::runtime_error), IndexError (std::out_of_range) and ValueError (std::invalid_argument).
// STD_TORCH_CHECK is not used for them: it puts a file and a line before the text.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace sparsevae {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

#define SPARSEVAE_CHECK(condition, ...)                           \
  do {                                                            \
    if (!(condition)) [[unlikely]]                                \
      throw std::runtime_error(::sparsevae::concat(__VA_ARGS__)); \
  } while (0)

// What numbers of the tensor's dtype are computed in: Float for the 16-bit types.
inline ScalarType accumulation_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline std::string shape_text(const Tensor& t) {
  std::ostringstream out;
  out << '(';
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << (t.dim() == 1 ? ",)" : ")");
  return out.str();
}

inline std::string device_text(const Tensor& t) {
  return t.is_cuda() ? concat("cuda:", t.get_device_index())
                     : std::string(t.is_cpu() ? "cpu" : "another device");
}

inline void check_same_device(const char* op, const char* name_a, const Tensor& a,
                              const char* name_b, const Tensor& b) {
  SPARSEVAE_CHECK(a.is_cuda() == b.is_cuda() && a.is_cpu() == b.is_cpu() &&
                      a.get_device_index() == b.get_device_index(),
                  op, "(): expected all tensors to be on the same device, but got ", name_a, " on ",
                  device_text(a), " and ", name_b, " on ", device_text(b));
}

inline void check_same_dtype(const char* op, const char* name_a, const Tensor& a,
                             const char* name_b, const Tensor& b) {
  SPARSEVAE_CHECK(a.scalar_type() == b.scalar_type(), op, "(): ", name_a, " and ", name_b,
                  " must have the same dtype, but got ",
                  torch::headeronly::toString(a.scalar_type()), " and ",
                  torch::headeronly::toString(b.scalar_type()));
}

inline void check_dim(const char* op, const char* name, const Tensor& t, int64_t dim) {
  SPARSEVAE_CHECK(t.dim() == dim, op, "(): expected ", name, " to have ", dim,
                  " dimension(s), but got shape ", shape_text(t));
}

inline bool is_index_dtype(const Tensor& t) {
  return t.scalar_type() == ScalarType::Int || t.scalar_type() == ScalarType::Long;
}

// The facts of a CSR matrix that the host can see without reading its memory: dtypes, lengths,
// devices.
inline void check_csr_layout(const char* op, const Tensor& crow, const Tensor& col) {
  check_dim(op, "crow_indices", crow, 1);
  check_dim(op, "col_indices", col, 1);
  SPARSEVAE_CHECK(is_index_dtype(crow), op,
                  "(): crow_indices and col_indices must be Int or Long, but got ",
                  torch::headeronly::toString(crow.scalar_type()));
  check_same_dtype(op, "crow_indices", crow, "col_indices", col);
  check_same_device(op, "crow_indices", crow, "col_indices", col);
  SPARSEVAE_CHECK(crow.numel() >= 1, op,
                  "(): crow_indices.shape[-1] must be equal to the number of rows + 1, but got 0");
  SPARSEVAE_CHECK(crow.scalar_type() == ScalarType::Long || col.numel() < (int64_t{1} << 31), op,
                  "(): 32-bit integer overflow in nnz: ", col.numel(),
                  " entries need int64 indices");
}

inline void check_csr_layout(const char* op, const Tensor& crow, const Tensor& col,
                             const Tensor& values) {
  check_csr_layout(op, crow, col);
  check_dim(op, "values", values, 1);
  SPARSEVAE_CHECK(values.numel() == col.numel(), op,
                  "(): expected col_indices and values to have the same length, but got ",
                  col.numel(), " and ", values.numel());
  check_same_device(op, "crow_indices", crow, "values", values);
}

}  // namespace sparsevae
