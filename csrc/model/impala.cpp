// impala: per stage conv3 -> maxpool 3/2 -> two residual blocks x + conv3(relu(conv3(relu(x)))), then a ReLU
// (Espeholt et al. 2018, the deep network of figure 3). Without preactivation they are relu(x +
// conv3(relu(conv3(x)))).
#include <algorithm>
#include <cstring>
#include <limits>

#include "model/conv2d.hpp"

namespace pyjepa {
namespace {

// Max over 3x3 windows, stride 2, padding 1, channel last; (C, H, W) -> (C, (H+1)/2, (W+1)/2).
void max_pool(const float* x, const Shape& in, float* y) noexcept {
    const int channels = in[0], height = in[1], width = in[2];
    for (int oy = 0; oy < (height + 1) / 2; ++oy)
        for (int ox = 0; ox < (width + 1) / 2; ++ox, y += channels) {
            std::fill_n(y, channels, -std::numeric_limits<float>::infinity());
            for (int iy = std::max(0, 2 * oy - 1); iy < std::min(height, 2 * oy + 2); ++iy)
                for (int ix = std::max(0, 2 * ox - 1); ix < std::min(width, 2 * ox + 2); ++ix) {
                    const float* from = x + (static_cast<ptrdiff_t>(iy) * width + ix) * channels;
                    for (int c = 0; c < channels; ++c) y[c] = from[c] > y[c] ? from[c] : y[c];
                }
        }
}

void relu(const float* x, size_t count, float* y) noexcept {
    for (size_t i = 0; i < count; ++i) y[i] = x[i] < 0.0f ? 0.0f : x[i];
}

struct Stage {
    Conv2d entry;
    Shape pooled;
    std::vector<Conv2d> residual;  // two per residual block; the first of each applies its ReLU to its output
};

class Impala final : public Block {
  public:
    Impala(const ImpalaSpec& spec, const Shape& in, Layout layout, const Weights& weights,
           std::span<const simd::Precision> precisions, std::span<const ActivationScale> activations) {
        preactivation_ = spec.preactivation;
        Shape shape = in;
        size_t layer = 0;
        for (size_t s = 0; s < spec.channels.size(); ++s) {
            const int channels = spec.channels[s];
            const std::string stage = "stage" + std::to_string(s) + ".";
            auto conv = [&](const std::string& name, const Shape& from, Layout order, simd::Act act) {
                const size_t own = layer++;
                return Conv2d(from, order, channels, 3, 1, 1, act, weights(stage + name + ".weight"),
                              weights(stage + name + ".bias"), precisions[own], scale_of(activations, own));
            };
            Stage made{conv("conv", shape, s == 0 ? layout : Layout::channels_last, simd::Act::none),
                       {channels, (shape[1] + 1) / 2, (shape[2] + 1) / 2},
                       {}};
            patches_ = std::max(patches_, made.entry.workspace());
            image_ = std::max(image_, made.entry.out_size());
            shape = made.pooled;
            for (int r = 0; r < 2; ++r) {
                const std::string name = "res" + std::to_string(r) + ".";
                made.residual.push_back(conv(name + "conv0", shape, Layout::channels_last, simd::Act::relu));
                made.residual.push_back(conv(name + "conv1", shape, Layout::channels_last, simd::Act::none));
            }
            for (const Conv2d& c : made.residual) patches_ = std::max(patches_, c.workspace());
            stages_.push_back(std::move(made));
        }
    }

    // The patches, and three images: the stage's own, and two for the inside of a residual block.
    size_t workspace(int) const noexcept override { return patches_ + 3 * image_; }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept override {
        float* const state = work + patches_;
        float* const a = state + image_;
        float* const b = a + image_;
        for (int r = 0; r < rows; ++r) {
            const float* from = x + r * ldx;
            size_t size = 0;
            for (const Stage& stage : stages_) {
                stage.entry.forward(kernels, from, a, false, work);
                max_pool(a, stage.entry.out(), state);
                size = static_cast<size_t>(stage.pooled[0]) *
                       static_cast<size_t>(stage.pooled[1] * stage.pooled[2]);
                for (size_t i = 0; i < stage.residual.size(); i += 2) {
                    if (preactivation_) relu(state, size, a);
                    stage.residual[i].forward(kernels, preactivation_ ? a : state, b, false, work);
                    stage.residual[i + 1].forward(kernels, b, state, true, work);
                    if (!preactivation_) relu(state, size, state);
                }
                from = state;
            }
            float* to = y + r * ldy;
            for (size_t i = 0; i < size; ++i) {
                const float v = state[i] < 0.0f ? 0.0f : state[i];
                to[i] = accumulate ? to[i] + v : v;
            }
        }
    }

    double flops() const noexcept override {
        double total = 0.0;
        for (const Stage& stage : stages_) {
            total += stage.entry.flops();
            for (const Conv2d& conv : stage.residual) total += conv.flops();
        }
        return total;
    }

  private:
    std::vector<Stage> stages_;
    size_t patches_ = 0, image_ = 0;
    bool preactivation_ = true;
};

}  // namespace

std::unique_ptr<Block> make_impala(const ImpalaSpec& spec, const Shape& in, Layout layout,
                                   const Weights& weights, std::span<const simd::Precision> precisions,
                                   std::span<const ActivationScale> activations) {
    return std::make_unique<Impala>(spec, in, layout, weights, precisions, activations);
}

}  // namespace pyjepa
