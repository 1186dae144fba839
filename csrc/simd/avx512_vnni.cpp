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

// The largest element of each of R vectors, one per lane in order: all vectors at once, for by itself each
// takes eight instructions that wait for one another.
template <int R>
__attribute__((always_inline)) inline __m512 largest(const __m512 (&v)[R]) {
    static_assert(R <= 16);
    constexpr int groups = (R + 3) / 4;
    __m512 quads[groups];
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) {
        __m512 pairs[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            const int r = 4 * g + 2 * i;  // where there are too few rows, one stands for others
            const __m512 a = v[r < R ? r : R - 1], b = v[r + 1 < R ? r + 1 : R - 1];
            pairs[i] = _mm512_max_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        }
        quads[g] = _mm512_max_ps(_mm512_shuffle_f32x4(pairs[0], pairs[1], 0x88),
                                 _mm512_shuffle_f32x4(pairs[0], pairs[1], 0xdd));
    }
    const auto halve = [](__m512 a, __m512 b) {
        const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
        return _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    };
    const __m512 low = halve(quads[0], quads[groups > 1 ? 1 : 0]);
    __m512 high = low;
    if constexpr (groups > 2) high = halve(quads[2], quads[groups - 1]);
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_ps(
        in_order, _mm512_max_ps(_mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xdd)));
}

// What the largest numbers of R rows, or 0, make of their scales; returns their inverses.
template <int R>
__attribute__((always_inline)) inline __m512 relu_scales(const __m512 (&most)[R], float* scale) {
    const __m512 reach = largest(most);
    const __mmask16 rows = mask_of(R), flat = _mm512_cmp_ps_mask(reach, _mm512_set1_ps(1e-30f), _CMP_LT_OQ);
    const __m512 one = _mm512_set1_ps(1.0f), before = _mm512_maskz_loadu_ps(rows, scale);
    const __m512 own = _mm512_mask_blend_ps(flat, _mm512_mul_ps(reach, _mm512_set1_ps(1.0f / 255.0f)), one);
    _mm512_mask_storeu_ps(scale, rows, _mm512_add_ps(_mm512_sub_ps(before, before), own));
    return _mm512_mask_blend_ps(flat, _mm512_div_ps(_mm512_set1_ps(255.0f), reach), one);
}

void quantise_relu(const float* x, ptrdiff_t ldx, int rows, int n, const float* most, uint8_t* y,
                   ptrdiff_t ldy, float* scale, int32_t* zero) {
    constexpr int most_rows = 8;
    for (int row = 0; row < rows; row += most_rows) {
        const int count = rows - row < most_rows ? rows - row : most_rows;
        __m512 high[most_rows];
        for (int r = 0; r < most_rows; ++r)
            high[r] = _mm512_loadu_ps(most + (row + (r < count ? r : 0)) * 16);
        alignas(64) float inverses[16], scales[16];
        _mm512_store_ps(scales, _mm512_maskz_loadu_ps(mask_of(count), scale + row));
        _mm512_store_ps(inverses, relu_scales(high, scales));
        _mm512_mask_storeu_ps(scale + row, mask_of(count), _mm512_load_ps(scales));
        for (int r = row; r < row + count; ++r, x += ldx, y += ldy) {
            const __m512 inverse = _mm512_set1_ps(inverses[r - row]);
            zero[r] = 0;
            to_bytes<false>(x, n, [inverse](int) { return inverse; }, _mm512_setzero_ps(), y);
        }
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

// What a strip of columns is made of: one panel, or two side by side.
struct Strip {
    const int8_t *panel, *second;
    int width, second_width, quads;
    const uint8_t* x;
    ptrdiff_t ldx;
};

// What a job need not do with a tile's sums at once, it may do while the next tile's products are summed:
// finish<part>, a part of it after every sixth of the products. Together, what waits for one another would
// fill the scheduler and keep the products out.
constexpr int kParts = 6;
template <int R, int C>
struct Stash {
    alignas(64) float v[R][C * 16];
    alignas(64) float high[R][16];
    alignas(64) float inverse[16];
    alignas(64) int32_t start[R][C * 16];  // of the products under way, where rows differ
};

// Every row from the same numbers.
template <int R, int C>
__attribute__((always_inline)) inline void start_all(const int32_t* from, __m512i (&acc)[R][C]) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
        const __m512i v = _mm512_loadu_si512(from + c * 16);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) acc[r][c] = v;
    }
}

// Rows from what their zeros add up to, or from 0. They mostly agree; where not, `room` tells them apart.
template <int R, int C>
__attribute__((always_inline)) inline void start_at_zero(const int32_t* zero, const int32_t* zero_sum,
                                                         __m512i (&acc)[R][C], int32_t (&room)[R][C * 16]) {
    alignas(64) static constexpr int32_t none[2 * kPanel] = {};
    int32_t any = 0, all = zero[0];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        any |= zero[r];
        all &= zero[r];
    }
    const int32_t* from = any != 0 ? zero_sum : none;
    ptrdiff_t step = 0;
    if (any != all) {
        step = C * 16;
        for (int r = 0; r < R; ++r)
            std::memcpy(room[r], zero[r] != 0 ? zero_sum : none, C * 16 * sizeof(int32_t));
        from = room[0];
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r][c] = _mm512_loadu_si512(from + r * step + c * 16);
}

template <To to, bool keeps_most>
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

    template <int R, int C>
    __attribute__((always_inline)) void start(int row, __m512i (&acc)[R][C], Stash<R, C>& stash) const {
        start_at_zero(zero + row, zero_sum, acc, stash.start);
    }
    static constexpr bool kLater = false;
    template <int R, int C>
    __attribute__((always_inline)) void take(int row, const __m512i (&acc)[R][C], Stash<R, C>&) const {
        const __m512 floor = _mm512_set1_ps(relu ? 0.0f : -__builtin_inff());
        const auto before = static_cast<__mmask16>(first ? 0 : 0xffff);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const __m512 row_scale = _mm512_set1_ps(scale[row + r]);
            __m512 v[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                v[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][c]),
                                       _mm512_mul_ps(row_scale, _mm512_loadu_ps(weight_scale + c * 16)),
                                       _mm512_loadu_ps(bias + c * 16));
            if constexpr (keeps_most) {  // columns that are only padding are 0
                float* const own = most + (row + r) * 16;
                __m512 high = _mm512_maskz_loadu_ps(before, own);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) high = _mm512_max_ps(high, v[c]);
                _mm512_storeu_ps(own, high);
            } else {
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) v[c] = _mm512_max_ps(floor, v[c]);
            }
            store_row<to>(y + (row + r) * ldy, columns, accumulate, v);
        }
    }
};

template <To to>
struct StaticToFloat : Strip {
    const int32_t* from;
    const float* scale;
    float* y;
    ptrdiff_t ldy;
    int columns;
    bool relu, accumulate;

    template <int R, int C>
    __attribute__((always_inline)) void start(int, __m512i (&acc)[R][C], Stash<R, C>&) const {
        start_all(from, acc);
    }
    static constexpr bool kLater = false;
    template <int R, int C>
    __attribute__((always_inline)) void take(int row, const __m512i (&acc)[R][C], Stash<R, C>&) const {
        const __m512 floor = _mm512_set1_ps(relu ? 0.0f : -__builtin_inff());
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            __m512 v[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                v[c] = _mm512_max_ps(
                    floor, _mm512_mul_ps(_mm512_cvtepi32_ps(acc[r][c]), _mm512_loadu_ps(scale + c * 16)));
            store_row<to>(y + (row + r) * ldy, columns, accumulate, v);
        }
    }
};

struct StaticToBytes : Strip {
    const int32_t* from;
    const float* rescale;
    uint8_t* bytes;
    ptrdiff_t ldb;
    float zero;
    uint8_t least;

    template <int R, int C>
    __attribute__((always_inline)) void start(int, __m512i (&acc)[R][C], Stash<R, C>&) const {
        start_all(from, acc);
    }
    static constexpr bool kLater = false;
    template <int R, int C>
    __attribute__((always_inline)) void take(int row, const __m512i (&acc)[R][C], Stash<R, C>&) const {
        const __m512 offset = _mm512_set1_ps(zero);
        const __m512i floor = _mm512_set1_epi8(static_cast<char>(least));
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            __m512i v[C];
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                v[c] = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][c]),
                                                          _mm512_loadu_ps(rescale + c * 16), offset));
            uint8_t* to = bytes + (row + r) * ldb;
            if constexpr (C == 4)
                _mm512_storeu_si512(to, _mm512_max_epu8(pack(v), floor));
            else
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c)
                    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * 16),
                                     _mm_max_epu8(pack_in_order(v[c]), _mm512_castsi512_si128(floor)));
        }
    }
};

// Whole rows, whose scales are found on the way.
struct Rows : Strip {
    const float *bias, *weight_scale;
    const int32_t* zero_sum;
    float* scale;
    int32_t* zero;
    uint8_t* y;
    ptrdiff_t ldy;

    template <int R, int C>
    __attribute__((always_inline)) void start(int row, __m512i (&acc)[R][C], Stash<R, C>& stash) const {
        start_at_zero(zero + row, zero_sum, acc, stash.start);
    }
    static constexpr bool kLater = true;
    template <int R, int C>
    __attribute__((always_inline)) void take(int row, const __m512i (&acc)[R][C], Stash<R, C>& stash) const {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const __m512 row_scale = _mm512_set1_ps(scale[row + r]);
            __m512 high = _mm512_setzero_ps();
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                const __m512 v =
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[r][c]),
                                    _mm512_mul_ps(row_scale, _mm512_loadu_ps(weight_scale + c * 16)),
                                    _mm512_loadu_ps(bias + c * 16));
                _mm512_store_ps(stash.v[r] + c * 16, v);
                high = _mm512_max_ps(high, v);
            }
            _mm512_store_ps(stash.high[r], high);
        }
    }
    template <int part, int R, int C>
    __attribute__((always_inline)) void finish(int row, Stash<R, C>& stash) const {
        if constexpr (part == 0) {
            __m512 high[R];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) high[r] = _mm512_load_ps(stash.high[r]);
            _mm512_store_ps(stash.inverse, relu_scales(high, scale + row));
            _mm512_mask_storeu_epi32(zero + row, mask_of(R), _mm512_setzero_si512());
        } else {
            constexpr int first = (part - 1) * R / (kParts - 1), end = part * R / (kParts - 1);
            if constexpr (first < end)
#pragma GCC unroll 16
                for (int r = first; r < end; ++r) {
                    const __m512 inverse = _mm512_set1_ps(stash.inverse[r]);
                    __m512i q[C];
#pragma GCC unroll 8
                    for (int c = 0; c < C; ++c)
                        q[c] =
                            _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(stash.v[r] + c * 16), inverse));
                    uint8_t* to = y + (row + r) * ldy;
                    if constexpr (C >= 4) _mm512_storeu_si512(to, pack(q));
                    if constexpr (C == 8) _mm512_storeu_si512(to + kPanel, pack(q + 4));
#pragma GCC unroll 8
                    for (int c = C / 4 * 4; c < C; ++c)
                        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * 16), pack_in_order(q[c]));
                }
        }
    }
};

// A register tile: R rows by C vectors of 16 columns. The sums stay in registers only because the
// instruction is written in assembly: gcc 12 spills the accumulators of the intrinsic.
template <int R, int C>
struct Tile {
    static constexpr int kFirst = C < 4 ? C : 4;  // vectors in the first panel

    template <class Job>
    static void run(const Job& job, int first, int end) {
        const Job j = job;  // a copy of our own, which no store can change
        Stash<R, C> stash;
        sums<false>(j, first, stash);
        for (int row = first + R; row < end; row += R) sums<Job::kLater>(j, row, stash);
        if constexpr (Job::kLater) finish<0>(j, end - R, stash);
    }

  private:
    // Keeps gcc from holding in registers what is to be had from memory: it would spill sums instead.
    __attribute__((always_inline)) static void in_memory(Stash<R, C>& stash) {
        asm volatile("" : : "r"(&stash) : "memory");
    }

    // `pending`: there is something left to do with the R rows before.
    template <bool pending, class Job>
    __attribute__((always_inline)) static void sums(const Job& j, int row, Stash<R, C>& stash) {
        __m512i acc[R][C];
        if constexpr (Job::kLater) in_memory(stash);
        j.start(row, acc, stash);
        products<0, pending>(j, row, j.x + row * j.ldx, j.panel, j.second, 0, acc, stash);
        j.take(row, acc, stash);
    }

    template <int part, bool pending, class Job>
    __attribute__((always_inline)) static void products(const Job& j, int row, const uint8_t* x,
                                                        const int8_t* w, const int8_t* w2, int k,
                                                        __m512i (&acc)[R][C], Stash<R, C>& stash) {
        const int end = pending ? j.quads * (part + 1) / kParts : j.quads;
        for (; k < end; ++k, x += 4, w += 4 * j.width, w2 += 4 * j.second_width) {
            if constexpr (R >= C) {
                __m512i b[C];
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) b[c] = _mm512_loadu_si512(w + c * 64);
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) {
                    const __m512i a = broadcast(x + r * j.ldx);
#pragma GCC unroll 8
                    for (int c = 0; c < C; ++c)
                        asm("vpdpbusd %2, %1, %0" : "+v"(acc[r][c]) : "v"(a), "v"(b[c]));
                }
            } else {
                __m512i a[R];
#pragma GCC unroll 16
                for (int r = 0; r < R; ++r) a[r] = broadcast(x + r * j.ldx);
#pragma GCC unroll 8
                for (int c = 0; c < C; ++c) {
                    const __m512i b = _mm512_loadu_si512(c < kFirst ? w + c * 64 : w2 + (c - kFirst) * 64);
#pragma GCC unroll 16
                    for (int r = 0; r < R; ++r)
                        asm("vpdpbusd %2, %1, %0" : "+v"(acc[r][c]) : "v"(a[r]), "v"(b));
                }
            }
        }
        if constexpr (pending) {
            in_memory(stash);
            j.template finish<part>(row - R, stash);
            in_memory(stash);
            if constexpr (part + 1 < kParts) products<part + 1, pending>(j, row, x, w, w2, k, acc, stash);
        }
    }

    template <int part, class Job>
    __attribute__((always_inline)) static void finish(const Job& j, int row, Stash<R, C>& stash) {
        j.template finish<part>(row, stash);
        if constexpr (part + 1 < kParts) finish<part + 1>(j, row, stash);
    }
};

void dense_relu(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, float* scale, int32_t* zero, int rows,
                uint8_t* y, ptrdiff_t ldy) {
    const int quads = byte_quads(w.in), columns = padded(w.out), width = columns < kPanel ? columns : kPanel;
    const Strip strip_of_all{
        w.panels, w.panels + static_cast<ptrdiff_t>(4 * quads) * width, width, columns - width, quads, x,
        ldx};
    const Rows job{strip_of_all, w.bias, w.scale, w.zero_sum, scale, zero, y, ldy};
    switch (columns / 16) {
        case 1:
            return strip<Tile, 12, 1>(job, rows);
        case 2:
            return strip<Tile, 12, 2>(job, rows);
        case 3:
            return strip<Tile, 8, 3>(job, rows);
        case 4:
            return strip<Tile, 6, 4>(job, rows);
        case 5:
            return strip<Tile, 4, 5>(job, rows);
        case 6:
            return strip<Tile, 4, 6>(job, rows);
        case 7:
            return strip<Tile, 3, 7>(job, rows);
        default:
            return strip<Tile, 3, 8>(job, rows);
    }
}

// Calls run(strip, first column) for each panel.
template <class Run>
inline void panels(const int8_t* panel, int in, int out, const uint8_t* x, ptrdiff_t ldx, Run run) {
    const int quads = byte_quads(in);
    for (int c0 = 0; c0 < padded(out); c0 += kPanel) {
        const int width = padded(out) - c0 < kPanel ? padded(out) - c0 : kPanel;
        run(Strip{panel, panel, width, 0, quads, x, ldx}, c0);
        panel += static_cast<ptrdiff_t>(4 * quads) * width;
    }
}

void dense(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, const float* scale, const int32_t* zero,
           int rows, float* y, ptrdiff_t ldy, Act act, bool accumulate, float* most) {
    panels(w.panels, w.in, w.out, x, ldx, [&](const Strip& strip, int c0) {
        const auto run = [&]<To to, bool keeps_most>() {
            strips<Tile>(strip.width / 16, rows,
                         Dynamic<to, keeps_most>{strip, w.bias + c0, w.scale + c0, w.zero_sum + c0, scale,
                                                 zero, y + c0, ldy, w.out - c0, act == Act::relu, accumulate,
                                                 c0 == 0, most});
        };
        switch (where_to(w.out - c0, strip.width, accumulate)) {
            case To::whole:
                return most != nullptr ? run.template operator()<To::whole, true>()
                                       : run.template operator()<To::whole, false>();
            case To::added:
                return run.template operator()<To::added, false>();
            case To::part:
                return most != nullptr ? run.template operator()<To::part, true>()
                                       : run.template operator()<To::part, false>();
        }
    });
}

void dense_static(const DenseInt8Static& w, const uint8_t* x, ptrdiff_t ldx, int rows, float* y,
                  ptrdiff_t ldy, uint8_t* bytes, ptrdiff_t ldb, Act act, bool accumulate) {
    const bool relu = act == Act::relu;
    panels(w.panels, w.in, w.out, x, ldx, [&](const Strip& strip, int c0) {
        if (bytes != nullptr)
            return strips<Tile>(
                strip.width / 16, rows,
                StaticToBytes{strip, w.start + c0, w.rescale + c0, bytes + c0, ldb,
                              static_cast<float>(w.next_zero), relu ? w.next_zero : uint8_t{0}});
        const auto run = [&]<To to>() {
            strips<Tile>(strip.width / 16, rows,
                         StaticToFloat<to>{strip, w.start + c0, w.scale + c0, y + c0, ldy, w.out - c0, relu,
                                           accumulate});
        };
        switch (where_to(w.out - c0, strip.width, accumulate)) {
            case To::whole:
                return run.template operator()<To::whole>();
            case To::added:
                return run.template operator()<To::added>();
            case To::part:
                return run.template operator()<To::part>();
        }
    });
}

}  // namespace

extern const Int8Kernels table;
const Int8Kernels table = {quantise, dense, dense_relu, quantise_relu, quantise_static, dense_static};

}  // namespace pyjepa::simd::avx512_vnni

#endif
