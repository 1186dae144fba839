// One 2-D convolution as patches times a dense layer; what conv and impala are made of.
#pragma once

#include <span>
#include <vector>

#include "model/block.hpp"
#include "model/linear.hpp"

namespace pyjepa {

class Conv2d {
  public:
    // in: (C, H, W). weight (out, C, kernel, kernel), bias (out,). precision, activation: as Linear, whose
    // rows are patches.
    Conv2d(const Shape& in, Layout layout, int out, int kernel, int stride, int padding, simd::Act act,
           std::span<const float> weight, std::span<const float> bias, simd::Precision precision,
           std::span<const ActivationScale> activation);

    const Shape& out() const noexcept { return out_; }  // (C, H, W); the data is channel last
    size_t out_size() const noexcept {
        return static_cast<size_t>(out_[0]) * static_cast<size_t>(out_[1] * out_[2]);
    }
    static constexpr int kRows = 48;  // patches gathered at a time
    size_t workspace() const noexcept {
        return static_cast<size_t>(kRows) * static_cast<size_t>(dense_.in()) + dense_.scratch(kRows) +
               narrow_image();
    }
    // One image; added to y only without a smooth activation. work: workspace() floats.
    void forward(const simd::Kernels& kernels, const float* x, float* y, bool accumulate,
                 float* work) const noexcept;
    double flops() const noexcept { return 2.0 * dense_.in() * dense_.out() * out_[1] * out_[2]; }

  private:
    // The patches of `rows` positions from `first` on, `ld` numbers apart.
    template <class T>
    void gather(const T* x, int first, int rows, T* patches, ptrdiff_t ld) const noexcept;
    size_t narrow_image() const noexcept;  // floats of the image in bf16, where it is read so

    Shape in_, out_;
    Layout layout_;
    int kernel_, stride_, padding_;
    simd::Act act_;
    Linear dense_;
};

}  // namespace pyjepa
