// Dense layers with int8 weights and unsigned-byte inputs, int32 sums (AVX-512 VNNI: VPDPBUSD).
#if defined(__AVX512VNNI__)

#include <immintrin.h>

#include <cstring>

#include "simd/kernels.hpp"
#include "simd/tiles.hpp"

namespace pyjepa::simd::avx512_vnni {
namespace {

void quantise(const float* x, ptrdiff_t ldx, int rows, int n, uint8_t* y, ptrdiff_t ldy, float* scale,
              int32_t* zero) {
    const int quads = (n + 3) / 4 * 4;
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy) {
        __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
        for (int j = 0; j < n; j += 16) {
            const __m512 v = _mm512_maskz_loadu_ps(mask_of(n - j), x + j);
            low = _mm512_min_ps(low, v);
            high = _mm512_max_ps(high, v);
        }
        const float least = _mm512_reduce_min_ps(low), most = _mm512_reduce_max_ps(high);
        const bool is_signed = least < 0.0f;
        const float reach = is_signed ? (most > -least ? most : -least) / 127.0f : most / 255.0f;
        // All zeros: any scale will do. A row that is not finite stays so through its scale.
        scale[r] = reach > 0.0f ? reach : reach == 0.0f ? 1.0f : reach;
        zero[r] = is_signed ? 128 : 0;
        const __m512 inverse = _mm512_set1_ps(1.0f / scale[r]),
                     offset = _mm512_set1_ps(is_signed ? 128.0f : 0.0f);
        for (int j = 0; j < quads; j += 16) {
            const __m512 v = _mm512_maskz_loadu_ps(mask_of(n - j), x + j);
            const __m512i q = _mm512_cvtps_epi32(_mm512_add_ps(_mm512_mul_ps(v, inverse), offset));
            const __m128i bytes =
                _mm512_maskz_cvtusepi32_epi8(mask_of(n - j), _mm512_max_epi32(q, _mm512_setzero_si512()));
            _mm_mask_storeu_epi8(y + j, mask_of(quads - j), bytes);
        }
    }
}

struct Job {
    const int8_t* panel;
    int width, quads;
    const float *bias, *weight_scale;
    const int32_t* zero_sum;
    const uint8_t* x;
    ptrdiff_t ldx;
    const float* scale;
    const int32_t* zero;
    float* y;
    ptrdiff_t ldy;
    int columns;
    bool relu, accumulate;
};

template <int R, int C>
struct Tile {
    static void run(const Job& j, int row) {
        __m512i acc[R][C];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const __mmask16 shifted = j.zero[row + r] != 0 ? 0xffff : 0;
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) acc[r][c] = _mm512_maskz_loadu_epi32(shifted, j.zero_sum + c * 16);
        }
        const uint8_t* x = j.x + row * j.ldx;
        const int8_t* w = j.panel;
        for (int k = 0; k < j.quads; ++k, w += 4 * j.width) {
            __m512i b[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) b[c] = _mm512_loadu_si512(w + c * 64);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const __m512i a = broadcast(x + r * j.ldx + 4 * k);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) asm("vpdpbusd %2, %1, %0" : "+v"(acc[r][c]) : "v"(a), "v"(b[c]));
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const __m512 scale = _mm512_set1_ps(j.scale[row + r]);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][c]),
                                         _mm512_mul_ps(scale, _mm512_loadu_ps(j.weight_scale + c * 16)));
                v = _mm512_add_ps(v, _mm512_loadu_ps(j.bias + c * 16));
                if (j.relu) v = _mm512_max_ps(_mm512_setzero_ps(), v);
                float* to = j.y + (row + r) * j.ldy + c * 16;
                const __mmask16 m = mask_of(j.columns - c * 16);
                if (j.accumulate) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m, to));
                _mm512_mask_storeu_ps(to, m, v);
            }
        }
    }
};

void dense(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, const float* scale, const int32_t* zero,
           int rows, float* y, ptrdiff_t ldy, Act act, bool accumulate) {
    const int quads = (w.in + 3) / 4;
    const int8_t* panel = w.panels;
    for (int c0 = 0; c0 < padded(w.out); c0 += kPanel) {
        const int width = padded(w.out) - c0 < kPanel ? padded(w.out) - c0 : kPanel;
        const Job job{panel, width, quads,  w.bias + c0, w.scale + c0, w.zero_sum + c0,  x,         ldx,
                      scale, zero,  y + c0, ldy,         w.out - c0,   act == Act::relu, accumulate};
        strips<Tile>(width / 16, rows, job);
        panel += static_cast<ptrdiff_t>(4 * quads) * width;
    }
}

}  // namespace

extern const Int8Kernels table;
const Int8Kernels table = {quantise, dense};

}  // namespace pyjepa::simd::avx512_vnni

#endif
