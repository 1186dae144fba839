#include "planner/sobol.hpp"

#include <algorithm>
#include <cmath>

#include "simd/log_unit.hpp"

namespace pyjepa {
namespace {

// Joe and Kuo's primitive polynomials and first direction numbers (new-joe-kuo-6.21201), from dimension 2 on.
struct Polynomial {
    int degree;
    uint32_t coefficients;
    uint32_t first[9];
};
// clang-format off
constexpr Polynomial polynomials[Sobol::kMostDimensions - 1] = {
    {1, 0, {1}},
    {2, 1, {1, 3}},
    {3, 1, {1, 3, 1}},
    {3, 2, {1, 1, 1}},
    {4, 1, {1, 1, 3, 3}},
    {4, 4, {1, 3, 5, 13}},
    {5, 2, {1, 1, 5, 5, 17}},
    {5, 4, {1, 1, 5, 5, 5}},
    {5, 7, {1, 1, 7, 11, 19}},
    {5, 11, {1, 1, 5, 1, 1}},
    {5, 13, {1, 1, 1, 3, 11}},
    {5, 14, {1, 3, 5, 5, 31}},
    {6, 1, {1, 3, 3, 9, 7, 49}},
    {6, 13, {1, 1, 1, 15, 21, 21}},
    {6, 16, {1, 3, 1, 13, 27, 49}},
    {6, 19, {1, 1, 1, 15, 7, 5}},
    {6, 22, {1, 3, 1, 15, 13, 25}},
    {6, 25, {1, 1, 5, 5, 19, 61}},
    {7, 1, {1, 3, 7, 11, 23, 15, 103}},
    {7, 4, {1, 3, 7, 13, 13, 15, 69}},
    {7, 7, {1, 1, 3, 13, 7, 35, 63}},
    {7, 8, {1, 3, 5, 9, 1, 25, 53}},
    {7, 14, {1, 3, 1, 13, 9, 35, 107}},
    {7, 19, {1, 3, 1, 5, 27, 61, 31}},
    {7, 21, {1, 1, 5, 11, 19, 41, 61}},
    {7, 28, {1, 3, 5, 3, 3, 13, 69}},
    {7, 31, {1, 1, 7, 13, 1, 19, 1}},
    {7, 32, {1, 3, 7, 5, 13, 19, 59}},
    {7, 37, {1, 1, 3, 9, 25, 29, 41}},
    {7, 41, {1, 3, 5, 13, 23, 1, 55}},
    {7, 42, {1, 3, 7, 3, 13, 59, 17}},
    {7, 50, {1, 3, 1, 3, 5, 53, 69}},
    {7, 55, {1, 1, 5, 5, 23, 33, 13}},
    {7, 56, {1, 1, 7, 7, 1, 61, 123}},
    {7, 59, {1, 1, 7, 9, 13, 61, 49}},
    {7, 62, {1, 3, 3, 5, 3, 55, 33}},
    {8, 14, {1, 3, 1, 15, 31, 13, 49, 245}},
    {8, 21, {1, 3, 5, 15, 31, 59, 63, 97}},
    {8, 22, {1, 3, 1, 11, 11, 11, 77, 249}},
    {8, 38, {1, 3, 1, 11, 27, 43, 71, 9}},
    {8, 47, {1, 1, 7, 15, 21, 11, 81, 45}},
    {8, 49, {1, 3, 7, 3, 25, 31, 65, 79}},
    {8, 50, {1, 3, 1, 1, 19, 11, 3, 205}},
    {8, 52, {1, 1, 5, 9, 19, 21, 29, 157}},
    {8, 56, {1, 3, 7, 11, 1, 33, 89, 185}},
    {8, 67, {1, 3, 3, 3, 15, 9, 79, 71}},
    {8, 70, {1, 3, 7, 11, 15, 39, 119, 27}},
    {8, 84, {1, 1, 3, 1, 11, 31, 97, 225}},
    {8, 97, {1, 1, 1, 3, 23, 43, 57, 177}},
    {8, 103, {1, 3, 7, 7, 17, 17, 37, 71}},
    {8, 115, {1, 3, 1, 5, 27, 63, 123, 213}},
    {8, 122, {1, 1, 3, 5, 11, 43, 53, 133}},
    {9, 8, {1, 3, 5, 5, 29, 17, 47, 173, 479}},
    {9, 13, {1, 3, 3, 11, 3, 1, 109, 9, 69}},
    {9, 16, {1, 1, 1, 5, 17, 39, 23, 5, 343}},
    {9, 22, {1, 3, 1, 5, 25, 15, 31, 103, 499}},
    {9, 25, {1, 1, 1, 11, 11, 17, 63, 105, 183}},
    {9, 44, {1, 1, 5, 11, 9, 29, 97, 231, 363}},
    {9, 47, {1, 1, 5, 15, 19, 45, 41, 7, 383}},
    {9, 52, {1, 3, 7, 7, 31, 19, 83, 137, 221}},
    {9, 55, {1, 1, 1, 3, 23, 15, 111, 223, 83}},
    {9, 59, {1, 1, 5, 13, 31, 15, 55, 25, 161}},
    {9, 62, {1, 1, 3, 13, 25, 47, 39, 87, 257}},
};
// clang-format on

uint32_t reverse(uint32_t x) noexcept {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
    x = (x >> 8 & 0x00ff00ffu) | (x & 0x00ff00ffu) << 8;
    return x >> 16 | x << 16;
}

// Murmur3's end: what a key makes of each dimension.
uint32_t mix(uint32_t x) noexcept {
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return x ^ x >> 16;
}

// Laine and Karras' permutation: every bit is flipped by a hash of those below it. On numbers with their bits
// in reverse that is Owen's nested scrambling.
uint32_t scramble(uint32_t x, uint32_t seed) noexcept {
    x += seed;
    x ^= x * 0x6c50b47cu;
    x ^= x * 0xb82f1e52u;
    x ^= x * 0xc7afe638u;
    x ^= x * 0x8d22f6e6u;
    return x;
}

// The normal distribution's quantile at (v + 1) / 2, for v in (-1, 1): sqrt(2) times the inverse error
// function (Giles 2012).
float quantile(float v) noexcept {
    const float w = -simd::log_unit((1.0f - v) * (1.0f + v));
    const float a = w - 2.5f;
    float p = 2.81022636e-08f;
    p = 3.43273939e-07f + p * a;
    p = -3.5233877e-06f + p * a;
    p = -4.39150654e-06f + p * a;
    p = 0.00021858087f + p * a;
    p = -0.00125372503f + p * a;
    p = -0.00417768164f + p * a;
    p = 0.246640727f + p * a;
    p = 1.50140941f + p * a;
    const float b = std::sqrt(std::max(w, 0.0f)) - 3.0f;
    float q = -0.000200214257f;
    q = 0.000100950558f + q * b;
    q = 0.00134934322f + q * b;
    q = -0.00367342844f + q * b;
    q = 0.00573950773f + q * b;
    q = -0.0076224613f + q * b;
    q = 0.00943887047f + q * b;
    q = 1.00167406f + q * b;
    q = 2.83297682f + q * b;
    return 1.41421356f * v * (w < 5.0f ? p : q);
}

}  // namespace

Sobol::Sobol(int dimensions) : dimensions_(dimensions), reversed_(32 * static_cast<size_t>(dimensions)) {
    for (int j = 0; j < dimensions; ++j) {
        uint32_t v[32];
        for (int i = 0; i < 32; ++i) {
            if (j == 0) {
                v[i] = 1u << (31 - i);
                continue;
            }
            const Polynomial& p = polynomials[j - 1];
            if (i < p.degree) {
                v[i] = p.first[i] << (31 - i);
                continue;
            }
            v[i] = v[i - p.degree] ^ v[i - p.degree] >> p.degree;
            for (int k = 1; k < p.degree; ++k)
                if (p.coefficients >> (p.degree - 1 - k) & 1u) v[i] ^= v[i - k];
        }
        for (int i = 0; i < 32; ++i)
            reversed_[static_cast<size_t>(i) * static_cast<size_t>(dimensions) + static_cast<size_t>(j)] =
                reverse(v[i]);
    }
}

uint32_t Sobol::point(int n, int j) const noexcept {
    uint32_t x = 0;
    const uint32_t gray = static_cast<uint32_t>(n) ^ static_cast<uint32_t>(n) >> 1;
    for (size_t i = 0; gray >> i != 0; ++i)
        if (gray >> i & 1u) x ^= reversed_[i * static_cast<size_t>(dimensions_) + static_cast<size_t>(j)];
    return reverse(x);
}

void Sobol::normals(NoiseKey key, const Picks& picks, int row, float* out) const noexcept {
    if (picks.list != nullptr) {
        for (int i = 0; i < picks.count; ++i, out += row) normals(key, {picks[i], 1}, row, out);
        return;
    }
    const int n0 = picks.first, n1 = n0 + picks.count;
    uint32_t x[kMostDimensions] = {}, seed[kMostDimensions];
    const auto walk = [&](size_t i) {
        const uint32_t* direction = reversed_.data() + i * static_cast<size_t>(dimensions_);
        for (int j = 0; j < dimensions_; ++j) x[j] ^= direction[j];
    };
    const uint32_t gray = static_cast<uint32_t>(n0) ^ static_cast<uint32_t>(n0) >> 1;
    for (size_t i = 0; i < 31; ++i)
        if (gray >> i & 1u) walk(i);
    for (int j = 0; j < dimensions_; ++j) seed[j] = mix(key.k0 ^ mix(key.k1 + static_cast<uint32_t>(j)));
    for (int n = n0; n < n1; ++n, out += row) {
        for (int j = 0; j < dimensions_; ++j) {
            // The top 24 bits as an odd multiple of 2^-24 in (-1, 1).
            const uint32_t drawn = reverse(scramble(x[j], seed[j]));
            const int32_t centred = static_cast<int32_t>(drawn ^ 0x80000000u) >> 8;
            out[j] = quantile(static_cast<float>(2 * centred + 1) * 5.9604644775390625e-8f);
        }
        size_t next = 0;  // the bit in which the next Gray code differs
        while ((static_cast<uint32_t>(n) >> next & 1u) != 0) ++next;
        walk(next);
    }
}

}  // namespace pyjepa
