// The arithmetic of the engine: one body (body.hpp), compiled once per instruction set, chosen at run time.
//
// A row's result never depends on how many rows are computed with it: every output is accumulated over k in
// order, starting from the bias, whatever the tile. Matrices are row-major; `ld` is the distance between rows
// in floats.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyjepa::simd {

// Outputs are packed in panels of 64 columns; the last panel is as wide as it needs to be, in steps of 16.
constexpr int kPanel = 64;
constexpr int kUnit = 16;
constexpr int padded(int n) {
    return (n + kUnit - 1) / kUnit * kUnit;
}

enum class Act : int { none, relu, gelu, silu, mish, tanh };

struct Dense {            // y = x W^T + b, packed by pack_dense (model/dense.hpp)
    const float* panels;  // per panel: [in][width]
    const float* bias;    // [padded(out)]
    int in;
    int out;
};

// A token's keys, `ld` floats from row to row, its values right behind them.
struct Token {
    const float* keys;
    ptrdiff_t ld;
};
constexpr int kMaxWindow = 256;  // tokens

struct Kernels {
    const char* name;
    // y[r, :out] = act(x[r, :in] W^T + b), added to y if `accumulate`. x and y must not overlap.
    void (*dense)(const Dense& w, const float* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy, Act act,
                  bool accumulate);
    // y[r] = act(LayerNorm(y[r]) * gamma + beta), in place, eps 1e-5.
    void (*layer_norm)(float* y, ptrdiff_t ld, int rows, int n, const float* gamma, const float* beta,
                       Act act);
    // Softmax within groups of `group`, in place; n is a multiple of group.
    void (*simnorm)(float* y, ptrdiff_t ld, int rows, int n, int group);
    void (*activate)(float* y, ptrdiff_t ld, int rows, int n, Act act);
    // y[r, :n] += x[r, :n]
    void (*add)(const float* x, ptrdiff_t ldx, int rows, int n, float* y, ptrdiff_t ldy);
    // out[r] = sum_j (z[r, j] - goal[j])^2
    void (*squared_distance)(const float* z, ptrdiff_t ld, int rows, int n, const float* goal, float* out);
    // out[r] = sum_j |z[r, j] - goal[j]|
    void (*absolute_distance)(const float* z, ptrdiff_t ld, int rows, int n, const float* goal, float* out);
    // out[r] = 1 - cos(z[r], goal), with a product of norms of at least 1e-8.
    void (*cosine_distance)(const float* z, ptrdiff_t ld, int rows, int n, const float* goal, float* out);
    // y[r, 0] = symexp(sum_j softmax(x[r])_j (low + j step)), added to y if `accumulate`. y may be x.
    void (*two_hot)(const float* x, ptrdiff_t ldx, int rows, int n, float low, float step, float* y,
                    ptrdiff_t ldy, bool accumulate);

    // ---- the same bits on every instruction set
    // Normals for so many candidates, first, first + 1, ... or, if it is given, which[0], which[1], ...:
    // `count` each, rounded up to groups of four: out (rows, 4 ceil(count / 4)).
    void (*gaussian)(uint32_t k0, uint32_t k1, uint32_t stream, const int32_t* which, int first, int rows,
                     int count, float* out);
    // out[r] = mean + std * noise[r] between low and high; out (rows, count), all others but noise (count,).
    void (*perturb)(const float* mean, const float* std, const float* low, const float* high,
                    const float* noise, ptrdiff_t ld, int rows, int count, float* out);
    // x (rows, count), in place, between low and high (count,).
    void (*clamp)(const float* low, const float* high, int rows, int count, float* x);
    // x[r] = (x[r] - center) / scale; x (rows, count), in place.
    void (*normalise)(const float* center, const float* scale, int rows, int count, float* x);

    // ---- derivatives: g, dL/d output, becomes dL/d input, in place
    // x: what activate() was given; for ReLU its output will do.
    void (*activate_backward)(const float* x, ptrdiff_t ldx, int rows, int n, Act act, float* g,
                              ptrdiff_t ldg);
    // x: what layer_norm() was given.
    void (*layer_norm_backward)(const float* x, ptrdiff_t ldx, int rows, int n, const float* gamma, float* g,
                                ptrdiff_t ldg);
    // y: what simnorm() made of its input.
    void (*simnorm_backward)(const float* y, ptrdiff_t ldy, int rows, int n, int group, float* g,
                             ptrdiff_t ldg);

    // ---- a GRU cell, from what its dense layers give: y = (1 - z) tanh(a + r b) + z h with r = sigmoid(R)
    // and z = sigmoid(Z). A row of `gates` holds a, R, Z, b, `stride` floats each. y may be h.
    void (*gru)(const float* gates, ptrdiff_t ldg, int stride, const float* h, ptrdiff_t ldh, int rows, int n,
                float* y, ptrdiff_t ldy);
    // g, dL/dy, becomes the part of dL/dh that passes by the gates; d receives dL/d gates, likewise laid out.
    void (*gru_backward)(const float* gates, ptrdiff_t ldgates, int stride, const float* h, ptrdiff_t ldh,
                         int rows, int n, float* g, ptrdiff_t ldg, float* d, ptrdiff_t ldd);

    // ---- a transformer layer modulated by conditions (AdaLN-zero)
    // y[r] = LayerNorm(LayerNorm(x[r]) * (1 + scale[r]) + shift[r]) * gamma + beta; the inner one without
    // parameters, eps 1e-6, the outer one as layer_norm.
    void (*modulated_norm)(const float* x, ptrdiff_t ldx, int rows, int n, const float* shift,
                           const float* scale, ptrdiff_t ldm, const float* gamma, const float* beta, float* y,
                           ptrdiff_t ldy);
    // x[r, :n] += gate[r, :n] * y[r, :n]
    void (*add_gated)(const float* y, ptrdiff_t ldy, const float* gate, ptrdiff_t ldg, int rows, int n,
                      float* x, ptrdiff_t ldx);
    // Each row's query (heads * head_dim) becomes what it finds: the values of `count` tokens, weighted per
    // head by softmax(query . key / sqrt(head_dim)).
    void (*attend)(float* q, ptrdiff_t ldq, const Token* tokens, int count, int rows, int heads,
                   int head_dim);
    // x, shift, scale, gamma: what modulated_norm() was given; `dshift` and `dscale` receive theirs.
    void (*modulated_norm_backward)(const float* x, ptrdiff_t ldx, int rows, int n, const float* shift,
                                    const float* scale, ptrdiff_t ldm, const float* gamma, float* g,
                                    ptrdiff_t ldg, float* dshift, float* dscale, ptrdiff_t ldd);
    // Of add_gated: g stays what it is, also dL/dx; dy = gate * g, dgate = y * g.
    void (*gate_backward)(const float* y, ptrdiff_t ldy, const float* gate, ptrdiff_t ldgate, int rows, int n,
                          const float* g, ptrdiff_t ldg, float* dy, ptrdiff_t lddy, float* dgate,
                          ptrdiff_t lddgate);
    // q: the queries as they were; g becomes dL/dq, and to slopes[i], laid out as tokens[i] is, what the keys
    // and values of token i are worth is added.
    void (*attend_backward)(const float* q, ptrdiff_t ldq, const Token* tokens, float* const* slopes,
                            int count, int rows, int heads, int head_dim, float* g, ptrdiff_t ldg);
};

// ---- lower precisions: weights in bf16 or int8, sums in fp32 or int32, everything else in fp32 ----

enum class Precision { fp32, bf16, int8 };

struct DenseBf16 {           // in pairs along k
    const uint16_t* panels;  // per panel: [ceil(in / 2)][width][2]
    const float* bias;       // [padded(out)]
    int in;
    int out;
};

struct Bf16Kernels {
    // y[r, :n] = x[r, :n] rounded to nearest even, and zeros up to the next multiple of 32, which ldy is.
    void (*convert)(const float* x, ptrdiff_t ldx, int rows, int n, uint16_t* y, ptrdiff_t ldy);
    // As Kernels::dense, with x in bf16. If y16 is given it receives the result, y[r, :padded(out)] in bf16,
    // instead.
    void (*dense)(const DenseBf16& w, const uint16_t* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy,
                  uint16_t* y16, ptrdiff_t ldy16, Act act, bool accumulate);
};

// A row of n bytes, n inputs of an int8 layer: whole panels in the order in which the kernels pack four
// vectors of 16 sums into one of bytes, an incomplete panel in its own. Positions without an input meet zero
// weights.
constexpr int byte_place(int k, int n) {
    const int panel = k / kPanel * kPanel, c = k % kPanel;
    return panel + kPanel > padded(n) ? k : panel + c % 16 / 4 * 16 + c / 16 * 4 + c % 4;
}
constexpr int byte_quads(int n) {
    return padded(n) % kPanel == 0 ? padded(n) / 4 : (n + 3) / 4;
}
constexpr int kMaxInt8Inputs = 1 << 15;  // 255 * 128 * kMaxInt8Inputs, and a start of 2^29, fit in int32

constexpr int kMaxInt8Row = 2 * kPanel;

struct DenseInt8 {            // in quads along k, symmetric, one scale per output
    const int8_t* panels;     // per panel: [byte_quads(in)][width][4], inputs in the order of byte_place
    const float* bias;        // [padded(out)]
    const float* scale;       // [padded(out)]
    const int32_t* zero_sum;  // [padded(out)]: -128 times the sum of the output's weights
    int in;
    int out;
};

// As DenseInt8 where the scale and zero of the inputs are known in advance: y = scale * (start + sum).
struct DenseInt8Static {
    const int8_t* panels;
    const int32_t* start;  // [padded(out)]: bias and zero
    const float* scale;    // [padded(out)]: to float
    const float* rescale;  // [padded(out)]: to the next layer's bytes
    uint8_t next_zero;     // what a zero is there
    int in;
    int out;
};

// What a layer may leave behind where its output, then `count` numbers that are known already, is the input
// of another.
struct NextInput {
    uint8_t* bytes;
    ptrdiff_t ld;
    const float* more;  // (rows, count)
    ptrdiff_t ld_more;
    int count;
};
// Whether it may: with one panel of outputs, in the order in which they are packed.
constexpr bool has_next_input(int out, int count) {
    return out % kUnit == 0 && count <= kUnit && (out == kPanel || padded(out + count) < kPanel);
}

// Rows of bytes are 64-byte aligned and padded to whole multiples of 64; what lies behind the n is undefined.
struct Int8Kernels {
    // Each row to unsigned bytes with a scale of its own: x = scale * (y - zero), zero 0 if no element is
    // negative, else 128. The scale of a row that is not finite is not finite either.
    void (*quantise)(const float* x, ptrdiff_t ldx, int rows, int n, uint8_t* y, ptrdiff_t ldy, float* scale,
                     int32_t* zero);
    // As Kernels::dense. If `most` is given the activation is ReLU, y may keep its negative numbers and
    // most[r][0..15] are 16 numbers whose maximum is that of 0 and y[r, :out]: what quantise_relu takes.
    void (*dense)(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, const float* scale,
                  const int32_t* zero, int rows, float* y, ptrdiff_t ldy, Act act, bool accumulate,
                  float* most);
    // quantise(relu(W x + b)) in one go, for at most kMaxInt8Row outputs: no row is ever in memory as floats.
    // scale and zero are those of the inputs, then of the outputs.
    void (*dense_relu)(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, float* scale, int32_t* zero,
                       int rows, uint8_t* y, ptrdiff_t ldy);
    // quantise(relu(x)) in one pass. `scale` holds that of the layer's inputs before, and if that is not
    // finite it stays so.
    void (*quantise_relu)(const float* x, ptrdiff_t ldx, int rows, int n, const float* most, uint8_t* y,
                          ptrdiff_t ldy, float* scale, int32_t* zero);

    // y = x * inverse + zero, rounded and saturated; `inverse` [padded(n)].
    void (*quantise_static)(const float* x, ptrdiff_t ldx, int rows, int n, const float* inverse, int zero,
                            uint8_t* y, ptrdiff_t ldy);
    // To y as Kernels::dense, or, if it is given, to the next layer's input: bytes[r, :out].
    void (*dense_static)(const DenseInt8Static& w, const uint8_t* x, ptrdiff_t ldx, int rows, float* y,
                         ptrdiff_t ldy, uint8_t* bytes, ptrdiff_t ldb, Act act, bool accumulate);

    // dense without activation, then quantise of the next input, to the same bits; scale and zero are those
    // of the inputs, then of the next.
    void (*dense_next)(const DenseInt8& w, const uint8_t* x, ptrdiff_t ldx, float* scale, int32_t* zero,
                       int rows, float* y, ptrdiff_t ldy, bool accumulate, const NextInput& next);
    // dense_static and quantise_static likewise.
    void (*dense_static_next)(const DenseInt8Static& w, const uint8_t* x, ptrdiff_t ldx, int rows, float* y,
                              ptrdiff_t ldy, bool accumulate, const float* inverse, int zero,
                              const NextInput& next);
};

// nullptr where the machine lacks the instructions (AVX-512 with BF16 or VNNI) or PYJEPA_ISA asks for less.
const Bf16Kernels* bf16_kernels();
const Int8Kernels* int8_kernels();
// The instruction set that computes in a precision; "" where those two are nullptr.
const char* kernels_name(Precision precision);

// The best instruction set of this machine, or the one PYJEPA_ISA names: baseline, avx2, avx512,
// avx512_vnni (with int8), avx512_bf16 (with bf16, and int8 where there is VNNI); on AArch64 baseline, neon.
// Throws Error if that one is unknown or this machine lacks it. Decided once per process.
const Kernels& kernels();

// One by name; nullptr if it is unknown or this machine (or build) lacks it.
const Kernels* find_kernels(const char* name) noexcept;

}  // namespace pyjepa::simd
