// What must give the same bits on every instruction set - noise, and candidates made of it - compiled once
// per instruction set like body.hpp, but without contraction of multiply and add. PYJEPA_OWN_GAUSSIAN: that
// file brings a gaussian() of its own.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "simd/log_unit.hpp"
#include "simd/philox.hpp"

namespace pyjepa::simd::PYJEPA_ISA {
#ifndef PYJEPA_OWN_GAUSSIAN
namespace {

// Two normals from two words.
inline void box_muller(uint32_t a, uint32_t b, float& n0, float& n1) noexcept {
    const float u =
        static_cast<float>(static_cast<int32_t>((a >> 8) + 1)) * 5.9604644775390625e-8f;  // (0, 1]
    const float radius = std::sqrt(-2.0f * log_unit(u));
    // The angle: a quadrant from the top two bits, and half a turn's fraction f in [-1/4, 1/4) from the
    // next 24.
    const uint32_t quadrant = b >> 30;
    const float f =
        static_cast<float>(static_cast<int32_t>((b >> 6) & 0xffffffu) - 0x800000) * 2.98023223876953125e-8f;
    const float t = f * 3.14159265f, z = t * t;
    const float sine = t + t * z * (-1.6666654611e-1f + z * (8.3321608736e-3f + z * -1.9515295891e-4f));
    const float cosine =
        1.0f - 0.5f * z +
        z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    const float c = (quadrant & 1u) != 0 ? sine : cosine, s = (quadrant & 1u) != 0 ? cosine : sine;
    n0 = radius * ((quadrant + 1u) & 2u ? -c : c);
    n1 = radius * (quadrant & 2u ? -s : s);
}

}  // namespace

void gaussian(uint32_t k0, uint32_t k1, uint32_t stream, const int32_t* which, int first, int rows, int count,
              float* out) {
    const int groups = (count + 3) / 4;
    const int64_t total = static_cast<int64_t>(rows) * groups;
    int row = 0, group = 0;
    for (int64_t at = 0; at < total; at += kLanes) {
        const int lanes = static_cast<int>(total - at < kLanes ? total - at : kLanes);
        Words<kLanes> c{};
        for (int i = 0; i < lanes; ++i) {
            c.w[0][i] = static_cast<uint32_t>(which == nullptr ? first + row : which[row]);
            c.w[1][i] = static_cast<uint32_t>(group);
            c.w[2][i] = stream;
            if (++group == groups) {
                group = 0;
                ++row;
            }
        }
        philox(k0, k1, c);
        float n[4][kLanes];
        for (int i = 0; i < kLanes; ++i) box_muller(c.w[0][i], c.w[1][i], n[0][i], n[1][i]);
        for (int i = 0; i < kLanes; ++i) box_muller(c.w[2][i], c.w[3][i], n[2][i], n[3][i]);
        for (int i = 0; i < lanes; ++i)
            for (int j = 0; j < 4; ++j) *out++ = n[j][i];
    }
}
#endif

void perturb(const float* mean, const float* std, const float* low, const float* high, const float* noise,
             ptrdiff_t ld, int rows, int count, float* out) {
    for (int r = 0; r < rows; ++r, noise += ld, out += count)
        for (int i = 0; i < count; ++i) {
            float v = mean[i] + std[i] * noise[i];
            v = v < low[i] ? low[i] : v;
            out[i] = high[i] < v ? high[i] : v;
        }
}

void clamp(const float* low, const float* high, int rows, int count, float* x) {
    for (int r = 0; r < rows; ++r, x += count)
        for (int i = 0; i < count; ++i) {
            const float v = x[i] < low[i] ? low[i] : x[i];
            x[i] = high[i] < v ? high[i] : v;
        }
}

void normalise(const float* center, const float* scale, int rows, int count, float* x) {
    for (int r = 0; r < rows; ++r, x += count)
        for (int i = 0; i < count; ++i) x[i] = (x[i] - center[i]) / scale[i];
}

}  // namespace pyjepa::simd::PYJEPA_ISA
