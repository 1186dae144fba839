// How fast this machine can multiply and add at all: what kernels are measured against.
#pragma once

#include "simd/kernels.hpp"

namespace pyjepa::simd {

// Operations per second (two per multiply-add) of one thread whose operands never leave registers: the best
// short window within `seconds`. 0 where the machine has no instructions for it.
double measure_peak(Precision precision, double seconds) noexcept;

}  // namespace pyjepa::simd
