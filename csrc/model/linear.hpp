// A dense layer in one precision, between floats: for blocks that are more than a stack of them.
#pragma once

#include <span>
#include <variant>

#include "model/dense.hpp"
#include "model/spec.hpp"

namespace pyjepa {

class Linear {
  public:
    // Rows as a layer of this precision reads them.
    struct Rows {
        const float* x;
        ptrdiff_t ldx;
        unsigned char* narrow;  // bf16 or bytes, `ld` bytes apart; nullptr: x itself
        ptrdiff_t ld;
        float* scale;   // of bytes
        int32_t* zero;  // of bytes
        Rows from(int row) const noexcept {
            return {x + row * ldx, ldx, narrow + row * ld, ld, scale + row, zero + row};
        }
    };

    // As PackedDense. precision: of the weights and of what they are multiplied with; too many inputs for
    // int8 take fp32. activation: for int8 the scale of the inputs; none: each row gets one as it comes.
    Linear(std::span<const float> weight, std::span<const float> bias, int in, int out,
           simd::Precision precision, std::span<const ActivationScale> activation = {},
           std::span<const int> order = {});

    int in() const noexcept { return in_; }
    int out() const noexcept { return out_; }
    simd::Precision precision() const noexcept { return precision_; }
    // fp32's, for derivatives.
    const PackedDense& fp32() const { return std::get<PackedDense>(dense_); }

    // Floats of scratch for the rows that this layer reads.
    size_t scratch(int rows) const noexcept;
    // act(x[r, :in]) as the layer reads it; overwrites x if there is an activation.
    Rows read(const simd::Kernels& kernels, float* x, ptrdiff_t ldx, int rows, simd::Act act,
              float* scratch) const noexcept;
    // Rows of bf16, where the layer reads such, for the caller to fill: `in` numbers each, what the kernel
    // reads behind them is 0.
    Rows room(int rows, float* scratch) const noexcept;
    // y[r, :out] = act(x[r] W^T + b), added to y if `accumulate`: then no activation but ReLU.
    void multiply(const simd::Kernels& kernels, const Rows& x, int rows, float* y, ptrdiff_t ldy,
                  simd::Act act = simd::Act::none, bool accumulate = false) const noexcept;

  private:
    ptrdiff_t ld() const noexcept { return (in_ + 63) / 64 * 64; }  // in elements

    int in_, out_;
    simd::Precision precision_;
    std::variant<PackedDense, PackedDenseBf16, PackedDenseInt8, PackedDenseInt8Static> dense_;
};

}  // namespace pyjepa
