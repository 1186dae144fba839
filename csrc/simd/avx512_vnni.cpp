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

// Rows by fours: what belongs to one is in a quarter of a vector, four lanes; so many vectors for R rows.
// Beside vectors of one row each (48 rows of W0s, cycles a row): the last layer 47 instead of 53, quantise 26
// instead of 28.
constexpr int fours(int rows) {
    return (rows + 3) / 4;
}
constexpr int lane_of(int row) {
    return row * 4;
}

// The largest element of each of R vectors, by fours, and of `more`, which is laid out so: all vectors at
// once, for by itself each takes eight instructions that wait for one another. Magnitudes are compared as
// integers: what is not a number is more than infinity.
template <int R>
__attribute__((always_inline)) inline void largest(const __m512i (&v)[R], __m512i (&more)[fours(R)]) {
    constexpr int groups = fours(R);
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) {
        __m512i pairs[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
            const int r = 4 * g + 2 * i;  // where there are too few rows, one stands for others
            const __m512i a = v[r < R ? r : R - 1], b = v[r + 1 < R ? r + 1 : R - 1];
            pairs[i] = _mm512_max_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xee));
        }
        __m512i& most = more[g];
        most = _mm512_max_epi32(most, _mm512_max_epi32(_mm512_shuffle_i32x4(pairs[0], pairs[1], 0x88),
                                                       _mm512_shuffle_i32x4(pairs[0], pairs[1], 0xdd)));
        most = _mm512_max_epi32(most, _mm512_shuffle_epi32(most, static_cast<_MM_PERM_ENUM>(0x4e)));
        most = _mm512_max_epi32(most, _mm512_shuffle_epi32(most, static_cast<_MM_PERM_ENUM>(0xb1)));
    }
}

// The largest number of a row and its sign: as integers, it is the largest signed one or, but for its sign,
// the largest unsigned one.
struct Reach {
    __m512i positive = _mm512_setzero_si512(), negative = _mm512_setzero_si512();
    __attribute__((always_inline)) void see(__m512i bits) {
        positive = _mm512_max_epi32(positive, bits);
        negative = _mm512_max_epu32(negative, bits);
    }
    __attribute__((always_inline)) bool any_negative() const { return _mm512_movepi32_mask(negative) != 0; }
    __attribute__((always_inline)) __m512i magnitude() const {
        return _mm512_max_epi32(positive, _mm512_and_si512(negative, _mm512_set1_epi32(0x7fffffff)));
    }
};

// What makes bytes of numbers, y = x * inverse + offset, by fours.
template <int R>
struct Steps {
    alignas(64) float inverse[16 * fours(R)], offset[16 * fours(R)];
};

constexpr int in_four(int rows, int g) {
    return rows - 4 * g < 4 ? rows - 4 * g : 4;
}

// A number of each of `count` rows, by fours, one behind the other.
template <int count>
__attribute__((always_inline)) inline void put(__m512 v, float* to) {
    const __m128 row =
        _mm512_castps512_ps128(_mm512_permutexvar_ps(_mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12)), v));
    if constexpr (count == 4) _mm_storeu_ps(to, row);
    if constexpr (count == 2 || count == 3) _mm_storel_pi(reinterpret_cast<__m64*>(to), row);
    if constexpr (count == 1) _mm_store_ss(to, row);
    if constexpr (count == 3) {
        const int last = _mm_extract_ps(row, 2);
        std::memcpy(to + 2, &last, sizeof last);
    }
}

// What the magnitudes of R rows and `more` of them by fours make of their scales; `negative`: lanes of those
// that have negative numbers.
template <int g, int R>
__attribute__((always_inline)) inline void four_scales(const __m512i (&most)[fours(R)], uint64_t negative,
                                                       float* scale, int32_t* zero, Steps<R>& steps) {
    const __m512 reach = _mm512_castsi512_ps(most[g]), one = _mm512_set1_ps(1.0f);
    const auto is_signed = static_cast<__mmask16>(negative >> 16 * g);
    const __m512 levels = _mm512_mask_blend_ps(is_signed, _mm512_set1_ps(255.0f), _mm512_set1_ps(127.0f));
    // Too small to divide by: zeros, with a scale that is as good as any other.
    const __mmask16 flat = _mm512_cmp_ps_mask(reach, _mm512_set1_ps(1e-30f), _CMP_LT_OQ);
    _mm512_store_ps(steps.inverse + 16 * g, _mm512_mask_blend_ps(flat, _mm512_div_ps(levels, reach), one));
    _mm512_store_ps(steps.offset + 16 * g, _mm512_maskz_mov_ps(is_signed, _mm512_set1_ps(128.0f)));
    put<in_four(R, g)>(_mm512_mask_blend_ps(flat, _mm512_div_ps(reach, levels), one), scale + 4 * g);
    put<in_four(R, g)>(_mm512_castsi512_ps(_mm512_maskz_mov_epi32(is_signed, _mm512_set1_epi32(128))),
                       reinterpret_cast<float*>(zero + 4 * g));
    if constexpr (g + 1 < fours(R)) four_scales<g + 1>(most, negative, scale, zero, steps);
}
template <int R>
__attribute__((always_inline)) inline void scales(const __m512i (&magnitudes)[R], __m512i (&more)[fours(R)],
                                                  uint64_t negative, float* scale, int32_t* zero,
                                                  Steps<R>& steps) {
    largest(magnitudes, more);
    four_scales<0>(more, negative, scale, zero, steps);
}

// The lanes of a row, by fours, if it has any negative number.
__attribute__((always_inline)) inline uint64_t lanes_if(bool negative, int row) {
    return static_cast<uint64_t>(negative ? 15 : 0) << lane_of(row);
}

void quantise(const float* x, ptrdiff_t ldx, int rows, int n, uint8_t* y, ptrdiff_t ldy, float* scale,
              int32_t* zero) {
    constexpr int R = 4;  // together, for each has to wait for its largest number
    for (int row = 0; row < rows; row += R, x += R * ldx, y += R * ldy) {
        const int count = rows - row < R ? rows - row : R;
        const float* from[R];
        for (int r = 0; r < R; ++r) from[r] = x + (r < count ? r : count - 1) * ldx;
        Reach reach[R];
        int j = 0;
        for (; j + 16 <= n; j += 16)
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) reach[r].see(_mm512_loadu_si512(from[r] + j));
        if (j < n)
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) reach[r].see(_mm512_maskz_loadu_epi32(mask_of(n - j), from[r] + j));
        __m512i magnitudes[R], no_more[fours(R)] = {};
        uint64_t negative = 0;
        for (int r = 0; r < R; ++r) {
            magnitudes[r] = reach[r].magnitude();
            negative |= lanes_if(reach[r].any_negative(), r);
        }
        Steps<R> steps;
        if (count == R) {
            scales(magnitudes, no_more, negative, scale + row, zero + row, steps);
        } else {
            float some[R];
            int32_t zeros[R];
            scales(magnitudes, no_more, negative, some, zeros, steps);
            std::memcpy(scale + row, some, static_cast<size_t>(count) * sizeof *some);
            std::memcpy(zero + row, zeros, static_cast<size_t>(count) * sizeof *zeros);
        }
        for (int r = 0; r < count; ++r) {
            const __m512 inverse = _mm512_set1_ps(steps.inverse[lane_of(r)]);
            to_bytes<false>(
                from[r], n, [inverse](int) { return inverse; }, _mm512_set1_ps(steps.offset[lane_of(r)]),
                y + r * ldy);
        }
    }
}

// What the largest numbers of R rows, or 0, make of their scales where none is negative. `scale` holds those
// of the layer's inputs before.
template <int R>
__attribute__((always_inline)) inline void relu_scales(const __m512i (&most)[R], int count, float* scale,
                                                       int32_t* zero, Steps<R>& steps) {
    constexpr int groups = fours(R);
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512i reaches[groups] = {};
    largest(most, reaches);
    alignas(64) float made[16 * groups];
#pragma GCC unroll 4
    for (int g = 0; g < groups; ++g) {
        const __m512 reach = _mm512_castsi512_ps(reaches[g]);
        const __mmask16 flat = _mm512_cmp_ps_mask(reach, _mm512_set1_ps(1e-30f), _CMP_LT_OQ);
        _mm512_store_ps(steps.inverse + 16 * g,
                        _mm512_mask_blend_ps(flat, _mm512_div_ps(_mm512_set1_ps(255.0f), reach), one));
        _mm512_store_ps(made + 16 * g,
                        _mm512_mask_blend_ps(flat, _mm512_mul_ps(reach, _mm512_set1_ps(1.0f / 255.0f)), one));
    }
    for (int r = 0; r < count; ++r) {
        scale[r] = (scale[r] - scale[r]) + made[lane_of(r)];  // what was not finite stays so
        zero[r] = 0;
    }
}

void quantise_relu(const float* x, ptrdiff_t ldx, int rows, int n, const float* most, uint8_t* y,
                   ptrdiff_t ldy, float* scale, int32_t* zero) {
    constexpr int R = 8;
    for (int row = 0; row < rows; row += R) {
        const int count = rows - row < R ? rows - row : R;
        __m512i high[R];
        for (int r = 0; r < R; ++r) high[r] = _mm512_loadu_si512(most + (row + (r < count ? r : 0)) * 16);
        Steps<R> steps;
        relu_scales(high, count, scale + row, zero + row, steps);
        for (int r = 0; r < count; ++r, x += ldx, y += ldy) {
            const __m512 inverse = _mm512_set1_ps(steps.inverse[lane_of(r)]);
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

// The end of a tile's sums - to floats, to bytes - is done a part at a time while the products of the next
// are summed, both in registers: by itself it would keep the multipliers waiting for what waits for one
// another. So a tile is half as large as registers allow, 12 sums: enough to hide an instruction's latency.
// What has to wait for all of a row is done a tile later still, from memory.
//
// A job is a strip of columns of one panel: start() says from what a tile's sums begin, end() is one of
// parts() parts of its end, later() what is done with a row later, if anything is.
template <int R>
struct Room {
    alignas(64) float v[R][2 * kPanel];  // rows that are done later
    alignas(64) int32_t high[R][16];
    uint64_t negative;  // lanes, by fours, of rows that have negative numbers
    Steps<R> steps;
    alignas(64) float more[16 * fours(R)];  // of the next input, by fours
    alignas(64) int32_t start[R][kPanel];   // where rows differ
};

struct Nothing {
    static constexpr int parts(int) { return 1; }
    template <int, int R, int C>
    __attribute__((always_inline)) void end(int, __m512i (&)[R][C], Room<R>&) const {}
    static constexpr bool kLater = false;
};

struct Strip {
    static constexpr bool kLater = false;
    const int8_t* panel;
    int width, quads;
    const uint8_t* x;
    ptrdiff_t ldx;
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
                                                         __m512i (&acc)[R][C], Room<R>& room) {
    alignas(64) static constexpr int32_t none[kPanel] = {};
    int32_t any = 0, all = zero[0];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        any |= zero[r];
        all &= zero[r];
    }
    if (any == all) return start_all(any != 0 ? zero_sum : none, acc);
    for (int r = 0; r < R; ++r)
        std::memcpy(room.start[r], zero[r] != 0 ? zero_sum : none, C * 16 * sizeof(int32_t));
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r][c] = _mm512_loadu_si512(room.start[r] + c * 16);
}

// C vectors of integers to bytes: a whole panel in the order of byte_place.
template <int C>
__attribute__((always_inline)) inline void store_bytes(const __m512i (&v)[C], uint8_t* to) {
    if constexpr (C == 4)
        _mm512_storeu_si512(to, pack(v));
    else
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * 16), pack_in_order(v[c]));
}

// A row to y, or added to it; v becomes what is there then.
template <To to, int C>
__attribute__((always_inline)) inline void add_row(float* y, __m512 (&v)[C]) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
        if constexpr (to == To::added) v[c] = _mm512_add_ps(v[c], _mm512_loadu_ps(y + c * 16));
        _mm512_storeu_ps(y + c * 16, v[c]);
    }
}

// What has scales row by row.
struct DynamicStrip : Strip {
    const float *bias, *weight_scale;
    const int32_t* zero_sum;

    template <int R, int C>
    __attribute__((always_inline)) void start(const int32_t* zero, __m512i (&acc)[R][C],
                                              Room<R>& room) const {
        start_at_zero(zero, zero_sum, acc, room);
    }
    // A row of sums as floats.
    template <int C>
    __attribute__((always_inline)) void floats(float scale, const __m512i (&sums)[C], __m512 (&v)[C]) const {
        const __m512 row_scale = _mm512_set1_ps(scale);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            v[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[c]),
                                   _mm512_mul_ps(row_scale, _mm512_loadu_ps(weight_scale + c * 16)),
                                   _mm512_loadu_ps(bias + c * 16));
    }
};

template <To to, bool keeps_most>
struct Dynamic : DynamicStrip {
    const float* scale;
    const int32_t* zero;
    float* y;
    ptrdiff_t ldy;
    int columns;
    float floor;
    bool accumulate, first;
    float* most;

    template <int R, int C>
    __attribute__((always_inline)) void start(int row, __m512i (&acc)[R][C], Room<R>& room) const {
        DynamicStrip::start(zero + row, acc, room);
    }
    static constexpr int parts(int rows) { return rows; }
    template <int r, int R, int C>
    __attribute__((always_inline)) void end(int row, __m512i (&sums)[R][C], Room<R>&) const {
        __m512 v[C];
        floats(scale[row + r], sums[r], v);
        if constexpr (keeps_most) {  // columns that are only padding are 0
            float* const own = most + (row + r) * 16;
            __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(first ? 0 : 0xffff), own);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) high = _mm512_max_ps(high, v[c]);
            _mm512_storeu_ps(own, high);
        } else {
            const __m512 least = _mm512_set1_ps(floor);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) v[c] = _mm512_max_ps(least, v[c]);
        }
        store_row<to>(y + (row + r) * ldy, columns, accumulate, v);
    }
};

template <To to>
struct StaticToFloat : Strip {
    const int32_t* from;
    const float* scale;
    float* y;
    ptrdiff_t ldy;
    int columns;
    float floor;
    bool accumulate;

    template <int R, int C>
    __attribute__((always_inline)) void start(int, __m512i (&acc)[R][C], Room<R>&) const {
        start_all(from, acc);
    }
    static constexpr int parts(int rows) { return rows; }
    template <int r, int R, int C>
    __attribute__((always_inline)) void end(int row, __m512i (&sums)[R][C], Room<R>&) const {
        const __m512 least = _mm512_set1_ps(floor);
        __m512 v[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            v[c] = _mm512_max_ps(
                least, _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][c]), _mm512_loadu_ps(scale + c * 16)));
        store_row<to>(y + (row + r) * ldy, columns, accumulate, v);
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
    __attribute__((always_inline)) void start(int, __m512i (&acc)[R][C], Room<R>&) const {
        start_all(from, acc);
    }
    static constexpr int parts(int rows) { return rows; }
    template <int r, int R, int C>
    __attribute__((always_inline)) void end(int row, __m512i (&sums)[R][C], Room<R>&) const {
        const __m512 offset = _mm512_set1_ps(zero);
        const __m512i floor = _mm512_set1_epi8(static_cast<char>(least));
        __m512i v[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            v[c] = _mm512_cvtps_epi32(
                _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][c]), _mm512_loadu_ps(rescale + c * 16), offset));
        uint8_t* to = bytes + (row + r) * ldb;
        if constexpr (C == 4)
            _mm512_storeu_si512(to, _mm512_max_epu8(pack(v), floor));
        else
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * 16),
                                 _mm_max_epu8(pack_in_order(v[c]), _mm512_castsi512_si128(floor)));
    }
};

// Whole rows of one panel, or of two: their numbers wait in `room` for the scale that is found on the way.
template <int which, bool last>
struct Rows : DynamicStrip {
    static constexpr bool kLater = last && which == 0;
    float* scale;
    int32_t* zero;
    uint8_t* y;
    ptrdiff_t ldy;

    template <int R, int C>
    __attribute__((always_inline)) void start(int row, __m512i (&acc)[R][C], Room<R>& room) const {
        DynamicStrip::start(zero + row, acc, room);
    }
    static constexpr int parts(int rows) { return last ? rows + 1 : rows; }
    template <int part, int R, int C>
    __attribute__((always_inline)) void end(int row, __m512i (&sums)[R][C], Room<R>& room) const {
        if constexpr (part < R) {
            __m512 v[C];
            floats(scale[row + part], sums[part], v);
            __m512i high = which > 0 ? _mm512_load_si512(room.high[part]) : _mm512_setzero_si512();
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) {
                _mm512_store_ps(room.v[part] + which * kPanel + c * 16, v[c]);
                high = _mm512_max_epi32(high, _mm512_castps_si512(v[c]));
            }
            _mm512_store_si512(room.high[part], high);
        } else {
            __m512i high[R];
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) high[r] = _mm512_load_si512(room.high[r]);
            relu_scales(high, R, scale + row, zero + row, room.steps);
        }
    }
    template <int r, int C, int R>
    __attribute__((always_inline)) void later(int row, const Room<R>& room) const {
        bytes<C>(row + r, room.v[r], room.steps.inverse[lane_of(r)]);
    }
    template <int C>
    __attribute__((always_inline)) void bytes(int row, const float* v, float inverse) const {
        const __m512 factor = _mm512_set1_ps(inverse);
        __m512i q[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            q[c] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(v + which * kPanel + c * 16), factor));
        store_bytes(q, y + row * ldy + which * kPanel);
    }
};

// The first of two panels, and what is done with both later: C vectors are in the second.
template <int C>
struct TwoPanels : Rows<0, false> {
    static constexpr bool kLater = true;
    Rows<1, true> second;

    template <int r, int, int R>
    __attribute__((always_inline)) void later(int row, const Room<R>& room) const {
        this->template bytes<4>(row + r, room.v[r], room.steps.inverse[lane_of(r)]);
        second.template bytes<C>(row + r, room.v[r], room.steps.inverse[lane_of(r)]);
    }
};

// The numbers of the next input that are not outputs: up to four of a row, or else up to 16.
template <bool few>
struct More {
    NextInput next;
    __mmask16 lanes;
    __attribute__((always_inline)) __m512 more(int row) const {
        return _mm512_maskz_loadu_ps(lanes, next.more + row * next.ld_more);
    }
    // Of four rows, or as many as there are, by fours.
    template <int count>
    __attribute__((always_inline)) __m512 more_by_fours(int row) const {
        const auto quarter = [&](int r) {
            return _mm_maskz_loadu_ps(static_cast<__mmask8>(lanes), next.more + (row + r) * next.ld_more);
        };
        __m512 v = _mm512_zextps128_ps512(quarter(0));
        if constexpr (count > 1) v = _mm512_insertf32x4(v, quarter(1), 1);
        if constexpr (count > 2) v = _mm512_insertf32x4(v, quarter(2), 2);
        if constexpr (count > 3) v = _mm512_insertf32x4(v, quarter(3), 3);
        return v;
    }
    __attribute__((always_inline)) uint8_t* bytes(int row) const { return next.bytes + row * next.ld; }
    // C vectors and those, in integers.
    template <int C>
    __attribute__((always_inline)) void store(int row, const __m512i (&v)[C], __m512i rest) const {
        store_bytes(v, bytes(row));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes(row) + C * 16), pack_in_order(rest));
    }
    // Those of four rows, by fours, behind C vectors.
    template <int count, int C>
    __attribute__((always_inline)) void store_fours(int row, __m512i v) const {
        const __m128i q = pack_in_order(v);
        const auto put = [&](int r, int32_t four) {
            std::memcpy(bytes(row + r) + C * 16, &four, sizeof four);
        };
        put(0, _mm_cvtsi128_si32(q));
        if constexpr (count > 1) put(1, _mm_extract_epi32(q, 1));
        if constexpr (count > 2) put(2, _mm_extract_epi32(q, 2));
        if constexpr (count > 3) put(3, _mm_extract_epi32(q, 3));
    }
};
template <To to, bool few>
struct DynamicNext : DynamicStrip, More<few> {
    static constexpr bool kLater = true;
    float* scale;
    int32_t* zero;
    float* y;
    ptrdiff_t ldy;

    template <int R, int C>
    __attribute__((always_inline)) void start(int row, __m512i (&acc)[R][C], Room<R>& room) const {
        DynamicStrip::start(zero + row, acc, room);
    }
    static constexpr int parts(int rows) { return rows + 1; }
    template <int part, int R, int C>
    __attribute__((always_inline)) void end(int row, __m512i (&sums)[R][C], Room<R>& room) const {
        if constexpr (part < R) {
            __m512 v[C];
            floats(scale[row + part], sums[part], v);
            add_row<to>(y + (row + part) * ldy, v);
            Reach reach;
            if constexpr (!few) reach.see(_mm512_castps_si512(this->more(row + part)));
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) reach.see(_mm512_castps_si512(v[c]));
            _mm512_store_si512(room.high[part], reach.magnitude());
            room.negative = (part == 0 ? 0 : room.negative) | lanes_if(reach.any_negative(), part);
        } else {
            __m512i magnitudes[R], more[fours(R)] = {};
            uint64_t negative = room.negative;
            if constexpr (few) {
                constexpr int groups = fours(R);
                gather<0>(row, room);
#pragma GCC unroll 4
                for (int g = 0; g < groups; ++g) {
                    const __m512i v = _mm512_load_si512(room.more + 16 * g);
                    more[g] = _mm512_and_si512(v, _mm512_set1_epi32(0x7fffffff));
                    uint64_t signs = _mm512_movepi32_mask(v);
                    signs |= signs >> 1;
                    signs |= signs >> 2;
                    negative |= (signs & 0x1111) * 15 << 16 * g;
                }
            }
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) magnitudes[r] = _mm512_load_si512(room.high[r]);
            scales(magnitudes, more, negative, scale + row, zero + row, room.steps);
        }
    }
    template <int g, int R>
    __attribute__((always_inline)) void gather(int row, Room<R>& room) const {
        _mm512_store_ps(room.more + 16 * g, this->template more_by_fours<in_four(R, g)>(row + 4 * g));
        if constexpr (g + 1 < fours(R)) gather<g + 1>(row, room);
    }
    template <int r, int C, int R>
    __attribute__((always_inline)) void later(int row, const Room<R>& room) const {
        const __m512 inverse = _mm512_set1_ps(room.steps.inverse[lane_of(r)]),
                     offset = _mm512_set1_ps(room.steps.offset[lane_of(r)]);
        const float* const v = y + (row + r) * ldy;
        __m512i q[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            q[c] = _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_loadu_ps(v + c * 16), inverse, offset));
        if constexpr (!few) {
            this->store(row + r, q,
                        _mm512_cvtps_epi32(_mm512_fmadd_ps(this->more(row + r), inverse, offset)));
        } else {
            store_bytes(q, this->bytes(row + r));
            if constexpr (r % 4 == 0) {
                constexpr int at = r * 4;
                this->template store_fours<in_four(R, r / 4), C>(
                    row + r, _mm512_cvtps_epi32(_mm512_fmadd_ps(_mm512_load_ps(room.more + at),
                                                                _mm512_load_ps(room.steps.inverse + at),
                                                                _mm512_load_ps(room.steps.offset + at))));
            }
        }
    }
};

template <To to>
struct StaticNext : Strip, More<false> {
    const int32_t* from;
    const float* scale;
    float* y;
    ptrdiff_t ldy;
    const float* inverse;  // of the next input
    float zero;

    template <int R, int C>
    __attribute__((always_inline)) void start(int, __m512i (&acc)[R][C], Room<R>&) const {
        start_all(from, acc);
    }
    static constexpr int parts(int rows) { return rows; }
    template <int r, int R, int C>
    __attribute__((always_inline)) void end(int row, __m512i (&sums)[R][C], Room<R>&) const {
        __m512 v[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c)
            v[c] = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][c]), _mm512_loadu_ps(scale + c * 16));
        add_row<to>(y + (row + r) * ldy, v);
        const auto rounded = [&](__m512 value, int at) {
            return _mm512_cvtps_epi32(
                _mm512_min_ps(_mm512_set1_ps(255.0f),
                              _mm512_fmadd_ps(value, _mm512_loadu_ps(inverse + at), _mm512_set1_ps(zero))));
        };
        __m512i q[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) q[c] = rounded(v[c], c * 16);
        store(row + r, q, rounded(more(row + r), C * 16));
    }
};

// Keeps gcc from holding vectors in registers that are to be had from memory: it would spill sums instead.
template <class Room>
__attribute__((always_inline)) inline void in_memory(Room& room) {
    asm volatile("" : : "r"(&room) : "memory");
}

// Adds the products of the inputs from x, R rows `ld` apart, up to `end` with those weights; moves both on.
// In assembly: what gcc 12 makes of the intrinsic is spilled, and beside the sums of the tile before there is
// no register to lose.
#define PYJEPA_ROW(from, a, b, c, d)                                         \
    "vpbroadcastd " from ", %%zmm31\n\tvpdpbusd %%zmm27, %%zmm31, %[" a      \
    "]\n\t"                                                                  \
    "vpdpbusd %%zmm28, %%zmm31, %[" b "]\n\tvpdpbusd %%zmm29, %%zmm31, %[" c \
    "]\n\t"                                                                  \
    "vpdpbusd %%zmm30, %%zmm31, %[" d "]\n\t"
#define PYJEPA_PAIR(from, a, b)                                         \
    "vpbroadcastd " from ", %%zmm31\n\tvpdpbusd %%zmm29, %%zmm31, %[" a \
    "]\n\t"                                                             \
    "vpdpbusd %%zmm30, %%zmm31, %[" b "]\n\t"
template <int R, int C>
__attribute__((always_inline)) inline void multiply_quad(__m512i (&s)[R][C], const uint8_t* x,
                                                         const int8_t* w, ptrdiff_t ld) {
    __m512i b[C];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) b[c] = _mm512_loadu_si512(w + c * 64);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
        const __m512i a = broadcast(x + r * ld);
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) asm("vpdpbusd %2, %1, %0" : "+v"(s[r][c]) : "v"(a), "v"(b[c]));
    }
}
template <int R, int C>
__attribute__((always_inline)) inline void multiply(__m512i (&s)[R][C], const uint8_t*& x, const int8_t*& w,
                                                    const uint8_t* end, ptrdiff_t ld) {
    if (x == end) return;
    // clang-format off
    if constexpr (R == 3 && C == 4) {
        asm("1:\n\t"
            "vmovdqu64 (%[w]), %%zmm27\n\tvmovdqu64 64(%[w]), %%zmm28\n\t"
            "vmovdqu64 128(%[w]), %%zmm29\n\tvmovdqu64 192(%[w]), %%zmm30\n\t"
            PYJEPA_ROW("(%[x])", "a", "b", "c", "d")
            PYJEPA_ROW("(%[x],%[ld])", "e", "f", "g", "h")
            PYJEPA_ROW("(%[x],%[ld],2)", "i", "j", "k", "l")
            "add $4, %[x]\n\tadd $256, %[w]\n\tcmp %[end], %[x]\n\tjne 1b"
            : [a] "+v"(s[0][0]), [b] "+v"(s[0][1]), [c] "+v"(s[0][2]), [d] "+v"(s[0][3]),
              [e] "+v"(s[1][0]), [f] "+v"(s[1][1]), [g] "+v"(s[1][2]), [h] "+v"(s[1][3]),
              [i] "+v"(s[2][0]), [j] "+v"(s[2][1]), [k] "+v"(s[2][2]), [l] "+v"(s[2][3]), [x] "+r"(x),
              [w] "+r"(w)
            : [end] "r"(end), [ld] "r"(ld)
            : "xmm27", "xmm28", "xmm29", "xmm30", "xmm31", "cc", "memory");
    } else if constexpr (R == 6 && C == 2) {
        asm("1:\n\t"
            "vmovdqu64 (%[w]), %%zmm29\n\tvmovdqu64 64(%[w]), %%zmm30\n\t"
            "lea (%[x],%[ld],2), %%rax\n\tlea (%%rax,%[ld]), %%rcx\n\t"
            PYJEPA_PAIR("(%[x])", "a", "b")
            PYJEPA_PAIR("(%[x],%[ld])", "c", "d")
            PYJEPA_PAIR("(%%rax)", "e", "f")
            PYJEPA_PAIR("(%%rcx)", "g", "h")
            PYJEPA_PAIR("(%%rax,%[ld],2)", "i", "j")
            PYJEPA_PAIR("(%%rcx,%[ld],2)", "k", "l")
            "add $4, %[x]\n\tadd $128, %[w]\n\tcmp %[end], %[x]\n\tjne 1b"
            : [a] "+v"(s[0][0]), [b] "+v"(s[0][1]), [c] "+v"(s[1][0]), [d] "+v"(s[1][1]),
              [e] "+v"(s[2][0]), [f] "+v"(s[2][1]), [g] "+v"(s[3][0]), [h] "+v"(s[3][1]),
              [i] "+v"(s[4][0]), [j] "+v"(s[4][1]), [k] "+v"(s[5][0]), [l] "+v"(s[5][1]), [x] "+r"(x),
              [w] "+r"(w)
            : [end] "r"(end), [ld] "r"(ld)
            : "xmm29", "xmm30", "xmm31", "rax", "rcx", "cc", "memory");
        // clang-format on
    } else if constexpr (R * C <= 4) {
        // Too few sums to hide what each waits for the one before: twice as many. (W0s plans in 1 % less.)
        __m512i odd[R][C] = {};
        for (; end - x >= 8; x += 8, w += C * 128) {
            multiply_quad(s, x, w, ld);
            multiply_quad(odd, x + 4, w + C * 64, ld);
        }
        if (x != end) {
            multiply_quad(s, x, w, ld);
            x += 4;
            w += C * 64;
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) s[r][c] = _mm512_add_epi32(s[r][c], odd[r][c]);
    } else {
        for (; x != end; x += 4, w += C * 64) multiply_quad(s, x, w, ld);
    }
}
#undef PYJEPA_ROW
#undef PYJEPA_PAIR

// One part of the end of `row`, and what is done later with the rows before, if there are any from `first`.
template <int part, class Job, int R, int C>
__attribute__((always_inline)) inline void end_part(const Job& j, int row, int first, __m512i (&sums)[R][C],
                                                    Room<R>& room) {
    if constexpr (Job::kLater && part < R)
        if (row > first) j.template later<part, C>(row - R, room);
    j.template end<part>(row, sums, room);
}

// Sums the products of a tile, meanwhile ends another.
template <int part, class Job, class Before, int R, int C, int B>
__attribute__((always_inline)) inline void products(const Job& j, const uint8_t* x, const uint8_t* from,
                                                    const int8_t* w, __m512i (&acc)[R][C],
                                                    const Before& before, int row, int first,
                                                    __m512i (&sums)[R][B], Room<R>& room) {
    constexpr int parts = Before::parts(R);
    multiply(acc, x, w, from + 4 * (part + 1 == parts ? j.quads : j.quads * (part + 1) / parts), j.ldx);
    in_memory(room);
    end_part<part>(before, row, first, sums, room);
    in_memory(room);
    if constexpr (part + 1 < parts) products<part + 1>(j, x, from, w, acc, before, row, first, sums, room);
}

// Sums of `row`, then moved to `sums`, whose own, those of `ended`, are ended meanwhile.
template <class Job, class Before, int R, int C, int B>
__attribute__((always_inline)) inline void tile(const Job& j, int row, __m512i (&to)[R][C],
                                                const Before& before, int ended, int first,
                                                __m512i (&sums)[R][B], Room<R>& room) {
    __m512i acc[R][C];
    j.start(row, acc, room);
    const uint8_t* const x = j.x + row * j.ldx;
    products<0>(j, x, x, j.panel, acc, before, ended, first, sums, room);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) to[r][c] = acc[r][c];
}

template <int part, class Job, int R, int C>
__attribute__((always_inline)) inline void end_all(const Job& j, int row, int first, __m512i (&sums)[R][C],
                                                   Room<R>& room) {
    end_part<part>(j, row, first, sums, room);
    if constexpr (part + 1 < Job::parts(R)) end_all<part + 1>(j, row, first, sums, room);
}

template <int r, int C, class Job, int R>
__attribute__((always_inline)) inline void later_all(const Job& j, int row, const Room<R>& room) {
    j.template later<r, C>(row, room);
    if constexpr (r + 1 < R) later_all<r + 1, C>(j, row, room);
}

// Register tiles of R rows by C vectors of 16 columns.
template <int R, int C>
struct Tile {
    template <class Job>
    static void run(const Job& job, int first, int end) {
        // In registers: beside products no more than 1.2 loads a cycle are to be had (Zen 5), of which they
        // take 1.17. Read again at every part, a job's fields cost W0s 5 % of its layers.
        const Job j = job;
        Room<R> room;
        __m512i sums[R][C];
        tile(j, first, sums, Nothing(), 0, 0, sums, room);
        for (int row = first + R; row < end; row += R) tile(j, row, sums, j, row - R, first, sums, room);
        end_all<0>(j, end - R, first, sums, room);
        if constexpr (Job::kLater) later_all<0, C>(j, end - R, room);
    }
};

// The same for two panels, the second of C vectors.
template <int R, int C>
struct TwoTiles {
    static void run(const TwoPanels<C>& job, int first, int end) {
        const TwoPanels<C> j = job;
        Room<R> room;
        __m512i left[R][4], right[R][C];
        tile(static_cast<const Rows<0, false>&>(j), first, left, Nothing(), 0, 0, left, room);
        for (int row = first;; row += R) {
            tile(j.second, row, right, j, row, first, left, room);
            if (row + R >= end) break;
            tile(static_cast<const Rows<0, false>&>(j), row + R, left, j.second, row, row, right, room);
        }
        end_all<0>(j.second, end - R, end - R, right, room);
        later_all<0, C>(j, end - R, room);
    }
};

// Twelve sums at a time.
template <class Job>
inline void strips_of(const Job& job, int rows) {
    switch (job.width / 16) {
        case 1:
            return strip<Tile, 12, 1>(job, rows);
        case 2:
            return strip<Tile, 6, 2>(job, rows);
        case 3:
            return strip<Tile, 4, 3>(job, rows);
        default:
            return strip<Tile, 3, 4>(job, rows);
    }
}

void dense_relu(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, float* scale, int32_t* zero, int rows,
                uint8_t* y, ptrdiff_t ldy) {
    const int quads = byte_quads(w.in), columns = padded(w.out), width = columns < kPanel ? columns : kPanel;
    const DynamicStrip first{{w.panels, width, quads, x, ldx}, w.bias, w.scale, w.zero_sum};
    if (columns <= kPanel) return strips_of(Rows<0, true>{first, scale, zero, y, ldy}, rows);
    const DynamicStrip second{
        {w.panels + static_cast<ptrdiff_t>(4 * quads) * kPanel, columns - kPanel, quads, x, ldx},
        w.bias + kPanel,
        w.scale + kPanel,
        w.zero_sum + kPanel};
    const auto run = [&]<int C>() {
        strip<TwoTiles, 3, C>(
            TwoPanels<C>{{first, scale, zero, y, ldy}, Rows<1, true>{second, scale, zero, y, ldy}}, rows);
    };
    switch (second.width / 16) {
        case 1:
            return run.template operator()<1>();
        case 2:
            return run.template operator()<2>();
        case 3:
            return run.template operator()<3>();
        default:
            return run.template operator()<4>();
    }
}

// Calls run(strip, first column) for each panel.
template <class Run>
inline void panels(const int8_t* panel, int in, int out, const uint8_t* x, ptrdiff_t ldx, Run run) {
    const int quads = byte_quads(in);
    for (int c0 = 0; c0 < padded(out); c0 += kPanel) {
        const int width = padded(out) - c0 < kPanel ? padded(out) - c0 : kPanel;
        run(Strip{panel, width, quads, x, ldx}, c0);
        panel += static_cast<ptrdiff_t>(4 * quads) * width;
    }
}

void dense(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, const float* scale, const int32_t* zero,
           int rows, float* y, ptrdiff_t ldy, Act act, bool accumulate, float* most) {
    const float floor = act == Act::relu ? 0.0f : -__builtin_inff();
    panels(w.panels, w.in, w.out, x, ldx, [&](const Strip& strip, int c0) {
        const auto run = [&]<To to, bool keeps_most>() {
            strips_of(Dynamic<to, keeps_most>{{strip, w.bias + c0, w.scale + c0, w.zero_sum + c0},
                                              scale,
                                              zero,
                                              y + c0,
                                              ldy,
                                              w.out - c0,
                                              floor,
                                              accumulate,
                                              c0 == 0,
                                              most},
                      rows);
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
    const float floor = relu ? 0.0f : -__builtin_inff();
    panels(w.panels, w.in, w.out, x, ldx, [&](const Strip& strip, int c0) {
        if (bytes != nullptr)
            return strips_of(StaticToBytes{strip, w.start + c0, w.rescale + c0, bytes + c0, ldb,
                                           static_cast<float>(w.next_zero), relu ? w.next_zero : uint8_t{0}},
                             rows);
        const auto run = [&]<To to>() {
            strips_of(StaticToFloat<to>{strip, w.start + c0, w.scale + c0, y + c0, ldy, w.out - c0, floor,
                                        accumulate},
                      rows);
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

void dense_next(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, float* scale, int32_t* zero, int rows,
                float* y, ptrdiff_t ldy, bool accumulate, const NextInput& next) {
    const DynamicStrip strip{{w.panels, w.out, byte_quads(w.in), x, ldx}, w.bias, w.scale, w.zero_sum};
    const auto run = [&]<To to, bool few>() {
        strips_of(DynamicNext<to, few>{strip, {next, mask_of(next.count)}, scale, zero, y, ldy}, rows);
    };
    if (next.count <= 4)
        return accumulate ? run.template operator()<To::added, true>()
                          : run.template operator()<To::whole, true>();
    return accumulate ? run.template operator()<To::added, false>()
                      : run.template operator()<To::whole, false>();
}

void dense_static_next(const DenseInt8Static& w, const uint8_t* x, ptrdiff_t ldx, int rows, float* y,
                       ptrdiff_t ldy, bool accumulate, const float* inverse, int zero,
                       const NextInput& next) {
    const Strip strip{w.panels, w.out, byte_quads(w.in), x, ldx};
    const auto offset = static_cast<float>(zero);
    if (accumulate)
        strips_of(
            StaticNext<To::added>{
                strip, {next, mask_of(next.count)}, w.start, w.scale, y, ldy, inverse, offset},
            rows);
    else
        strips_of(
            StaticNext<To::whole>{
                strip, {next, mask_of(next.count)}, w.start, w.scale, y, ldy, inverse, offset},
            rows);
}

}  // namespace

extern const Int8Kernels table;
const Int8Kernels table = {quantise,        dense,        dense_relu, quantise_relu,
                           quantise_static, dense_static, dense_next, dense_static_next};

}  // namespace pyjepa::simd::avx512_vnni

#endif
