// Dense layers packed for the kernels, in one aligned buffer per model.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "model/spec.hpp"
#include "simd/kernels.hpp"

namespace pyjepa {

// A cache-line aligned buffer of fixed size, zero-filled.
template <class T>
class AlignedBuffer {
  public:
    AlignedBuffer() = default;
    explicit AlignedBuffer(size_t count)
        : data_(count == 0 ? nullptr : new (std::align_val_t{64}) T[count]()), size_(count) {}
    T* data() noexcept { return data_.get(); }
    const T* data() const noexcept { return data_.get(); }
    size_t size() const noexcept { return size_; }
    T& operator[](size_t i) noexcept { return data_[i]; }
    const T& operator[](size_t i) const noexcept { return data_[i]; }
    std::span<T> span() noexcept { return {data_.get(), size_}; }
    std::span<const T> span() const noexcept { return {data_.get(), size_}; }

  private:
    struct Free {
        void operator()(T* p) const noexcept { ::operator delete[](p, std::align_val_t{64}); }
    };
    std::unique_ptr<T[], Free> data_;
    size_t size_ = 0;
};
using AlignedFloats = AlignedBuffer<float>;

// Packs weight(k, c), of input k and output c, as simd::Dense has them: in * padded(out) floats. Without
// allocation, for what is multiplied with only once.
template <class Weight>
void pack_panels(int in, int out, float* panels, Weight weight) noexcept {
    for (int c0 = 0; c0 < out; c0 += simd::kPanel) {
        const int width = std::min(simd::kPanel, simd::padded(out) - c0), there = std::min(width, out - c0);
        for (int k = 0; k < in; ++k, panels += width) {
            for (int c = 0; c < there; ++c) panels[c] = weight(k, c0 + c);
            for (int c = there; c < width; ++c) panels[c] = 0.0f;
        }
    }
}

// One dense layer's packed weights. Movable; `view()` is what the kernels take.
class PackedDense {
  public:
    // weight (out, in) and bias (out,) in torch's layout. Column k of the packed layer reads column order[k]
    // of weight (empty: the same), for inputs that the engine keeps in another order than torch.
    PackedDense(std::span<const float> weight, std::span<const float> bias, int in, int out,
                std::span<const int> order = {});
    simd::Dense view() const noexcept { return {panels_.data(), bias_.data(), in_, out_}; }
    // x W instead of x W^T, without bias: what carries a derivative from the outputs to the inputs.
    PackedDense transposed() const;
    int in() const noexcept { return in_; }
    int out() const noexcept { return out_; }

  private:
    AlignedFloats panels_, bias_;
    int in_, out_;
};

// The same weights rounded to bf16 (nearest even), in pairs along k.
class PackedDenseBf16 {
  public:
    PackedDenseBf16(std::span<const float> weight, std::span<const float> bias, int in, int out,
                    std::span<const int> order = {});
    simd::DenseBf16 view() const noexcept { return {panels_.data(), bias_.data(), in_, out_}; }

  private:
    AlignedBuffer<uint16_t> panels_;
    AlignedFloats bias_;
    int in_, out_;
};

// The same weights as int8, symmetric with one scale per output, in quads along k.
class PackedDenseInt8 {
  public:
    PackedDenseInt8(std::span<const float> weight, std::span<const float> bias, int in, int out,
                    std::span<const int> order = {});
    simd::DenseInt8 view() const noexcept {
        return {panels_.data(), bias_.data(), scale_.data(), zero_sum_.data(), in_, out_};
    }

  private:
    AlignedBuffer<int8_t> panels_;
    AlignedFloats bias_, scale_;
    AlignedBuffer<int32_t> zero_sum_;
    int in_, out_;
};

// As PackedDenseInt8 where the inputs' scale is known in advance, and that of the inputs of the layer after
// it.
class PackedDenseInt8Static {
  public:
    PackedDenseInt8Static(std::span<const float> weight, std::span<const float> bias, int in, int out,
                          std::span<const int> order, const ActivationScale& input,
                          const ActivationScale& next);
    simd::DenseInt8Static view() const noexcept {
        return {panels_.data(), start_.data(), scale_.data(), rescale_.data(), next_zero_, in_, out_};
    }
    // What quantise_static takes: one over each input's scale, and their zero.
    const float* inverse() const noexcept { return inverse_.data(); }
    int zero() const noexcept { return zero_; }

  private:
    AlignedBuffer<int8_t> panels_;
    AlignedBuffer<int32_t> start_;
    AlignedFloats scale_, rescale_;
    AlignedFloats inverse_;
    int zero_;
    uint8_t next_zero_;
    int in_, out_;
};

}  // namespace pyjepa
