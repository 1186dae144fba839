// vit: a vision transformer (Dosovitskiy et al. 2021) that puts out its class token or the mean of all
// tokens.
//
// Attention runs through the dense kernel, too: of an image and a head, the keys and then the values are
// packed as if they were weights.
#include <algorithm>
#include <cmath>
#include <vector>

#include "model/block.hpp"
#include "model/conv2d.hpp"
#include "model/dense.hpp"

namespace pyjepa {
namespace {

// Queries that look for keys together.
constexpr int kQueries = 64;

AlignedFloats copy_of(std::span<const float> from) {
    AlignedFloats to(from.size());
    std::copy(from.begin(), from.end(), to.data());
    return to;
}

class Vit final : public Block {
  public:
    Vit(const VitSpec& spec, const Shape& in, Layout layout, const Weights& weights)
        : spec_(spec),
          patches_(in, layout, spec.width, spec.patch, spec.patch, 0, simd::Act::none,
                   weights("patch.weight"), weights("patch.bias")),
          first_(spec.pool == TokenPool::cls ? 1 : 0),
          tokens_(first_ + patches_.out()[1] * patches_.out()[2]),
          head_dim_(spec.width / spec.heads),
          position_(copy_of(weights("position"))),
          scale_(std::sqrt(1e-5f / spec.norm_eps)),
          norm_{copy_of(weights("norm.weight")), copy_of(weights("norm.bias"))},
          no_bias_(static_cast<size_t>(std::max(simd::padded(tokens_), simd::padded(head_dim_)))) {
        if (first_ == 1) cls_ = copy_of(weights("cls"));
        for (int d = 0; d < spec.depth; ++d) {
            const std::string layer = "layer" + std::to_string(d) + ".";
            const auto dense = [&](const char* name, int inputs, int outputs) {
                return PackedDense(weights(layer + name + ".weight"), weights(layer + name + ".bias"), inputs,
                                   outputs);
            };
            const auto norm = [&](const char* name) {
                return LayerNorm{copy_of(weights(layer + name + ".weight")),
                                 copy_of(weights(layer + name + ".bias"))};
            };
            layers_.push_back({norm("norm0"), norm("norm1"), scaled_queries(weights, layer),
                               dense("out", spec.width, spec.width),
                               dense("linear0", spec.width, spec.hidden),
                               dense("linear1", spec.hidden, spec.width)});
        }
    }

    size_t workspace(int) const noexcept override {
        const auto tokens = static_cast<size_t>(tokens_);
        const size_t wide = static_cast<size_t>(std::max(3 * spec_.width, spec_.hidden));
        return std::max(patches_.workspace(),
                        tokens * (static_cast<size_t>(spec_.width) + wide) + attention_workspace()) +
               tokens * static_cast<size_t>(spec_.width);
    }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept override {
        const int width = spec_.width;
        float* const tokens = work;
        float* const scratch = tokens + size(width);
        for (int r = 0; r < rows; ++r) {
            if (first_ == 1) std::copy_n(cls_.data(), width, tokens);
            patches_.forward(kernels, x + r * ldx, tokens + first_ * width, false, scratch);
            kernels.add(position_.data(), width, tokens_, width, tokens, width);
            for (const Layer& layer : layers_) run(kernels, layer, tokens, scratch);
            const int read = first_ == 1 ? 1 : tokens_;
            normalise(kernels, tokens, read, norm_, scratch);
            for (int i = 1; i < read; ++i) kernels.add(scratch + i * width, width, 1, width, scratch, width);
            float* const to = y + r * ldy;
            for (int j = 0; j < width; ++j) {
                const float v = scratch[j] / static_cast<float>(read);
                to[j] = accumulate ? to[j] + v : v;
            }
        }
    }

    double flops() const noexcept override {
        const double width = spec_.width;
        const double dense = 4.0 * width * width + 2.0 * width * spec_.hidden,
                     attention = 2.0 * tokens_ * width;
        return patches_.flops() + 2.0 * tokens_ * spec_.depth * (dense + attention);
    }

  private:
    struct LayerNorm {
        AlignedFloats gamma, beta;
    };
    struct Layer {
        LayerNorm norm0, norm1;
        PackedDense qkv, out, linear0, linear1;
    };

    ptrdiff_t size(int width) const noexcept { return static_cast<ptrdiff_t>(tokens_) * width; }

    // Queries come divided by the root of their size, as their products with keys are to be.
    PackedDense scaled_queries(const Weights& weights, const std::string& layer) const {
        const std::span<const float> weight = weights(layer + "qkv.weight"),
                                     bias = weights(layer + "qkv.bias");
        std::vector<float> w(weight.begin(), weight.end()), b(bias.begin(), bias.end());
        const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
        const auto width = static_cast<size_t>(spec_.width);
        for (size_t i = 0; i < width * width; ++i) w[i] *= scale;
        for (size_t i = 0; i < width; ++i) b[i] *= scale;
        return {w, b, spec_.width, 3 * spec_.width};
    }

    // y = LayerNorm(x). The kernel's eps is 1e-5: of inputs larger by a factor it is as much smaller.
    void normalise(const simd::Kernels& kernels, const float* x, int rows, const LayerNorm& norm,
                   float* y) const noexcept {
        const ptrdiff_t count = static_cast<ptrdiff_t>(rows) * spec_.width;
        for (ptrdiff_t i = 0; i < count; ++i) y[i] = x[i] * scale_;
        kernels.layer_norm(y, spec_.width, rows, spec_.width, norm.gamma.data(), norm.beta.data(),
                           simd::Act::none);
    }

    void run(const simd::Kernels& kernels, const Layer& l, float* tokens, float* work) const noexcept {
        const int width = spec_.width;
        float* const normed = work;
        float* const wide = normed + size(width);
        normalise(kernels, tokens, tokens_, l.norm0, normed);
        kernels.dense(l.qkv.view(), normed, width, tokens_, wide, 3 * width, simd::Act::none, false);
        for (int h = 0; h < spec_.heads; ++h)
            attend(kernels, wide + h * head_dim_, normed + h * head_dim_, wide + size(3 * width));
        kernels.dense(l.out.view(), normed, width, tokens_, tokens, width, simd::Act::none, true);
        normalise(kernels, tokens, tokens_, l.norm1, normed);
        kernels.dense(l.linear0.view(), normed, width, tokens_, wide, spec_.hidden, simd::Act::gelu, false);
        kernels.dense(l.linear1.view(), wide, spec_.hidden, tokens_, tokens, width, simd::Act::none, true);
    }

    size_t attention_workspace() const noexcept {
        const auto tokens = static_cast<size_t>(tokens_), head = static_cast<size_t>(head_dim_);
        return head * static_cast<size_t>(simd::padded(tokens_)) +
               tokens * static_cast<size_t>(simd::padded(head_dim_)) +
               kQueries * static_cast<size_t>(simd::padded(tokens_));
    }

    // One head: what its queries find goes to y, rows of the layer's width. work: attention_workspace().
    void attend(const simd::Kernels& kernels, const float* queries, float* y, float* work) const noexcept {
        const int width = spec_.width, ld = 3 * width, score_ld = simd::padded(tokens_);
        const float *const keys = queries + width, *const values = keys + width;
        float* const packed_keys = work;
        float* const packed_values = packed_keys + static_cast<ptrdiff_t>(head_dim_) * score_ld;
        float* const scores = packed_values + static_cast<ptrdiff_t>(tokens_) * simd::padded(head_dim_);
        pack_panels(head_dim_, tokens_, packed_keys,
                    [&](int k, int token) { return keys[static_cast<ptrdiff_t>(token) * ld + k]; });
        pack_panels(tokens_, head_dim_, packed_values,
                    [&](int token, int c) { return values[static_cast<ptrdiff_t>(token) * ld + c]; });
        const simd::Dense score{packed_keys, no_bias_.data(), head_dim_, tokens_},
            mix{packed_values, no_bias_.data(), tokens_, head_dim_};
        for (int i = 0; i < tokens_; i += kQueries) {
            const int rows = std::min(kQueries, tokens_ - i);
            kernels.dense(score, queries + static_cast<ptrdiff_t>(i) * ld, ld, rows, scores, score_ld,
                          simd::Act::none, false);
            kernels.simnorm(scores, score_ld, rows, tokens_, tokens_);  // softmax
            kernels.dense(mix, scores, score_ld, rows, y + static_cast<ptrdiff_t>(i) * width, width,
                          simd::Act::none, false);
        }
    }

    VitSpec spec_;
    Conv2d patches_;
    int first_, tokens_, head_dim_;  // first_: where the patches' tokens begin
    AlignedFloats position_, cls_;
    float scale_;
    LayerNorm norm_;
    AlignedFloats no_bias_;
    std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Block> make_vit(const VitSpec& spec, const Shape& in, Layout layout, const Weights& weights) {
    return std::make_unique<Vit>(spec, in, layout, weights);
}

}  // namespace pyjepa
