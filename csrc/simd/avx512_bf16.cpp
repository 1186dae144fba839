// Dense layers with bf16 weights and inputs, fp32 sums (AVX-512 BF16: VDPBF16PS).
#if defined(__AVX512BF16__)

#include <immintrin.h>

#include <cstring>

#include "simd/kernels.hpp"
#include "simd/tiles.hpp"

namespace pyjepa::simd::avx512_bf16 {
namespace {

void convert(const float* x, ptrdiff_t ldx, int rows, int n, uint16_t* y, ptrdiff_t ldy) {
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy) {
        int j = 0;
        for (; j + 32 <= n; j += 32)
            _mm512_storeu_si512(
                y + j, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + j + 16), _mm512_loadu_ps(x + j)));
        if (j < n)
            _mm512_storeu_si512(
                y + j, (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(mask_of(n - j - 16), x + j + 16),
                                                    _mm512_maskz_loadu_ps(mask_of(n - j), x + j)));
    }
}

// `narrow`: to y16.
template <To where, bool narrow>
struct Job {
    const uint16_t* panel;
    int width, pairs;
    const float* bias;
    const uint16_t* x;
    ptrdiff_t ldx;
    float* y;
    ptrdiff_t ldy;
    uint16_t* y16;
    ptrdiff_t ldy16;
    int columns;
    bool relu, accumulate;
};

// One register tile: R rows by C vectors of 16 columns. The sums stay in registers only because the
// instruction is written in assembly: gcc 12 spills the accumulators of the intrinsic.
template <int R, int C>
struct Tile {
    template <class Job>
    static void run(const Job& job, int first, int end) {
        for (int row = first; row < end; row += R) one(job, row);
    }

  private:
    template <To where, bool narrow>
    __attribute__((noinline)) static void one(const Job<where, narrow>& j, int row) {
        __m512 acc[R][C];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) acc[r][c] = _mm512_loadu_ps(j.bias + c * 16);
        const uint16_t* x = j.x + row * j.ldx;
        const uint16_t* w = j.panel;
        for (int k = 0; k < j.pairs; ++k, w += 2 * j.width) {
            __m512i b[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) b[c] = _mm512_loadu_si512(w + c * 32);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) {
                const __m512i a = broadcast(x + r * j.ldx + 2 * k);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) asm("vdpbf16ps %2, %1, %0" : "+v"(acc[r][c]) : "v"(a), "v"(b[c]));
            }
        }
        const __m512 floor = _mm512_set1_ps(j.relu ? 0.0f : -__builtin_inff());
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            __m512 v[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) v[c] = _mm512_max_ps(floor, acc[r][c]);
            if constexpr (!narrow) {
                store_row<where>(j.y + (row + r) * j.ldy, j.columns, j.accumulate, v);
                continue;
            }
            uint16_t* to = j.y16 + (row + r) * j.ldy16;
#pragma GCC unroll 8
            for (int c = 0; c + 1 < C; c += 2)
                _mm512_storeu_si512(to + c * 16, (__m512i)_mm512_cvtne2ps_pbh(v[c + 1], v[c]));
            if constexpr (C % 2 == 1)
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (C - 1) * 16),
                                    (__m256i)_mm512_cvtneps_pbh(v[C - 1]));
        }
    }
};

void dense(const DenseBf16& w, const uint16_t* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy,
           uint16_t* y16, ptrdiff_t ldy16, Act act, bool accumulate) {
    const int pairs = (w.in + 1) / 2;
    const uint16_t* panel = w.panels;
    for (int c0 = 0; c0 < padded(w.out); c0 += kPanel) {
        const int width = padded(w.out) - c0 < kPanel ? padded(w.out) - c0 : kPanel;
        const auto run = [&]<To where, bool narrow>() {
            strips<Tile>(width / 16, rows,
                         Job<where, narrow>{panel, width, pairs, w.bias + c0, x, ldx, y + c0, ldy,
                                            y16 == nullptr ? nullptr : y16 + c0, ldy16, w.out - c0,
                                            act == Act::relu, accumulate});
        };
        const To where = where_to(w.out - c0, width, accumulate);
        if (y16 != nullptr)
            run.template operator()<To::whole, true>();
        else if (where == To::whole)
            run.template operator()<To::whole, false>();
        else if (where == To::added)
            run.template operator()<To::added, false>();
        else
            run.template operator()<To::part, false>();
        panel += static_cast<ptrdiff_t>(2 * pairs) * width;
    }
}

}  // namespace

extern const Bf16Kernels table;
const Bf16Kernels table = {convert, dense};

}  // namespace pyjepa::simd::avx512_bf16

#endif
