#include "planner/sampling.hpp"

#include <cmath>

#include "simd/kernels.hpp"
#include "simd/philox.hpp"

namespace pyjepa {

NoiseKey noise_key(uint64_t seed, uint64_t plan, uint32_t level, uint32_t iteration) noexcept {
    simd::Words c{};
    c.w[0][0] = static_cast<uint32_t>(plan);
    c.w[1][0] = static_cast<uint32_t>(plan >> 32);
    c.w[2][0] = level;
    c.w[3][0] = iteration;
    simd::philox(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), c);
    return {c.w[0][0], c.w[1][0]};
}

void gaussian(NoiseKey key, uint32_t stream, int n0, int n1, int count, float* out) noexcept {
    simd::kernels().gaussian(key.k0, key.k1, stream, n0, n1, count, out);
}

double stable_exp(double x) noexcept {
    if (!(x > -708.0)) return 0.0;
    const double n = std::floor(x * 1.4426950408889634 + 0.5);
    const double r = (x - n * 0.693145751953125) - n * 1.42860682030941723212e-6;
    double term = 1.0, total = 1.0;  // |r| <= ln(2)/2: the Taylor series to order 14
    for (int i = 1; i <= 14; ++i) {
        term = term * r / i;
        total += term;
    }
    return std::ldexp(total, static_cast<int>(n));
}

}  // namespace pyjepa
