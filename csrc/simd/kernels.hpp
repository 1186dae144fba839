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

struct Kernels {
    const char* name;
    // y[r, :out] = act(x[r, :in] W^T + b), added to y if `accumulate`. x and y must not overlap.
    void (*dense)(const Dense& w, const float* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy, Act act,
                  bool accumulate);
    // y[r] = act(LayerNorm(y[r]) * gamma + beta), in place, eps 1e-5.
    void (*layer_norm)(float* y, ptrdiff_t ld, int rows, int n, const float* gamma, const float* beta);
    // Softmax within groups of `group`, in place; n is a multiple of group.
    void (*simnorm)(float* y, ptrdiff_t ld, int rows, int n, int group);
    void (*activate)(float* y, ptrdiff_t ld, int rows, int n, Act act);
    // y[r, :n] += x[r, :n]
    void (*add)(const float* x, ptrdiff_t ldx, int rows, int n, float* y, ptrdiff_t ldy);
    // out[r] = sum_j (z[r, j] - goal[j])^2
    void (*squared_distance)(const float* z, ptrdiff_t ld, int rows, int n, const float* goal, float* out);
    // Normals for candidates n0 .. n1 - 1, `count` each rounded up to groups of four: out (n1 - n0, 4
    // ceil(count / 4)). The same bits on every instruction set.
    void (*gaussian)(uint32_t k0, uint32_t k1, uint32_t stream, int n0, int n1, int count, float* out);
};

// The best instruction set of this machine, or the one PYJEPA_ISA names (baseline, avx2, avx512). Throws
// Error if that one is unknown or this machine lacks it. Decided once per process.
const Kernels& kernels();

// One by name; nullptr if it is unknown or this machine (or build) lacks it.
const Kernels* find_kernels(const char* name) noexcept;

}  // namespace pyjepa::simd
