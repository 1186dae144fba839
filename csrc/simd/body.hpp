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
void gaussian(uint32_t k0, uint32_t k1, uint32_t stream, const int32_t* which, int first, int rows, int count,
              float* out);
void perturb(const float* mean, const float* std, const float* low, const float* high, const float* noise,
             ptrdiff_t ld, int rows, int count, float* out);
void clamp(const float* low, const float* high, int rows, int count, float* x);
void normalise(const float* center, const float* scale, int rows, int count, float* x);

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
    return mask ? yes : no;
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

// sum() of four vectors, to the same bits: out (4,).
inline void sums(const V (&v)[4], float* out) {
#if PYJEPA_VECTOR == 16  // the same additions, four vectors in one: 13 shuffles and additions, not 32
    const auto halves = [](V a, V b) {  // a's quarters 0 + 2, 1 + 3, then b's
        const I low{0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
            high{8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31};
        return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
    };
    const V ab = halves(v[0], v[1]), cd = halves(v[2], v[3]);
    const I even{0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27},
        odd{4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31};
    V q = __builtin_shuffle(ab, cd, even) + __builtin_shuffle(ab, cd, odd);  // a quarter for each
    q += __builtin_shuffle(q, I{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
    q += __builtin_shuffle(q, I{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14});
    q = __builtin_shuffle(q, I{0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12});
    __builtin_memcpy(out, &q, 4 * sizeof(float));
#else
    for (int i = 0; i < 4; ++i) out[i] = sum(v[i]);
#endif
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

// tanh(x) as the fraction over / under: the minimax rational function that Eigen uses, of degrees 13 and 6.
// No division yet, so that several functions can share one. Relative error below 4e-7.
struct Fraction {
    V over, under;
};
inline Fraction tanh_fraction(V x) {
    x = vmin(splat(7.90531110763549805f),
             vmax(splat(-7.90531110763549805f), x));  // in this order, NaN stays NaN
    const V s = x * x;
    V p = splat(-2.76076847742355e-16f);
    p = p * s + 2.00018790482477e-13f;
    p = p * s - 8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    V q = splat(1.19825839466702e-06f);
    q = q * s + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return {p * x, q};
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

// The sum of f over a row. Four sums at once, for an addition takes longer than the next one waits.
template <class F>
inline float sum_row(const float* y, int n, F f) {
    V total[4] = {};
    int j = 0;
    for (; j + 4 * W <= n; j += 4 * W)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) total[i] += f(load(y + j + i * W));
    for (; j + W <= n; j += W) total[0] += f(load(y + j));
    if (j < n) {
        V last = f(load_part(y + j, n - j));
        for (int i = n - j; i < W; ++i) last[i] = 0.0f;
        total[1] += last;
    }
    return sum((total[0] + total[1]) + (total[2] + total[3]));
}

template <Act act>
void layer_norm_as(float* y, ptrdiff_t ld, int rows, int n, const float* gamma, const float* beta) {
    const float inverse = 1.0f / static_cast<float>(n);
    for (int r = 0; r < rows; ++r, y += ld) {
        const float mean = sum_row(y, n, [](V v) { return v; }) * inverse;
        const float squares = sum_row(y, n, [mean](V v) { return (v - mean) * (v - mean); });
        const float scale = 1.0f / __builtin_sqrtf(squares * inverse + 1e-5f);
        int j = 0;
        for (; j + W <= n; j += W)
            store(y + j, apply((load(y + j) - mean) * (scale * load(gamma + j)) + load(beta + j), act));
        if (j < n) {
            const int left = n - j;
            const V v = (load_part(y + j, left) - mean) * (scale * load_part(gamma + j, left)) +
                        load_part(beta + j, left);
            store_part(y + j, apply(v, act), left);
        }
    }
}

void layer_norm(float* y, ptrdiff_t ld, int rows, int n, const float* gamma, const float* beta, Act act) {
    switch (act) {
        case Act::mish:  // the usual companions
            return layer_norm_as<Act::mish>(y, ld, rows, n, gamma, beta);
        case Act::none:
            return layer_norm_as<Act::none>(y, ld, rows, n, gamma, beta);
        default:
            layer_norm_as<Act::none>(y, ld, rows, n, gamma, beta);
            for (int r = 0; r < rows; ++r, y += ld)
                for_row(y, n, [act](V v, int, int) { return apply(v, act); });
    }
}

// Every lane with its partner `distance` lanes away, within groups of a power of two.
template <int distance>
inline V partner(V v) {
    I from;
    for (int i = 0; i < W; ++i) from[i] = i ^ distance;
    return __builtin_shuffle(v, from);
}

// Softmax within groups of G lanes, in registers.
template <int G>
inline V softmax_groups(V v) {
    V top = vmax(v, partner<1>(v));
    if constexpr (G >= 4) top = vmax(top, partner<2>(top));
    if constexpr (G >= 8) top = vmax(top, partner<4>(top));
    v = vexp(v - top);
    V total = v + partner<1>(v);
    if constexpr (G >= 4) total += partner<2>(total);
    if constexpr (G >= 8) total += partner<4>(total);
    return v / total;
}

template <int G>
void simnorm_as(float* y, ptrdiff_t ld, int rows, int n) {
    for (int r = 0; r < rows; ++r, y += ld)
        for_row(y, n,
                [](V v, int, int) { return softmax_groups<G>(v); });  // what is left is whole groups, too
}

// Softmax of n numbers, W or more.
inline void softmax(float* y, int n) {
    V tops = load(y + n - W);
    for (int j = 0; j + W <= n; j += W) tops = vmax(tops, load(y + j));
    float top = tops[0];
    for (int i = 1; i < W; ++i) top = tops[i] > top ? tops[i] : top;
    for_row(y, n, [top](V v, int, int) { return vexp(v - top); });
    const float scale = 1.0f / sum_row(y, n, [](V v) { return v; });
    for_row(y, n, [scale](V v, int, int) { return v * scale; });
}

void simnorm(float* y, ptrdiff_t ld, int rows, int n, int group) {
    if (group == 8 && W >= 8) return simnorm_as<8>(y, ld, rows, n);
    if (group == 4) return simnorm_as<4>(y, ld, rows, n);
    for (int r = 0; r < rows; ++r, y += ld) {
        if (group >= W) {
            for (int g = 0; g < n; g += group) softmax(y + g, group);
            continue;
        }
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

// Of R rows, in lanes.
template <int R>
inline void squared_distances(const float* z, ptrdiff_t ld, int n, const float* goal, V (&total)[R]) {
    const auto add = [&](int r, V a, V b) { total[r] += (a - b) * (a - b); };
    for (int r = 0; r < R; ++r) total[r] = V{};
    int j = 0;
    for (; j + W <= n; j += W) {
        const V g = load(goal + j);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) add(r, load(z + r * ld + j), g);
    }
    if (j < n)
        for (int r = 0; r < R; ++r) add(r, load_part(z + r * ld + j, n - j), load_part(goal + j, n - j));
}

void squared_distance(const float* z, ptrdiff_t ld, int rows, int n, const float* goal, float* out) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
        V total[4];
        squared_distances(z + r * ld, ld, n, goal, total);
        sums(total, out + r);
    }
    for (; r < rows; ++r) {
        V total[1];
        squared_distances(z + r * ld, ld, n, goal, total);
        out[r] = sum(total[0]);
    }
}

void absolute_distance(const float* z, ptrdiff_t ld, int rows, int n, const float* goal, float* out) {
    for (int r = 0; r < rows; ++r, z += ld) {
        V total{};
        for (int j = 0; j < n; j += W) {
            const int left = n - j < W ? n - j : W;
            total += vabs(load_part(z + j, left) - load_part(goal + j, left));
        }
        out[r] = sum(total);
    }
}

void cosine_distance(const float* z, ptrdiff_t ld, int rows, int n, const float* goal, float* out) {
    for (int r = 0; r < rows; ++r, z += ld) {
        V both{}, own{}, other{};
        for (int j = 0; j < n; j += W) {
            const int left = n - j < W ? n - j : W;
            const V a = load_part(z + j, left), b = load_part(goal + j, left);
            both += a * b;
            own += a * a;
            other += b * b;
        }
        const float norms = __builtin_sqrtf(sum(own)) * __builtin_sqrtf(sum(other));
        out[r] = 1.0f - sum(both) / (norms < 1e-8f ? 1e-8f : norms);
    }
}

void two_hot(const float* x, ptrdiff_t ldx, int rows, int n, float low, float step, float* y, ptrdiff_t ldy,
             bool accumulate) {
    V lane;
    for (int i = 0; i < W; ++i) lane[i] = static_cast<float>(i);
    const int whole = n / W * W;
    for (int r = 0; r < rows; ++r, x += ldx, y += ldy) {
        V tops = splat(x[0]);
        for (int j = 0; j < whole; j += W) tops = vmax(tops, load(x + j));
        float top = x[0];
        for (int i = 0; i < W; ++i) top = tops[i] > top ? tops[i] : top;
        for (int j = whole; j < n; ++j) top = x[j] > top ? x[j] : top;
        V weights{}, places{};
        for (int j = 0; j < whole; j += W) {
            const V w = vexp(load(x + j) - top);
            weights += w;
            places += w * (lane + static_cast<float>(j));
        }
        if (whole < n) {
            const V place = lane + static_cast<float>(whole);
            const V w =
                choose(place < static_cast<float>(n), vexp(load_part(x + whole, n - whole) - top), V{});
            weights += w;
            places += w * place;
        }
        // symexp; expm1 keeps the digits of small values.
        const float mean = low + step * (sum(places) / sum(weights));
        const float value = std::copysign(std::expm1(std::fabs(mean)), mean);
        y[0] = accumulate ? y[0] + value : value;
    }
}

// With sigmoid(x) = (1 + tanh(x / 2)) / 2 all three gates are fractions, and two divisions do. Absolute error
// below 8e-7 for states within [-1, 1].
inline V gru_units(const float* at, int stride, V h) {
    const Fraction r = tanh_fraction(0.5f * load(at + stride));
    const Fraction z = tanh_fraction(0.5f * load(at + 2 * stride));
    const V through = (r.under + r.over) / (r.under + r.under) * load(at + 3 * stride);
    const Fraction fresh = tanh_fraction(load(at) + through);
    return ((z.under - z.over) * fresh.over + (z.under + z.over) * (h * fresh.under)) /
           ((z.under + z.under) * fresh.under);
}

void gru(const float* gates, ptrdiff_t ldg, int stride, const float* h, ptrdiff_t ldh, int rows, int n,
         float* y, ptrdiff_t ldy) {
    for (int row = 0; row < rows; ++row, gates += ldg, h += ldh, y += ldy) {
        int j = 0;
        for (; j + W <= n; j += W) store(y + j, gru_units(gates + j, stride, load(h + j)));
        if (j < n)  // the gates are padded
            store_part(y + j, gru_units(gates + j, stride, load_part(h + j, n - j)), n - j);
    }
}

#include "simd/backward_body.hpp"
#include "simd/transformer_body.hpp"
#include "simd/transformer_body_backward.hpp"

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
    absolute_distance,
    cosine_distance,
    two_hot,
    gaussian,
    perturb,
    clamp,
    normalise,
    activate_backward,
    layer_norm_backward,
    simnorm_backward,
    gru,
    gru_backward,
    modulated_norm,
    add_gated,
    attend,
    modulated_norm_backward,
    gate_backward,
    attend_backward,
};
#undef PYJEPA_STRINGIFY
#undef PYJEPA_STRINGIFY2

}  // namespace pyjepa::simd::PYJEPA_ISA
