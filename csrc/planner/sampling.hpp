// Gaussian noise from counters: the same numbers whoever draws them, whenever, on every machine.
//
// A draw is named by (seed, plan, level, iteration) - the key - and (stream, candidate, index). The generator
// is Philox4x32-10 (Salmon et al. 2011); normals come from it by Box-Muller with logarithm, sine and cosine
// of our own, in single precision without contraction.
#pragma once

#include <cstdint>

namespace pyjepa {

struct NoiseKey {
    uint32_t k0 = 0, k1 = 0;
};

NoiseKey noise_key(uint64_t seed, uint64_t plan, uint32_t level, uint32_t iteration) noexcept;

// Normals come in groups of four.
constexpr int noise_row(int count) {
    return (count + 3) / 4 * 4;
}

// Some candidates: `count` of them from `first` on or, if there is a list, those in it.
struct Picks {
    int first, count;
    const int32_t* list = nullptr;
    int operator[](int i) const noexcept { return list == nullptr ? first + i : list[i]; }
};

// out[i, j] for every candidate i of `picks` and j < noise_row(count), row length noise_row(count).
void gaussian(NoiseKey key, uint32_t stream, const Picks& picks, int count, float* out) noexcept;

// Likewise uniform numbers in [0, 1), multiples of 2^-24.
void uniform(NoiseKey key, uint32_t stream, const Picks& picks, int count, float* out) noexcept;

// exp(x) for x <= 0, in double precision, the same on every machine. Relative error below 1e-15.
double stable_exp(double x) noexcept;

// log(x) for normal x > 0, likewise.
double stable_log(double x) noexcept;

// A standard Gumbel variable from a uniform one in [0, 1), a multiple of 2^-24.
double gumbel(float u) noexcept;

}  // namespace pyjepa
