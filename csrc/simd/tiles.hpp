// What the AVX-512 kernels of lower precision share: which register tiles cover a strip of outputs. Internal
// to each file that includes it.
#pragma once

#include <immintrin.h>

#include <cstring>

namespace pyjepa::simd {
namespace {

// The first `count` of 16 lanes; none if it is not positive, all from 16.
inline __mmask16 mask_of(int count) {
    return count >= 16 ? static_cast<__mmask16>(0xffff)
                       : static_cast<__mmask16>(count <= 0 ? 0u : (1u << count) - 1u);
}

// Four bytes in every lane.
inline __m512i broadcast(const void* from) {
    int32_t word;
    std::memcpy(&word, from, sizeof word);
    return _mm512_set1_epi32(word);
}

// Where a row of a tile goes, decided before the tile: whatever is decided between its sums and their end
// costs gcc 12 the registers they are in. (No lambdas there, either: it keeps what they capture in memory.)
enum class To {
    whole,  // all columns of the tile to memory
    added,  // all added to what is there
    part    // as many as there are, added or not: over a buffer
};
constexpr To where_to(int columns, int width, bool accumulate) {
    return columns < width ? To::part : accumulate ? To::added : To::whole;
}

__attribute__((noinline)) void store_part(float* y, int columns, bool accumulate, const float* v) {
    for (; columns > 0; columns -= 16, y += 16, v += 16) {
        const __mmask16 m = mask_of(columns);
        const __m512 old = accumulate ? _mm512_maskz_loadu_ps(m, y) : _mm512_setzero_ps();
        _mm512_mask_storeu_ps(y, m, _mm512_add_ps(_mm512_loadu_ps(v), old));
    }
}

template <To to, int C>
__attribute__((always_inline)) inline void store_row(float* y, int columns, bool accumulate,
                                                     const __m512 (&v)[C]) {
    alignas(64) float buffer[to == To::part ? C * 16 : 16];
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
        if constexpr (to == To::part)
            _mm512_store_ps(buffer + c * 16, v[c]);
        else if constexpr (to == To::added)
            _mm512_storeu_ps(y + c * 16, _mm512_add_ps(v[c], _mm512_loadu_ps(y + c * 16)));
        else
            _mm512_storeu_ps(y + c * 16, v[c]);
    if constexpr (to == To::part) store_part(y, columns, accumulate, buffer);
}

// The height of the tiles for rows that are too few for tiles of R: a power of two, so that few kinds of
// tiles do for any number of rows (each kind costs the compiler half a second, sanitized several).
constexpr int lower(int R) {
    return R > 8 ? 8 : R > 4 ? 4 : R > 2 ? 2 : 1;
}

// All rows of a strip of C vectors from `first` on, R at a time, and the rest by lower tiles. A tile runs as
// often as its height goes into the rows it is given.
template <template <int, int> class Tile, int R, int C, class Job>
inline void strip(const Job& job, int rows, int first = 0) {
    const int end = first + (rows - first) / R * R;
    if (first < end) Tile<R, C>::run(job, first, end);
    if constexpr (R > 1)
        if (end < rows) strip<Tile, lower(R), C>(job, rows, end);
}

// 24 accumulators, or 12 for a strip of one vector.
template <template <int, int> class Tile, class Job>
inline void strips(int vectors, int rows, const Job& job) {
    if (vectors == 4)
        strip<Tile, 6, 4>(job, rows);
    else if (vectors == 3)
        strip<Tile, 8, 3>(job, rows);
    else if (vectors == 2)
        strip<Tile, 12, 2>(job, rows);
    else
        strip<Tile, 12, 1>(job, rows);
}

}  // namespace
}  // namespace pyjepa::simd
