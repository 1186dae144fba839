// Dense layers packed for the kernels, in one aligned buffer per model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>
#include <vector>

#include "simd/kernels.hpp"

namespace pyjepa {

// A cache-line aligned float buffer of fixed size, zero-filled.
class AlignedFloats {
  public:
    AlignedFloats() = default;
    explicit AlignedFloats(size_t count)
        : data_(count == 0 ? nullptr : new (std::align_val_t{64}) float[count]()), size_(count) {}
    float* data() noexcept { return data_.get(); }
    const float* data() const noexcept { return data_.get(); }
    size_t size() const noexcept { return size_; }
    float& operator[](size_t i) noexcept { return data_[i]; }
    const float& operator[](size_t i) const noexcept { return data_[i]; }
    std::span<float> span() noexcept { return {data_.get(), size_}; }
    std::span<const float> span() const noexcept { return {data_.get(), size_}; }

  private:
    struct Free {
        void operator()(float* p) const noexcept { ::operator delete[](p, std::align_val_t{64}); }
    };
    std::unique_ptr<float[], Free> data_;
    size_t size_ = 0;
};

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
    std::vector<uint16_t> panels_;
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
    std::vector<int8_t> panels_;
    AlignedFloats bias_, scale_;
    std::vector<int32_t> zero_sum_;
    int in_, out_;
};

}  // namespace pyjepa
