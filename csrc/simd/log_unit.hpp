// The logarithm behind our normals. Internal to every file that includes it, which must be compiled without
// contraction of multiply and add: then it gives the same bits everywhere.
#pragma once

#include <cstdint>
#include <cstring>

namespace pyjepa::simd {
namespace {

inline float as_float(uint32_t bits) noexcept {
    float f;
    std::memcpy(&f, &bits, sizeof f);
    return f;
}
inline uint32_t as_bits(float f) noexcept {
    uint32_t bits;
    std::memcpy(&bits, &f, sizeof bits);
    return bits;
}

// log(u) for u in [2^-24, 1]: the mantissa around 1 by a polynomial (Cephes logf).
inline float log_unit(float u) noexcept {
    const uint32_t bits =
        as_bits(u) - 0x3f3504f3u;  // sqrt(1/2): the mantissa falls into [sqrt(1/2), sqrt(2))
    const float e = static_cast<float>(static_cast<int32_t>(bits) >> 23);
    const float x = as_float((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float p = 7.0376836292e-2f;
    p = p * x - 1.1514610310e-1f;
    p = p * x + 1.1676998740e-1f;
    p = p * x - 1.2420140846e-1f;
    p = p * x + 1.4249322787e-1f;
    p = p * x - 1.6668057665e-1f;
    p = p * x + 2.0000714765e-1f;
    p = p * x - 2.4999993993e-1f;
    p = p * x + 3.3333331174e-1f;
    const float z = x * x;
    return x + (z * x * p - 0.5f * z) + e * 0.69314718f;
}

}  // namespace
}  // namespace pyjepa::simd
