// Dense layers with int8 weights and unsigned-byte inputs, int32 sums (AVX-512 VNNI: VPDPBUSD).
#if defined(__AVX512VNNI__)

#include <immintrin.h>

#include <cstring>

#include "simd/kernels.hpp"
#include "simd/tiles.hpp"

namespace pyjepa::simd::avx512_vnni {
namespace {

// ---- to bytes
// --------------------------------------------------------------------------------------------------------

// Four vectors of integers, saturated to unsigned bytes in the order of byte_place.
inline __m512i pack(const __m512i v[4]) {
    return _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]), _mm512_packs_epi32(v[2], v[3]));
}
inline __m128i pack_in_order(__m512i v) {
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(v, _mm512_setzero_si512()));
}

// A row times inverse(column) plus `offset`, rounded; saturated at 0, and above only if `bounded` (in int32,
// numbers over 2^31 are negative).
template <bool bounded, class Inverse>
inline void to_bytes(const float* x, int n, Inverse inverse, __m512 offset, uint8_t* y) {
    const auto rounded = [&](__m512 v, int at) {
        v = _mm512_fmadd_ps(v, inverse(at), offset);
        return _mm512_cvtps_epi32(bounded ? _mm512_min_ps(_mm512_set1_ps(255.0f), v) : v);
    };
    int j = 0;
    for (; j + kPanel <= n; j += kPanel) {
        __m512i v[4];
        for (int c = 0; c < 4; ++c) v[c] = rounded(_mm512_loadu_ps(x + j + c * 16), j + c * 16);
        _mm512_storeu_si512(y + j, pack(v));
    }
    if (j + kPanel <= padded(n)) {
        __m512i v[4];
        for (int c = 0; c < 4; ++c)
            v[c] = rounded(_mm512_maskz_loadu_ps(mask_of(n - j - c * 16), x + j + c * 16), j + c * 16);
        _mm512_storeu_si512(y + j, pack(v));
        return;
    }
    for (; j < n; j += 16)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(y + j),
                         pack_in_order(rounded(_mm512_maskz_loadu_ps(mask_of(n - j), x + j), j)));
}

void quantise(const float* x, ptrdiff_t ldx, int rows, int n, uint8_t* y, ptrdiff_t ldy, float* scale,
              int32_t* zero) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy) {
        // Magnitudes compared as integers: what is not a number is more than infinity.
        __m512i most = _mm512_setzero_si512(), signs = _mm512_setzero_si512();
        const auto see = [&](__m512 v) {
            const __m512i bits = _mm512_castps_si512(v);
            most = _mm512_max_epi32(most, _mm512_and_si512(bits, magnitude));
            signs = _mm512_or_si512(signs, bits);
        };
        int j = 0;
        for (; j + 16 <= n; j += 16) see(_mm512_loadu_ps(x + j));
        if (j < n) see(_mm512_maskz_loadu_ps(mask_of(n - j), x + j));
        const bool is_signed = _mm512_movepi32_mask(signs) != 0;
        const int32_t bits = _mm512_reduce_max_epi32(most);
        float reach;
        std::memcpy(&reach, &bits, sizeof reach);
        const float steps = is_signed ? 127.0f : 255.0f;
        // Too small to divide by: zeros, with a scale that is as good as any other.
        const bool flat = reach < 1e-30f;
        scale[r] = flat ? 1.0f : reach / steps;
        zero[r] = is_signed ? 128 : 0;
        const __m512 inverse = _mm512_set1_ps(flat ? 1.0f : steps / reach);
        to_bytes<false>(
            x, n, [inverse](int) { return inverse; }, _mm512_set1_ps(is_signed ? 128.0f : 0.0f), y);
    }
}

// What a row's largest number, or 0, makes of its scale; returns the inverse.
inline float relu_scale(float reach, float* scale) {
    const bool flat = reach < 1e-30f;
    *scale = (*scale - *scale) + (flat ? 1.0f : reach * (1.0f / 255.0f));
    return flat ? 1.0f : 255.0f / reach;
}

void quantise_relu(const float* x, ptrdiff_t ldx, int rows, int n, const float* most, uint8_t* y,
                   ptrdiff_t ldy, float* scale, int32_t* zero) {
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy, most += 16) {
        const float inverse = relu_scale(_mm512_reduce_max_ps(_mm512_loadu_ps(most)), &scale[r]);
        zero[r] = 0;
        to_bytes<false>(x, n, [inverse](int) { return _mm512_set1_ps(inverse); }, _mm512_setzero_ps(), y);
    }
}

void quantise_static(const float* x, ptrdiff_t ldx, int rows, int n, const float* inverse, int zero,
                     uint8_t* y, ptrdiff_t ldy) {
    const __m512 offset = _mm512_set1_ps(static_cast<float>(zero));
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy)
        to_bytes<true>(x, n, [inverse](int j) { return _mm512_loadu_ps(inverse + j); }, offset, y);
}

// ---- dense
// -----------------------------------------------------------------------------------------------------------

// What a strip of columns is made of, and where its sums go.
struct Strip {
    const int8_t* panel;
    int width, quads;
    const uint8_t* x;
    ptrdiff_t ldx;
};

struct Dynamic : Strip {
    const float *bias, *weight_scale;
    const int32_t* zero_sum;
    const float* scale;
    const int32_t* zero;
    float* y;
    ptrdiff_t ldy;
    int columns;
    bool relu, accumulate, first;
    float* most;

    __m512i start(int row, int c) const {
        return _mm512_maskz_loadu_epi32(zero[row] != 0 ? 0xffff : 0, zero_sum + c * 16);
    }
    template <int C>
    __attribute__((always_inline)) void finish(int row, const __m512i (&acc)[C]) const {
        const __m512 row_scale = _mm512_set1_ps(scale[row]);
        __m512 v[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            v[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[c]),
                                   _mm512_mul_ps(row_scale, _mm512_loadu_ps(weight_scale + c * 16)),
                                   _mm512_loadu_ps(bias + c * 16));
        if (most != nullptr) {  // columns that are only padding are 0
            __m512 high = first ? _mm512_setzero_ps() : _mm512_loadu_ps(most + row * 16);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) high = _mm512_max_ps(high, v[c]);
            _mm512_storeu_ps(most + row * 16, high);
        } else if (relu) {
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) v[c] = _mm512_max_ps(_mm512_setzero_ps(), v[c]);
        }
        store_row<C>(y + row * ldy, columns, accumulate, v);
    }
};

struct StaticToFloat : Strip {
    const int32_t* from;
    const float* scale;
    float* y;
    ptrdiff_t ldy;
    int columns;
    bool relu, accumulate;

    __m512i start(int, int c) const { return _mm512_loadu_si512(from + c * 16); }
    template <int C>
    __attribute__((always_inline)) void finish(int row, const __m512i (&acc)[C]) const {
        const __m512 floor = _mm512_set1_ps(relu ? 0.0f : -__builtin_inff());
        __m512 v[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            v[c] = _mm512_max_ps(floor,
                                 _mm512_mul_ps(_mm512_cvtepi32_ps(acc[c]), _mm512_loadu_ps(scale + c * 16)));
        store_row<C>(y + row * ldy, columns, accumulate, v);
    }
};

struct StaticToBytes : Strip {
    const int32_t* from;
    const float* rescale;
    uint8_t* bytes;
    ptrdiff_t ldb;
    int zero;
    uint8_t least;

    __m512i start(int, int c) const { return _mm512_loadu_si512(from + c * 16); }
    template <int C>
    __attribute__((always_inline)) void finish(int row, const __m512i (&acc)[C]) const {
        const __m512 offset = _mm512_set1_ps(static_cast<float>(zero));
        const __m512i floor = _mm512_set1_epi8(static_cast<char>(least));
        __m512i v[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            v[c] = _mm512_cvtps_epi32(
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[c]), _mm512_loadu_ps(rescale + c * 16), offset));
        uint8_t* to = bytes + row * ldb;
        if constexpr (C == 4)
            _mm512_storeu_si512(to, _mm512_max_epu8(pack(v), floor));
        else
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * 16),
                                 _mm_max_epu8(pack_in_order(v[c]), _mm512_castsi512_si128(floor)));
    }
};

// One register tile: R rows by C vectors of 16 columns. The sums stay in registers only because the
// instruction is written in assembly: gcc 12 spills the accumulators of the intrinsic.
template <int R, int C>
struct Tile {
    template <class Job>
    static void run(const Job& j, int row) {
        __m512i acc[R][C];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) acc[r][c] = j.start(row + r, c);
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
        for (int r = 0; r < R; ++r) j.template finish<C>(row + r, acc[r]);
    }
};

// R whole rows of C vectors, from one panel or two, whose scales are found in registers.
struct Rows {
    const int8_t *panel, *second;
    int width, second_width, quads;
    const uint8_t* x;
    ptrdiff_t ldx;
    const float *bias, *weight_scale;
    const int32_t* zero_sum;
    float* scale;
    int32_t* zero;
    uint8_t* y;
    ptrdiff_t ldy;
};

template <int R, int C>
struct RowTile {
    static void run(const Rows& j, int row) {
        constexpr int first = C < 4 ? C : 4;
        __m512i acc[R][C];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                acc[r][c] = _mm512_maskz_loadu_epi32(j.zero[row + r] != 0 ? 0xffff : 0, j.zero_sum + c * 16);
        const uint8_t* x = j.x + row * j.ldx;
        const int8_t *w = j.panel, *w2 = j.second;
        for (int k = 0; k < j.quads; ++k, w += 4 * j.width, w2 += 4 * j.second_width) {
            __m512i a[R];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) a[r] = broadcast(x + r * j.ldx + 4 * k);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const __m512i b = _mm512_loadu_si512(c < first ? w + c * 64 : w2 + (c - first) * 64);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) asm("vpdpbusd %2, %1, %0" : "+v"(acc[r][c]) : "v"(a[r]), "v"(b));
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const __m512 row_scale = _mm512_set1_ps(j.scale[row + r]);
            __m512 v[C], high = _mm512_setzero_ps();
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                v[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][c]),
                                       _mm512_mul_ps(row_scale, _mm512_loadu_ps(j.weight_scale + c * 16)),
                                       _mm512_loadu_ps(j.bias + c * 16));
                high = _mm512_max_ps(high, v[c]);
            }
            const float inverse = relu_scale(_mm512_reduce_max_ps(high), &j.scale[row + r]);
            j.zero[row + r] = 0;
            __m512i q[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                q[c] = _mm512_cvtps_epi32(_mm512_mul_ps(v[c], _mm512_set1_ps(inverse)));
            uint8_t* to = j.y + (row + r) * j.ldy;
            if constexpr (C >= 4) _mm512_storeu_si512(to, pack(q));
            if constexpr (C == 8) _mm512_storeu_si512(to + kPanel, pack(q + 4));
#pragma GCC unroll 8
            for (int c = C / 4 * 4; c < C; ++c)
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * 16), pack_in_order(q[c]));
        }
    }
};

void dense_relu(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, float* scale, int32_t* zero, int rows,
                uint8_t* y, ptrdiff_t ldy) {
    const int quads = byte_quads(w.in), columns = padded(w.out), width = columns < kPanel ? columns : kPanel;
    const Rows job{w.panels, w.panels + static_cast<ptrdiff_t>(4 * quads) * width,
                   width,    columns - width,
                   quads,    x,
                   ldx,      w.bias,
                   w.scale,  w.zero_sum,
                   scale,    zero,
                   y,        ldy};
    switch (columns / 16) {
        case 1:
            return strip<RowTile, 12, 1>(job, rows);
        case 2:
            return strip<RowTile, 12, 2>(job, rows);
        case 3:
            return strip<RowTile, 8, 3>(job, rows);
        case 4:
            return strip<RowTile, 6, 4>(job, rows);
        case 5:
            return strip<RowTile, 4, 5>(job, rows);
        case 6:
            return strip<RowTile, 4, 6>(job, rows);
        case 7:
            return strip<RowTile, 3, 7>(job, rows);
        default:
            return strip<RowTile, 3, 8>(job, rows);
    }
}

// Calls job(strip, first column) for each panel, and runs all rows of what it returns.
template <class MakeJob>
inline void panels(const int8_t* panel, int in, int out, const uint8_t* x, ptrdiff_t ldx, int rows,
                   MakeJob job) {
    const int quads = byte_quads(in);
    for (int c0 = 0; c0 < padded(out); c0 += kPanel) {
        const int width = padded(out) - c0 < kPanel ? padded(out) - c0 : kPanel;
        strips<Tile>(width / 16, rows, job(Strip{panel, width, quads, x, ldx}, c0));
        panel += static_cast<ptrdiff_t>(4 * quads) * width;
    }
}

void dense(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, const float* scale, const int32_t* zero,
           int rows, float* y, ptrdiff_t ldy, Act act, bool accumulate, float* most) {
    panels(w.panels, w.in, w.out, x, ldx, rows, [&](const Strip& strip, int c0) {
        return Dynamic{strip, w.bias + c0, w.scale + c0,     w.zero_sum + c0, scale,   zero, y + c0,
                       ldy,   w.out - c0,  act == Act::relu, accumulate,      c0 == 0, most};
    });
}

void dense_static(const DenseInt8Static& w, const uint8_t* x, ptrdiff_t ldx, int rows, float* y,
                  ptrdiff_t ldy, uint8_t* bytes, ptrdiff_t ldb, Act act, bool accumulate) {
    const bool relu = act == Act::relu;
    if (bytes == nullptr)
        panels(w.panels, w.in, w.out, x, ldx, rows, [&](const Strip& strip, int c0) {
            return StaticToFloat{strip, w.start + c0, w.scale + c0, y + c0,
                                 ldy,   w.out - c0,   relu,         accumulate};
        });
    else
        panels(w.panels, w.in, w.out, x, ldx, rows, [&](const Strip& strip, int c0) {
            return StaticToBytes{strip,
                                 w.start + c0,
                                 w.rescale + c0,
                                 bytes + c0,
                                 ldb,
                                 w.next_zero,
                                 relu ? w.next_zero : uint8_t{0}};
        });
}

}  // namespace

extern const Int8Kernels table;
const Int8Kernels table = {quantise, dense, dense_relu, quantise_relu, quantise_static, dense_static};

}  // namespace pyjepa::simd::avx512_vnni

#endif
