#include "model/conv2d.hpp"

#include <algorithm>
#include <cstring>

namespace pyjepa {
namespace {

// A patch lies in memory as the image does: channel last, it is (kernel, kernel, C); in torch's layout (C,
// kernel, kernel). This is the torch column behind each of its elements.
std::vector<int> patch_order(int channels, int kernel, Layout layout) {
    std::vector<int> order;
    if (layout == Layout::torch) return order;
    for (int ky = 0; ky < kernel; ++ky)
        for (int kx = 0; kx < kernel; ++kx)
            for (int c = 0; c < channels; ++c) order.push_back((c * kernel + ky) * kernel + kx);
    return order;
}

}  // namespace

Conv2d::Conv2d(const Shape& in, Layout layout, int out, int kernel, int stride, int padding, simd::Act act,
               std::span<const float> weight, std::span<const float> bias, simd::Precision precision,
               std::span<const ActivationScale> activation)
    : in_(in),
      out_{out, (in[1] + 2 * padding - kernel) / stride + 1, (in[2] + 2 * padding - kernel) / stride + 1},
      layout_(layout),
      kernel_(kernel),
      stride_(stride),
      padding_(padding),
      act_(act),
      dense_(weight, bias, in[0] * kernel * kernel, out, precision, activation,
             patch_order(in[0], kernel, layout)) {}

void Conv2d::gather(const float* x, int position, float* patch) const noexcept {
    const int height = in_[1], width = in_[2];
    const int y0 = position / out_[2] * stride_ - padding_, x0 = position % out_[2] * stride_ - padding_;
    // A run is what lies together in memory: `kernel_` pixels of `depth` floats in each of `planes` images.
    const bool last = layout_ == Layout::channels_last;
    const int planes = last ? 1 : in_[0], depth = last ? in_[0] : 1;
    const int left = std::max(0, -x0), right = std::min(kernel_, width - x0);
    for (int plane = 0; plane < planes; ++plane)
        for (int ky = 0; ky < kernel_; ++ky, patch += kernel_ * depth) {
            const int y = y0 + ky;
            if (y < 0 || y >= height || left >= right) {
                std::fill_n(patch, kernel_ * depth, 0.0f);
                continue;
            }
            const float* row = x + (static_cast<ptrdiff_t>(plane) * height + y) * width * depth;
            std::fill_n(patch, left * depth, 0.0f);
            std::memcpy(patch + left * depth, row + static_cast<ptrdiff_t>(x0 + left) * depth,
                        sizeof(float) * static_cast<size_t>((right - left) * depth));
            std::fill_n(patch + right * depth, (kernel_ - right) * depth, 0.0f);
        }
}

void Conv2d::forward(const simd::Kernels& kernels, const float* x, float* y, bool accumulate,
                     float* work) const noexcept {
    const int positions = out_[1] * out_[2], in = dense_.in();
    static_assert(kRows % simd::kUnit == 0);  // aligned behind the patches
    float* const narrow = work + ptrdiff_t{kRows} * in;
    for (int from = 0; from < positions; from += kRows) {
        const int rows = std::min(kRows, positions - from);
        for (int r = 0; r < rows; ++r) gather(x, from + r, work + static_cast<ptrdiff_t>(r) * in);
        dense_.multiply(kernels, dense_.read(kernels, work, in, rows, simd::Act::none, narrow), rows,
                        y + static_cast<ptrdiff_t>(from) * out_[0], out_[0], act_, accumulate);
    }
}

}  // namespace pyjepa
