// Philox4x32-10 (Salmon et al. 2011), for one counter or a vector's worth of them at a time. Internal to each
// file that includes it: the instruction-set files must share no function with the others.
#pragma once

#include <cstdint>

namespace pyjepa::simd {
namespace {

constexpr int kLanes = 16;  // counters worked on together, so that the compiler can use vectors

template <int lanes>
struct Words {
    uint32_t w[4][lanes];
};

template <int lanes>
inline void philox(uint32_t k0, uint32_t k1, Words<lanes>& c) noexcept {
    for (int round = 0; round < 10; ++round) {
#pragma GCC unroll 1  // peeled before the vectoriser sees it, the loop stays scalar: 4.1 ns a normal, not 1.8
                      // (Zen 5, AVX-512)
        for (int i = 0; i < lanes; ++i) {
            const uint64_t p0 = static_cast<uint64_t>(c.w[0][i]) * 0xD2511F53u;
            const uint64_t p1 = static_cast<uint64_t>(c.w[2][i]) * 0xCD9E8D57u;
            const uint32_t w1 = c.w[1][i], w3 = c.w[3][i];
            c.w[0][i] = static_cast<uint32_t>(p1 >> 32) ^ w1 ^ k0;
            c.w[1][i] = static_cast<uint32_t>(p1);
            c.w[2][i] = static_cast<uint32_t>(p0 >> 32) ^ w3 ^ k1;
            c.w[3][i] = static_cast<uint32_t>(p0);
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

}  // namespace
}  // namespace pyjepa::simd
