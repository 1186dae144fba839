#include "planner/sampling.hpp"

#include <algorithm>
#include <cmath>

#include "simd/kernels.hpp"
#include "simd/philox.hpp"

namespace pyjepa {

NoiseKey noise_key(uint64_t seed, uint64_t plan, uint32_t level, uint32_t iteration) noexcept {
    simd::Words<1> c{};
    c.w[0][0] = static_cast<uint32_t>(plan);
    c.w[1][0] = static_cast<uint32_t>(plan >> 32);
    c.w[2][0] = level;
    c.w[3][0] = iteration;
    simd::philox(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), c);
    return {c.w[0][0], c.w[1][0]};
}

void gaussian(NoiseKey key, uint32_t stream, const Picks& picks, int count, float* out) noexcept {
    simd::kernels().gaussian(key.k0, key.k1, stream, picks.list, picks.first, picks.count, count, out);
}

void uniform(NoiseKey key, uint32_t stream, const Picks& picks, int count, float* out) noexcept {
    const int groups = (count + 3) / 4;
    const int64_t total = static_cast<int64_t>(picks.count) * groups;
    for (int64_t at = 0; at < total; at += simd::kLanes) {
        const int lanes = static_cast<int>(std::min<int64_t>(total - at, simd::kLanes));
        simd::Words<simd::kLanes> c{};
        for (int i = 0; i < lanes; ++i) {
            c.w[0][i] = static_cast<uint32_t>(picks[static_cast<int>((at + i) / groups)]);
            c.w[1][i] = static_cast<uint32_t>((at + i) % groups);
            c.w[2][i] = stream;
        }
        simd::philox(key.k0, key.k1, c);
        for (int i = 0; i < lanes; ++i)
            for (int j = 0; j < 4; ++j) *out++ = static_cast<float>(c.w[j][i] >> 8) * 0x1p-24f;
    }
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

double stable_log(double x) noexcept {
    int exponent = 0;
    double m = std::frexp(x, &exponent);  // [1/2, 1)
    if (m < 0.70710678118654752) {
        m *= 2.0;
        --exponent;
    }
    const double s = (m - 1.0) / (m + 1.0), square = s * s;  // |s| < 0.172: log m = 2 artanh s
    double power = s, total = 0.0;
    for (int k = 1; k <= 21; k += 2) {
        total += power / k;
        power *= square;
    }
    return 2.0 * total + exponent * 0.69314718055994531;
}

double gumbel(float u) noexcept {
    return -stable_log(-stable_log(static_cast<double>(u) + 0x1p-25));  // the middle of its cell
}

}  // namespace pyjepa
