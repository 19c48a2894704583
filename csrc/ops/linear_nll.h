// What linear_nll is called with, and its device-free checks: everything that is known without
// reading tensor memory.
#pragma once

#include <optional>
#include <string>

#include "../common/checks.h"

namespace sparsevae {

enum class Likelihood {
  kMultinomial,
  kBernoulli,
  kPoisson,
  kGaussian,
  kNegativeBinomial,
  kZeroInflatedNegativeBinomial,
};

// The op's arguments; see linear_nll.cpp.
struct LinearNll {
  Likelihood likelihood;
  std::string op;  // the public function's name, for error texts
  Tensor h, weight;
  std::optional<Tensor> bias, zero_weight, zero_bias, log_scale, library;
  Tensor crow, col, values;
  std::optional<Tensor> row_weight;
  bool need_h, need_weight, need_bias, need_zero_weight, need_zero_bias, need_log_scale,
      need_library;
  ScalarType gemm_dtype;
  std::optional<int64_t> max_elements;

  int64_t rows() const { return h.size(0); }
  int64_t features() const { return weight.size(0); }
  int64_t hidden() const { return h.size(1); }
  ScalarType wide() const {
    return gemm_dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }
  bool is_negative_binomial() const { return likelihood >= Likelihood::kNegativeBinomial; }
  // Whether a gradient passes through the predictions, of the first and of the second layer.
  bool need_x() const { return need_h || need_weight || need_bias; }
  bool need_x2() const { return zero_weight && (need_h || need_zero_weight || need_zero_bias); }
  bool need_any() const { return need_x() || need_x2() || need_log_scale || need_library; }
};

inline Likelihood parse_likelihood(const std::string& name) {
  if (name == "multinomial") return Likelihood::kMultinomial;
  if (name == "bernoulli") return Likelihood::kBernoulli;
  if (name == "poisson") return Likelihood::kPoisson;
  if (name == "gaussian") return Likelihood::kGaussian;
  if (name == "negative_binomial") return Likelihood::kNegativeBinomial;
  if (name == "zero_inflated_negative_binomial") return Likelihood::kZeroInflatedNegativeBinomial;
  throw std::invalid_argument(
      concat("linear_nll(): expected the name of a likelihood, but got \"", name, '"'));
}

inline void check_linear_shape(const LinearNll& a, const char* name, const Tensor& t,
                               std::initializer_list<int64_t> shape) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  std::ostringstream wanted;
  int64_t i = 0;
  for (int64_t size : shape) {
    same = same && t.size(i) == size;
    wanted << (i++ ? ", " : "") << size;
  }
  SPARSEVAE_CHECK(same, a.op, "(): expected ", name, " of shape (", wanted.str(),
                  shape.size() == 1 ? ",)" : ")", ", but got ", shape_text(t));
  check_same_device(a.op.c_str(), "h", a.h, name, t);
}

inline void check_linear_layer(const LinearNll& a, const char* weight_name, const Tensor& weight,
                               const char* bias_name, const std::optional<Tensor>& bias,
                               bool any_dtype) {
  check_linear_shape(a, weight_name, weight, {a.features(), a.hidden()});
  if (!any_dtype) check_same_dtype(a.op.c_str(), "h", a.h, weight_name, weight);
  if (!bias) return;
  check_linear_shape(a, bias_name, *bias, {a.features()});
  if (!any_dtype) check_same_dtype(a.op.c_str(), "h", a.h, bias_name, *bias);
}

inline void check_linear_dtype(const LinearNll& a, const char* name, const Tensor& t) {
  SPARSEVAE_CHECK(t.scalar_type() == a.wide(), a.op, "(): expected ", name, " of dtype ",
                  torch::headeronly::toString(a.wide()), ", but got ",
                  torch::headeronly::toString(t.scalar_type()));
}

// any_dtype: a gemm_dtype was given, to which everything is cast.
inline void check_linear_nll(const LinearNll& a, bool any_dtype) {
  const char* op = a.op.c_str();
  check_dim(op, "h", a.h, 2);
  check_dim(op, "weight", a.weight, 2);
  check_linear_layer(a, "weight", a.weight, "bias", a.bias, any_dtype);
  const bool inflated = a.likelihood == Likelihood::kZeroInflatedNegativeBinomial;
  SPARSEVAE_CHECK(a.zero_weight.has_value() == inflated, op, "(): expected ", inflated ? "a" : "no",
                  " zero_weight for this likelihood");
  SPARSEVAE_CHECK(inflated || !a.zero_bias, op, "(): expected no zero_bias for this likelihood");
  if (inflated)
    check_linear_layer(a, "zero_weight", *a.zero_weight, "zero_bias", a.zero_bias, any_dtype);
  if (a.is_negative_binomial()) {
    SPARSEVAE_CHECK(a.log_scale, op, "(): expected log_theta, but got none");
    if (a.log_scale->dim() == 2)
      check_linear_shape(a, "log_theta", *a.log_scale, {a.rows(), a.features()});
    else
      check_linear_shape(a, "log_theta", *a.log_scale, {a.features()});
  } else if (a.log_scale) {
    SPARSEVAE_CHECK(a.likelihood == Likelihood::kGaussian, op,
                    "(): expected no log_scale for this likelihood");
    check_linear_shape(a, "logvar", *a.log_scale, {a.features()});
  }
  if (a.log_scale) check_linear_dtype(a, "log_scale", *a.log_scale);
  if (a.library) {
    SPARSEVAE_CHECK(a.is_negative_binomial(), op, "(): expected no library for this likelihood");
    check_linear_shape(a, "library", *a.library, {a.rows()});
    check_linear_dtype(a, "library", *a.library);
  }
  check_csr_layout(op, a.crow, a.col, a.values);
  check_same_device(op, "h", a.h, "crow_indices", a.crow);
  check_linear_dtype(a, "values", a.values);
  SPARSEVAE_CHECK(a.crow.numel() == a.rows() + 1, op,
                  "(): crow_indices.shape[-1] must be equal to the number of rows + 1 (=",
                  a.rows() + 1, "), but got ", a.crow.numel());
  // Panels count columns in 32 bits.
  SPARSEVAE_CHECK(a.features() < (int64_t{1} << 30), op,
                  "(): expected fewer than 2^30 features, but got ", a.features());
  if (a.row_weight) {
    check_linear_shape(a, "row_weight", *a.row_weight, {a.rows()});
    check_linear_dtype(a, "row_weight", *a.row_weight);
  }
  SPARSEVAE_CHECK(a.row_weight || !a.need_any(), op, "(): expected row_weight with a gradient");
  SPARSEVAE_CHECK((a.bias || !a.need_bias) && (a.zero_weight || !a.need_zero_weight) &&
                      (a.zero_bias || !a.need_zero_bias) && (a.log_scale || !a.need_log_scale) &&
                      (a.library || !a.need_library),
                  op, "(): expected a gradient of a given tensor, but it is absent");
}

}  // namespace sparsevae
