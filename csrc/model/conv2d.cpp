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

// Too short to be worth a call of memcpy.
template <class T>
inline void copy(const T* from, int count, T* to) noexcept {
    constexpr int line = 64 / sizeof(T);
    for (; count >= line; count -= line, from += line, to += line) std::memcpy(to, from, line * sizeof *to);
    for (int i = 0; i < count; ++i) to[i] = from[i];
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

template <class T>
void Conv2d::gather(const T* x, int first, int rows, T* patches, ptrdiff_t ld) const noexcept {
    const int height = in_[1], width = in_[2];
    // A run is what lies together in memory: `kernel_` pixels of `depth` numbers in each of `planes` images.
    const bool last = layout_ == Layout::channels_last;
    const int planes = last ? 1 : in_[0], depth = last ? in_[0] : 1, run = kernel_ * depth;
    for (int r = 0; r < rows;) {
        // As many as have the same rows of the image.
        const int oy = (first + r) / out_[2], ox = (first + r) % out_[2];
        const int count = std::min(rows - r, out_[2] - ox);
        T* to = patches + r * ld;
        for (int plane = 0; plane < planes; ++plane)
            for (int ky = 0; ky < kernel_; ++ky, to += run) {
                const int y = oy * stride_ - padding_ + ky;
                const bool outside = y < 0 || y >= height;
                const T* const row = x + (static_cast<ptrdiff_t>(plane) * height + y) * width * depth;
                for (int i = 0; i < count; ++i) {
                    const int x0 = (ox + i) * stride_ - padding_;
                    const int left = std::max(0, -x0), right = std::min(kernel_, width - x0);
                    T* const at = to + i * ld;
                    if (outside || left >= right) {
                        std::fill_n(at, run, T{});
                        continue;
                    }
                    if (left > 0) std::fill_n(at, left * depth, T{});
                    copy(row + static_cast<ptrdiff_t>(x0 + left) * depth, (right - left) * depth,
                         at + left * depth);
                    if (right < kernel_) std::fill_n(at + right * depth, (kernel_ - right) * depth, T{});
                }
            }
        r += count;
    }
}

size_t Conv2d::narrow_image() const noexcept {
    const auto pixels = static_cast<size_t>(in_[1]) * static_cast<size_t>(in_[2]);
    return dense_.precision() == simd::Precision::bf16 ? (static_cast<size_t>(in_[0]) * pixels + 31) / 32 * 16
                                                       : 0;
}

void Conv2d::forward(const simd::Kernels& kernels, const float* x, float* y, bool accumulate,
                     float* work) const noexcept {
    const int positions = out_[1] * out_[2], in = dense_.in();
    static_assert(kRows % simd::kUnit == 0);  // aligned behind the patches
    float* const narrow = work + ptrdiff_t{kRows} * in;
    // In bf16 a pixel becomes that once, not once for each patch that it is in; a scale is a patch's own.
    const bool bf16 = dense_.precision() == simd::Precision::bf16;
    auto* const image = reinterpret_cast<uint16_t*>(narrow + dense_.scratch(kRows));
    if (bf16) simd::bf16_kernels()->convert(x, 0, 1, in_[0] * in_[1] * in_[2], image, 0);
    for (int from = 0; from < positions; from += kRows) {
        const int rows = std::min(kRows, positions - from);
        float* const to = y + static_cast<ptrdiff_t>(from) * out_[0];
        if (bf16) {
            const Linear::Rows patches = dense_.room(rows, narrow);
            gather(image, from, rows, reinterpret_cast<uint16_t*>(patches.narrow), patches.ld / 2);
            dense_.multiply(kernels, patches, rows, to, out_[0], act_, accumulate);
            continue;
        }
        gather(x, from, rows, work, in);
        dense_.multiply(kernels, dense_.read(kernels, work, in, rows, simd::Act::none, narrow), rows, to,
                        out_[0], act_, accumulate);
    }
}

}  // namespace pyjepa
