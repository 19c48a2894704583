// log Gamma(x + 1), the logarithm of x! for integers. Not inline: the loops of isa/ call it, and
// what they share must be compiled once.
#pragma once

namespace sparsevae {

double log_gamma_plus_one(double x);

}  // namespace sparsevae
