// How fast this machine can multiply and add at all: what kernels are measured against.
#pragma once

namespace pyjepa::simd {

enum class Precision { fp32, bf16, int8 };

// Operations per second (two per multiply-add) of one thread whose operands never leave registers: the best
// short window within `seconds`. 0 where the machine has no instructions for it.
double measure_peak(Precision precision, double seconds) noexcept;

}  // namespace pyjepa::simd
