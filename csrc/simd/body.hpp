// The one kernel body. Each instruction-set file defines PYJEPA_ISA (its namespace), PYJEPA_VECTOR (floats
// per register) and PYJEPA_TILE_ROWS / PYJEPA_TILE_VECTORS, then includes this. Everything is internal to
// that file but the table, so that the linker can never merge a wider instruction set's copy of a function
// into the baseline.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd/kernels.hpp"

namespace pyjepa::simd::PYJEPA_ISA {

// In noise_body.hpp, compiled with other options.
void gaussian(uint32_t k0, uint32_t k1, uint32_t stream, int n0, int n1, int count, float* out);

namespace {

constexpr int W = PYJEPA_VECTOR;
typedef float V __attribute__((vector_size(W * 4)));
typedef int32_t I __attribute__((vector_size(W * 4)));

inline V load(const float* p) {
    V v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, V v) {
    __builtin_memcpy(p, &v, sizeof v);
}
inline V splat(float x) {
    return x - V{};
}
inline V load_part(const float* p, int count) {
    V v{};
    __builtin_memcpy(&v, p, sizeof(float) * static_cast<size_t>(count));
    return v;
}
inline void store_part(float* p, V v, int count) {
    __builtin_memcpy(p, &v, sizeof(float) * static_cast<size_t>(count));
}
inline I bits(V v) {
    I i;
    __builtin_memcpy(&i, &v, sizeof i);
    return i;
}
inline V from_bits(I i) {
    V v;
    __builtin_memcpy(&v, &i, sizeof v);
    return v;
}
inline V choose(I mask, V yes, V no) {
    return from_bits((bits(yes) & mask) | (bits(no) & ~mask));
}
// Where either is not a number: b.
inline V vmin(V a, V b) {
    return choose(a < b, a, b);
}
inline V vmax(V a, V b) {
    return choose(a > b, a, b);
}
inline V vabs(V a) {
    return from_bits(bits(a) & 0x7fffffff);
}
// Neighbouring quarters first, then within four lanes: a fixed order, so that the result is the same wherever
// the vector came from.
inline float sum(V v) {
    typedef float Q __attribute__((vector_size(16)));
    Q quarters[W / 4];
    __builtin_memcpy(quarters, &v, sizeof v);
    for (int width = W / 8; width > 0; width /= 2)
        for (int i = 0; i < width; ++i) quarters[i] += quarters[i + width];
    const Q q = quarters[0];
    return (q[0] + q[2]) + (q[1] + q[3]);
}

// ---- elementary functions
// -------------------------------------------------------------------------------------------

// Relative error below 2e-7 on [-87, 88], clamped outside: range reduction by ln 2, then a polynomial of
// degree 6.
inline V vexp(V x) {
    x = vmin(splat(88.0f), vmax(splat(-87.0f), x));  // in this order, NaN stays NaN
    const V magic = splat(12582912.0f);              // 1.5 * 2^23: adding it rounds to an integer
    const V shifted = x * 1.44269504f + magic;
    const V n = shifted - magic;
    V r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    V p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * from_bits((bits(shifted) - bits(magic) + 127) << 23);
}

inline V vtanh(V x) {
    const V a = vabs(x), s = x * x;
    V p = splat(-5.70498872745e-3f);  // |x| < 0.625
    p = p * s + 2.06390887954e-2f;
    p = p * s - 5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s - 3.33332819422e-1f;
    const V small = p * s * x + x;
    const V large = 1.0f - 2.0f / (vexp(a + a) + 1.0f);
    const V signed_large = from_bits(bits(large) | (bits(x) & static_cast<int32_t>(0x80000000)));
    return choose(a < 0.625f, small, signed_large);
}

// Abramowitz and Stegun 7.1.26: absolute error below 2e-7.
inline V verf(V x) {
    const V a = vabs(x), t = 1.0f / (0.3275911f * a + 1.0f);
    V p = splat(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const V y = 1.0f - p * t * vexp(-a * a);
    return from_bits(bits(y) | (bits(x) & static_cast<int32_t>(0x80000000)));
}

inline V apply(V x, Act act) {
    switch (act) {
        case Act::none:
            return x;
        case Act::relu:
            return choose(x < 0.0f, V{}, x);  // keeps NaN, as torch does
        case Act::gelu:
            return 0.5f * x * (1.0f + verf(x * 0.70710678f));
        case Act::silu:
            return x / (1.0f + vexp(-x));
        case Act::mish: {  // x tanh(log(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2)
            const V e = vexp(vmin(x, splat(20.0f))), n = e * (e + 2.0f);
            return choose(x > 20.0f, x, x * n / (n + 2.0f));
        }
        case Act::tanh:
            return vtanh(x);
    }
    return x;
}

// ---- dense
// ----------------------------------------------------------------------------------------------------------

// The end of a tile whose activation needs more than a comparison: from a buffer (rows, width) to y. Not
// inlined: the elementary functions are long, and there are dozens of tiles.
__attribute__((noinline)) void finish(const float* buffer, int rows, int width, float* y, ptrdiff_t ldy,
                                      int columns, Act act, bool accumulate) {
    for (int r = 0; r < rows; ++r, buffer += width, y += ldy)
        for (int c = 0; c < columns; c += W) {
            const V v = apply(load(buffer + c), act);
            const int left = columns - c < W ? columns - c : W;
            store_part(y + c, accumulate ? load_part(y + c, left) + v : v, left);
        }
}

// One register tile: R rows by C vectors of columns, over all of k.
template <int R, int C>
inline void tile(const float* panel, int width, const float* bias, int in, const float* x, ptrdiff_t ldx,
                 float* y, ptrdiff_t ldy, int columns, Act act, bool accumulate) {
    V acc[R][C];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) acc[r][c] = load(bias + c * W);
    for (int k = 0; k < in; ++k) {
        V w[C];
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) w[c] = load(panel + static_cast<ptrdiff_t>(k) * width + c * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const V a = splat(x[r * ldx + k]);
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) acc[r][c] += a * w[c];
        }
    }
    if (columns > C * W) columns = C * W;
    if (act > Act::relu || columns < C * W) {
        float buffer[R * C * W];
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
            for (int c = 0; c < C; ++c) store(buffer + (r * C + c) * W, acc[r][c]);
        finish(buffer, R, C * W, y, ldy, columns, act, accumulate);
        return;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < C; ++c) {
            float* to = y + r * ldy + c * W;
            const V v = act == Act::relu ? apply(acc[r][c], Act::relu) : acc[r][c];
            store(to, accumulate ? load(to) + v : v);
        }
}

template <int R, int C>
void rest(const float* panel, int width, const float* bias, int in, const float* x, ptrdiff_t ldx, int rows,
          float* y, ptrdiff_t ldy, int columns, Act act, bool accumulate) {
    if (rows == R)
        tile<R, C>(panel, width, bias, in, x, ldx, y, ldy, columns, act, accumulate);
    else if constexpr (R > 1)
        rest<R - 1, C>(panel, width, bias, in, x, ldx, rows, y, ldy, columns, act, accumulate);
}

// All rows of one strip of C vectors: R at a time, and the rest in one tile of its own height.
template <int R, int C>
inline void strip(const float* panel, int width, const float* bias, int in, const float* x, ptrdiff_t ldx,
                  int rows, float* y, ptrdiff_t ldy, int columns, Act act, bool accumulate) {
    for (; rows >= R; rows -= R, x += R * ldx, y += R * ldy)
        tile<R, C>(panel, width, bias, in, x, ldx, y, ldy, columns, act, accumulate);
    if constexpr (R > 1)
        if (rows > 0) rest<R - 1, C>(panel, width, bias, in, x, ldx, rows, y, ldy, columns, act, accumulate);
}

void dense(const Dense& w, const float* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy, Act act,
           bool accumulate) {
    constexpr int strip_columns = PYJEPA_TILE_VECTORS * W;
    const int total = padded(w.out);
    const float* panel = w.panels;
    for (int c0 = 0; c0 < total; c0 += kPanel) {
        const int width = total - c0 < kPanel ? total - c0 : kPanel;
        for (int c = 0; c < width; c += strip_columns) {
            const int left = w.out - c0 - c;
            const float* from = panel + c;
            const float* bias = w.bias + c0 + c;
            float* to = y + c0 + c;
#define PYJEPA_STRIP(R, C) strip<R, C>(from, width, bias, w.in, x, ldx, rows, to, ldy, left, act, accumulate)
            const int vectors = (width - c < strip_columns ? width - c : strip_columns) / W;
            if constexpr (PYJEPA_TILE_VECTORS ==
                          4) {  // 32 registers: keep 24 accumulators whatever the width
                if (vectors == 4)
                    PYJEPA_STRIP(6, 4);
                else if (vectors == 3)
                    PYJEPA_STRIP(8, 3);
                else if (vectors == 2)
                    PYJEPA_STRIP(12, 2);
                else
                    PYJEPA_STRIP(12, 1);
            } else {  // 16 registers; widths are multiples of 16, so of the strip
                PYJEPA_STRIP(PYJEPA_TILE_ROWS, PYJEPA_TILE_VECTORS);
            }
#undef PYJEPA_STRIP
        }
        panel += static_cast<ptrdiff_t>(w.in) * width;
    }
}

// ---- rows
// -----------------------------------------------------------------------------------------------------------

template <class F>
inline void for_row(float* y, int n, F f) {
    int j = 0;
    for (; j + W <= n; j += W) store(y + j, f(load(y + j), j, W));
    if (j < n) store_part(y + j, f(load_part(y + j, n - j), j, n - j), n - j);
}

void layer_norm(float* y, ptrdiff_t ld, int rows, int n, const float* gamma, const float* beta) {
    const float inverse = 1.0f / static_cast<float>(n);
    for (int r = 0; r < rows; ++r, y += ld) {
        V total{};
        int j = 0;
        for (; j + W <= n; j += W) total += load(y + j);
        if (j < n) total += load_part(y + j, n - j);
        const float mean = sum(total) * inverse;
        V squares{};
        for (j = 0; j + W <= n; j += W) {
            const V d = load(y + j) - mean;
            squares += d * d;
        }
        if (j < n) {
            V d = load_part(y + j, n - j) - mean;
            for (int i = n - j; i < W; ++i) d[i] = 0.0f;
            squares += d * d;
        }
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) * inverse + 1e-5f);
        for_row(y, n, [&](V v, int at, int count) {
            return (v - mean) * scale * load_part(gamma + at, count) + load_part(beta + at, count);
        });
    }
}

void simnorm(float* y, ptrdiff_t ld, int rows, int n, int group) {
    for (int r = 0; r < rows; ++r, y += ld) {
        for (int g = 0; g < n; g += group) {
            float top = y[g];
            for (int i = 1; i < group; ++i) top = y[g + i] > top ? y[g + i] : top;
            for (int i = 0; i < group; ++i) y[g + i] -= top;
        }
        for_row(y, n, [](V v, int, int) { return vexp(v); });
        for (int g = 0; g < n; g += group) {
            float total = 0.0f;
            for (int i = 0; i < group; ++i) total += y[g + i];
            const float scale = 1.0f / total;
            for (int i = 0; i < group; ++i) y[g + i] *= scale;
        }
    }
}

void activate(float* y, ptrdiff_t ld, int rows, int n, Act act) {
    for (int r = 0; r < rows; ++r, y += ld) for_row(y, n, [act](V v, int, int) { return apply(v, act); });
}

void add(const float* x, ptrdiff_t ldx, int rows, int n, float* y, ptrdiff_t ldy) {
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy)
        for_row(y, n, [x](V v, int at, int count) { return v + load_part(x + at, count); });
}

void squared_distance(const float* z, ptrdiff_t ld, int rows, int n, const float* goal, float* out) {
    for (int r = 0; r < rows; ++r, z += ld) {
        V total{};
        int j = 0;
        for (; j + W <= n; j += W) {
            const V d = load(z + j) - load(goal + j);
            total += d * d;
        }
        if (j < n) {
            const V d = load_part(z + j, n - j) - load_part(goal + j, n - j);
            total += d * d;
        }
        out[r] = sum(total);
    }
}

#include "simd/backward_body.hpp"

}  // namespace

#define PYJEPA_STRINGIFY2(x) #x
#define PYJEPA_STRINGIFY(x) PYJEPA_STRINGIFY2(x)
extern const Kernels table;
const Kernels table = {
    PYJEPA_STRINGIFY(PYJEPA_ISA),
    dense,
    layer_norm,
    simnorm,
    activate,
    add,
    squared_distance,
    gaussian,
    activate_backward,
    layer_norm_backward,
    simnorm_backward,
};
#undef PYJEPA_STRINGIFY
#undef PYJEPA_STRINGIFY2

}  // namespace pyjepa::simd::PYJEPA_ISA
