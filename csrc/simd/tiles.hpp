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

// One row of a tile to memory, as far as there are columns. (No lambdas here: gcc 12 keeps what they capture
// in memory, accumulators included.)
template <int C>
__attribute__((always_inline)) inline void store_row(float* y, int columns, bool accumulate,
                                                     const __m512 (&v)[C]) {
    if (columns >= C * 16) {  // masked stores are slow
        if (accumulate)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c)
                _mm512_storeu_ps(y + c * 16, _mm512_add_ps(v[c], _mm512_loadu_ps(y + c * 16)));
        else
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) _mm512_storeu_ps(y + c * 16, v[c]);
        return;
    }
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
        const __mmask16 m = mask_of(columns - c * 16);
        const __m512 old = accumulate ? _mm512_maskz_loadu_ps(m, y + c * 16) : _mm512_setzero_ps();
        _mm512_mask_storeu_ps(y + c * 16, m, _mm512_add_ps(v[c], old));
    }
}

template <template <int, int> class Tile, int R, int C, class Job>
inline void rest(const Job& job, int row, int rows) {
    if (rows == R)
        Tile<R, C>::run(job, row);
    else if constexpr (R > 1)
        rest<Tile, R - 1, C>(job, row, rows);
}

// All rows of a strip of C vectors, R at a time, and the rest in one tile of its own height.
template <template <int, int> class Tile, int R, int C, class Job>
inline void strip(const Job& job, int rows) {
    int row = 0;
    for (; row + R <= rows; row += R) Tile<R, C>::run(job, row);
    if (row < rows) rest<Tile, R - 1, C>(job, row, rows - row);
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
