// conv: a stack of 2-D convolutions.
#include <algorithm>

#include "model/conv2d.hpp"

namespace pyjepa {
namespace {

class Conv final : public Block {
  public:
    Conv(const ConvSpec& spec, const Shape& in, Layout layout, const Weights& weights,
         std::span<const simd::Precision> precisions, std::span<const ActivationScale> activations) {
        Shape shape = in;
        for (size_t j = 0; j < spec.layers.size(); ++j) {
            const ConvLayerSpec& l = spec.layers[j];
            const std::string name = "conv" + std::to_string(j);
            layers_.emplace_back(shape, j == 0 ? layout : Layout::channels_last, l.out, l.kernel, l.stride,
                                 l.padding, to_act(l.activation), weights(name + ".weight"),
                                 weights(name + ".bias"), precisions[j], scale_of(activations, j));
            shape = layers_.back().out();
            patches_ = std::max(patches_, layers_.back().workspace());
            image_ = std::max(image_, layers_.back().out_size());
        }
    }

    size_t workspace(int) const noexcept override { return patches_ + 2 * image_; }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept override {
        float* images[2] = {work + patches_, work + patches_ + image_};
        for (int r = 0; r < rows; ++r) {
            const float* from = x + r * ldx;
            for (size_t j = 0; j < layers_.size(); ++j) {
                const bool last = j + 1 == layers_.size();
                float* to = last && !accumulate ? y + r * ldy : images[j % 2];
                layers_[j].forward(kernels, from, to, false, work);
                from = to;
            }
            if (!accumulate) continue;
            const int size = static_cast<int>(layers_.back().out_size());
            kernels.add(from, size, 1, size, y + r * ldy, ldy);
        }
    }

    double flops() const noexcept override {
        double total = 0.0;
        for (const Conv2d& layer : layers_) total += layer.flops();
        return total;
    }

  private:
    std::vector<Conv2d> layers_;
    size_t patches_ = 0, image_ = 0;
};

}  // namespace

std::unique_ptr<Block> make_conv(const ConvSpec& spec, const Shape& in, Layout layout, const Weights& weights,
                                 std::span<const simd::Precision> precisions,
                                 std::span<const ActivationScale> activations) {
    return std::make_unique<Conv>(spec, in, layout, weights, precisions, activations);
}

}  // namespace pyjepa
