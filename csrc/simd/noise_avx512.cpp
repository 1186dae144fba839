// The noise of noise_body.hpp operation by operation, in intrinsics: what gcc 12 makes of the loops there
// takes 1.6 ns a normal, this 0.7 (Zen 5). It packs the counters one by one, multiplies 64 by 64 bits where
// 32 by 32 are asked for, and stores the normals one by one.
#if defined(__AVX512F__)
#include <immintrin.h>

#define PYJEPA_ISA avx512
#define PYJEPA_OWN_GAUSSIAN
#include "simd/noise_body.hpp"

namespace pyjepa::simd::avx512 {
namespace {

inline __m512 splat(float x) {
    return _mm512_set1_ps(x);
}
inline __m512i splat(int32_t x) {
    return _mm512_set1_epi32(x);
}

// a + b * x, in two roundings.
inline __m512 step(float a, __m512 b, __m512 x) {
    return splat(a) + b * x;
}

__m512 log_unit(__m512 u) {
    const __m512i bits = _mm512_sub_epi32(_mm512_castps_si512(u), splat(0x3f3504f3));
    const __m512 e = _mm512_cvtepi32_ps(_mm512_srai_epi32(bits, 23));
    const __m512 x =
        _mm512_castsi512_ps(_mm512_add_epi32(_mm512_and_si512(bits, splat(0x007fffff)), splat(0x3f3504f3))) -
        splat(1.0f);
    __m512 p = splat(7.0376836292e-2f);
    p = step(-1.1514610310e-1f, p, x);
    p = step(1.1676998740e-1f, p, x);
    p = step(-1.2420140846e-1f, p, x);
    p = step(1.4249322787e-1f, p, x);
    p = step(-1.6668057665e-1f, p, x);
    p = step(2.0000714765e-1f, p, x);
    p = step(-2.4999993993e-1f, p, x);
    p = step(3.3333331174e-1f, p, x);
    const __m512 z = x * x;
    return x + (z * x * p - splat(0.5f) * z) + e * splat(0.69314718f);
}

inline void box_muller(__m512i a, __m512i b, __m512& n0, __m512& n1) {
    const __m512 u = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_srli_epi32(a, 8), splat(1))) *
                     splat(5.9604644775390625e-8f);
    const __m512 radius = _mm512_sqrt_ps(splat(-2.0f) * log_unit(u));
    const __m512i share = _mm512_and_si512(_mm512_srli_epi32(b, 6), splat(0xffffff));
    const __m512 f =
        _mm512_cvtepi32_ps(_mm512_sub_epi32(share, splat(0x800000))) * splat(2.98023223876953125e-8f);
    const __m512 t = f * splat(3.14159265f), z = t * t;
    const __m512 sine =
        t + t * z * step(-1.6666654611e-1f, step(8.3321608736e-3f, splat(-1.9515295891e-4f), z), z);
    const __m512 cosine =
        splat(1.0f) - splat(0.5f) * z +
        z * z * step(4.166664568298827e-2f, step(-1.388731625493765e-3f, splat(2.443315711809948e-5f), z), z);
    const __mmask16 odd = _mm512_test_epi32_mask(b, splat(1 << 30));
    const __m512 c = _mm512_mask_blend_ps(odd, cosine, sine), s = _mm512_mask_blend_ps(odd, sine, cosine);
    // Signs: of the sine the top bit, of the cosine that of (quadrant + 1).
    const __m512i sign = splat(INT32_MIN), top = _mm512_and_si512(b, sign),
                  other = _mm512_and_si512(_mm512_xor_si512(b, _mm512_slli_epi32(b, 1)), sign);
    n0 = radius * _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(c), other));
    n1 = radius * _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(s), top));
}

// Philox4x32-10 on 16 counters. Products of 32 by 32 bits come in lanes of 64, and read only their lower
// halves: the 16 words travel as even and odd ones, with anything in the upper halves.
inline void philox(uint32_t k0, uint32_t k1, __m512i (&w)[4]) {
    const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
    __m512i even[4], odd[4];
    for (int i = 0; i < 4; ++i) {
        even[i] = w[i];
        odd[i] = _mm512_srli_epi64(w[i], 32);
    }
    const auto round = [&](__m512i(&x)[4], __m512i key0, __m512i key1) {
        constexpr int three_way_xor = 0x96;
        const __m512i p0 = _mm512_mul_epu32(x[0], m0), p1 = _mm512_mul_epu32(x[2], m1);
        x[0] = _mm512_ternarylogic_epi32(_mm512_srli_epi64(p1, 32), x[1], key0, three_way_xor);
        x[1] = p1;
        x[2] = _mm512_ternarylogic_epi32(_mm512_srli_epi64(p0, 32), x[3], key1, three_way_xor);
        x[3] = p0;
    };
#pragma GCC unroll 10
    for (int i = 0; i < 10; ++i) {
        const __m512i key0 = splat(static_cast<int32_t>(k0)), key1 = splat(static_cast<int32_t>(k1));
        round(even, key0, key1);
        round(odd, key0, key1);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < 4; ++i)
        w[i] = _mm512_mask_blend_epi32(0xaaaa, even[i], _mm512_slli_epi64(odd[i], 32));
}

// From four vectors, a number of each counter in every one, to the four numbers of one counter after another.
inline void interleave(__m512 (&n)[4]) {
    const auto pair = [](__m512 a, __m512 b, bool high) {
        const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
        return _mm512_castpd_ps(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
    };
    const __m512 a = _mm512_unpacklo_ps(n[0], n[1]), b = _mm512_unpackhi_ps(n[0], n[1]),
                 c = _mm512_unpacklo_ps(n[2], n[3]), d = _mm512_unpackhi_ps(n[2], n[3]);
    // Quarter q of by[i]: counter 4 q + i.
    const __m512 by[4] = {pair(a, c, false), pair(a, c, true), pair(b, d, false), pair(b, d, true)};
    const __m512 first = _mm512_shuffle_f32x4(by[0], by[1], 0x44),
                 second = _mm512_shuffle_f32x4(by[2], by[3], 0x44),
                 third = _mm512_shuffle_f32x4(by[0], by[1], 0xee),
                 fourth = _mm512_shuffle_f32x4(by[2], by[3], 0xee);
    n[0] = _mm512_shuffle_f32x4(first, second, 0x88);
    n[1] = _mm512_shuffle_f32x4(first, second, 0xdd);
    n[2] = _mm512_shuffle_f32x4(third, fourth, 0x88);
    n[3] = _mm512_shuffle_f32x4(third, fourth, 0xdd);
}

}  // namespace

void gaussian(uint32_t k0, uint32_t k1, uint32_t stream, const int32_t* which, int first, int rows, int count,
              float* out) {
    const int groups = (count + 3) / 4;
    const int64_t total = static_cast<int64_t>(rows) * groups;
    // Row and group of 16 counters, and how far the next 16 are from them.
    alignas(64) int32_t row0[16], group0[16];
    for (int i = 0, row = 0, group = 0; i < 16; ++i) {
        row0[i] = row;
        group0[i] = group;
        if (++group == groups) {
            group = 0;
            ++row;
        }
    }
    __m512i row = _mm512_load_si512(row0), group = _mm512_load_si512(group0);
    const __m512i all = splat(groups), whole = splat(16 / groups), part = splat(16 % groups);
    for (int64_t at = 0; at < total; at += 16, out += 64) {
        const int lanes = total - at < 16 ? static_cast<int>(total - at) : 16;
        const auto mask = static_cast<__mmask16>((1u << lanes) - 1u);
        const __m512i candidate = which == nullptr
                                      ? _mm512_add_epi32(row, splat(first))
                                      : _mm512_mask_i32gather_epi32(row, mask, row, which, sizeof *which);
        __m512i w[4] = {candidate, group, splat(static_cast<int32_t>(stream)), splat(0)};
        group = _mm512_add_epi32(group, part);
        const __mmask16 over = _mm512_cmpge_epi32_mask(group, all);
        group = _mm512_mask_sub_epi32(group, over, group, all);
        row = _mm512_add_epi32(row, whole);
        row = _mm512_mask_add_epi32(row, over, row, splat(1));

        philox(k0, k1, w);
        __m512 n[4];
        box_muller(w[0], w[1], n[0], n[1]);
        box_muller(w[2], w[3], n[2], n[3]);
        interleave(n);
        if (lanes == 16)
            for (int i = 0; i < 4; ++i) _mm512_storeu_ps(out + 16 * i, n[i]);
        else
            for (int i = 0; i < 4; ++i)
                _mm512_mask_storeu_ps(out + 16 * i,
                                      static_cast<__mmask16>(((uint64_t{1} << (lanes * 4)) - 1) >> (16 * i)),
                                      n[i]);
    }
}

}  // namespace pyjepa::simd::avx512
#endif
