// The compiled module: build facts, host helpers for the data classes, and, by being loaded, the
// ops.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "cpu/isa.h"
#include "sparsevae_build_facts.h"

namespace sparsevae {
void bind_host(pybind11::module_& m);
}

// Other files add to this namespace with STABLE_TORCH_LIBRARY_FRAGMENT.
STABLE_TORCH_LIBRARY(sparsevae_ext, m) { (void)m; }

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled part of sparsevae_ext. Loading it registers torch.ops.sparsevae_ext.*";
  m.def(
      "build_facts", [] { return std::string(SPARSEVAE_BUILD_FACTS); },
      "JSON: torch, CUDA, architectures, compiler and commit of the build.");
  m.def(
      "cpu_isa", [] { return std::string(sparsevae::isa_name(sparsevae::cpu_isa())); },
      "Instruction set that the CPU kernels run on.");
  sparsevae::bind_host(m);
}
