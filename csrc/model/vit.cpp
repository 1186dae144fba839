// vit: a vision transformer (Dosovitskiy et al. 2021) that puts out its class token or the mean of all
// tokens.
//
// Attention runs through the dense kernel, too: of an image and a head, the keys and then the values are
// packed as if they were weights. Where what makes queries, keys and values runs in fewer bits than fp32,
// their products are those of bf16, if the machine has them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "model/block.hpp"
#include "model/conv2d.hpp"
#include "model/linear.hpp"

namespace pyjepa {
namespace {

// Queries that look for keys together.
constexpr int kQueries = 64;
// Tokens that go through dense layers together: what lies between two of them stays in L2.
constexpr int kGroup = 64;

// Floats of scratch, in whole cache lines: what follows begins with one.
size_t lines(size_t floats) {
    return (floats + 15) / 16 * 16;
}

AlignedFloats copy_of(std::span<const float> from) {
    AlignedFloats to(from.size());
    std::copy(from.begin(), from.end(), to.data());
    return to;
}

class Vit final : public Block {
  public:
    Vit(const VitSpec& spec, const Shape& in, Layout layout, const Weights& weights,
        std::span<const simd::Precision> precisions, std::span<const ActivationScale> activations)
        : spec_(spec),
          patches_(in, layout, spec.width, spec.patch, spec.patch, 0, simd::Act::none,
                   weights("patch.weight"), weights("patch.bias"), precisions[0], scale_of(activations, 0)),
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
            size_t which = 1 + 4 * static_cast<size_t>(d);
            const auto linear = [&](std::span<const float> weight, std::span<const float> bias, int inputs,
                                    int outputs) {
                Linear made(weight, bias, inputs, outputs, precisions[which], scale_of(activations, which));
                ++which;
                narrow_ = std::max(narrow_, made.scratch(kGroup));
                return made;
            };
            const auto dense = [&](const char* name, int inputs, int outputs) {
                return linear(weights(layer + name + ".weight"), weights(layer + name + ".bias"), inputs,
                              outputs);
            };
            const auto norm = [&](const char* name) {
                return LayerNorm{copy_of(weights(layer + name + ".weight")),
                                 copy_of(weights(layer + name + ".bias"))};
            };
            const ScaledQueries qkv = scaled_queries(weights, layer);
            layers_.push_back(
                {norm("norm0"), norm("norm1"), linear(qkv.weight, qkv.bias, spec.width, 3 * spec.width),
                 dense("out", spec.width, spec.width), dense("linear0", spec.width, spec.hidden),
                 dense("linear1", spec.hidden, spec.width)});
        }
    }

    size_t workspace(int) const noexcept override {
        return size() + std::max(patches_.workspace(), size() + std::max(attended(), mixed()) + narrow_);
    }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept override {
        const int width = spec_.width;
        float* const tokens = work;
        float* const scratch = tokens + size();
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
        Linear qkv, out, linear0, linear1;
    };
    struct ScaledQueries {
        std::vector<float> weight, bias;
    };

    // Floats of the tokens, and of what is computed of them meanwhile: queries, keys and values and what
    // attention makes of those, or what is hidden in the MLP.
    size_t size() const noexcept {
        return lines(static_cast<size_t>(tokens_) * static_cast<size_t>(spec_.width));
    }
    size_t attended() const noexcept {
        return lines(3 * static_cast<size_t>(tokens_) * static_cast<size_t>(spec_.width)) +
               attention_workspace();
    }
    size_t mixed() const noexcept { return lines(kGroup * static_cast<size_t>(spec_.hidden)); }

    // Queries come divided by the root of their size, as their products with keys are to be.
    ScaledQueries scaled_queries(const Weights& weights, const std::string& layer) const {
        const std::span<const float> weight = weights(layer + "qkv.weight"),
                                     bias = weights(layer + "qkv.bias");
        std::vector<float> w(weight.begin(), weight.end()), b(bias.begin(), bias.end());
        const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim_));
        const auto width = static_cast<size_t>(spec_.width);
        for (size_t i = 0; i < width * width; ++i) w[i] *= scale;
        for (size_t i = 0; i < width; ++i) b[i] *= scale;
        return {std::move(w), std::move(b)};
    }

    // y = LayerNorm(x). The kernel's eps is 1e-5: of inputs larger by a factor it is as much smaller.
    void normalise(const simd::Kernels& kernels, const float* x, int rows, const LayerNorm& norm,
                   float* y) const noexcept {
        const ptrdiff_t count = static_cast<ptrdiff_t>(rows) * spec_.width;
        for (ptrdiff_t i = 0; i < count; ++i) y[i] = x[i] * scale_;
        kernels.layer_norm(y, spec_.width, rows, spec_.width, norm.gamma.data(), norm.beta.data(),
                           simd::Act::none);
    }

    // y[r] = linear(act(x[r])), added to y if `accumulate`; overwrites x if there is an activation.
    void apply(const simd::Kernels& kernels, const Linear& linear, float* x, int rows, simd::Act act,
               float* y, bool accumulate, float* narrow) const noexcept {
        const ptrdiff_t in = linear.in(), out = linear.out();
        for (int r = 0; r < rows; r += kGroup) {
            const int count = std::min(kGroup, rows - r);
            linear.multiply(kernels, linear.read(kernels, x + r * in, in, count, act, narrow), count,
                            y + r * out, out, simd::Act::none, accumulate);
        }
    }

    void run(const simd::Kernels& kernels, const Layer& l, float* tokens, float* work) const noexcept {
        constexpr auto none = simd::Act::none;
        const int width = spec_.width;
        const simd::Bf16Kernels* const bf16 =
            l.qkv.precision() == simd::Precision::fp32 ? nullptr : simd::bf16_kernels();
        float* const narrow = work;
        float* const normed = narrow + narrow_;
        float* const wide = normed + size();
        normalise(kernels, tokens, tokens_, l.norm0, normed);
        apply(kernels, l.qkv, normed, tokens_, none, wide, false, narrow);
        float* const scratch = wide + lines(3 * static_cast<size_t>(tokens_) * static_cast<size_t>(width));
        for (int h = 0; h < spec_.heads; ++h) {
            const float* const queries = wide + h * head_dim_;
            float* const found = normed + h * head_dim_;
            if (bf16 != nullptr)
                attend_bf16(kernels, *bf16, queries, found, scratch);
            else
                attend(kernels, queries, found, scratch);
        }
        apply(kernels, l.out, normed, tokens_, none, tokens, true, narrow);
        normalise(kernels, tokens, tokens_, l.norm1, normed);
        for (int i = 0; i < tokens_; i += kGroup) {
            const int count = std::min(kGroup, tokens_ - i);
            const ptrdiff_t from = static_cast<ptrdiff_t>(i) * width;
            apply(kernels, l.linear0, normed + from, count, none, wide, false, narrow);
            apply(kernels, l.linear1, wide, count, simd::Act::gelu, tokens + from, true, narrow);
        }
    }

    size_t attention_workspace() const noexcept {
        const auto tokens = static_cast<size_t>(tokens_), head = static_cast<size_t>(head_dim_),
                   wide_tokens = static_cast<size_t>(simd::padded(tokens_)),
                   wide_head = static_cast<size_t>(simd::padded(head_dim_));
        const size_t fp32 = head * wide_tokens + tokens * wide_head, rows = static_cast<size_t>(pairs_row());
        const size_t bf16 = (3 * tokens + 1) * rows + (head + 1) * wide_tokens + (tokens + 1) * wide_head +
                            kQueries * static_cast<size_t>(scores_row());
        return std::max(fp32, lines(bf16) / 2 + 5 * 16) + kQueries * wide_tokens;
    }
    // Numbers in a row of bf16: of a head, and of what one query sees.
    ptrdiff_t pairs_row() const noexcept { return (head_dim_ + 31) / 32 * 32; }
    ptrdiff_t scores_row() const noexcept { return (tokens_ + 31) / 32 * 32; }

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

    // The same with products of bf16.
    void attend_bf16(const simd::Kernels& kernels, const simd::Bf16Kernels& bf16, const float* queries,
                     float* y, float* work) const noexcept {
        constexpr auto none = simd::Act::none;
        const int width = spec_.width, ld = 3 * width, score_ld = simd::padded(tokens_);
        const ptrdiff_t row = pairs_row(), seen_row = scores_row();
        float* const scores = work;
        auto* at = reinterpret_cast<uint16_t*>(scores + ptrdiff_t{kQueries} * score_ld);
        const auto take = [&at](ptrdiff_t count) {
            uint16_t* const here = at;
            at += (count + 31) / 32 * 32;
            return here;
        };
        // Rows of queries, keys and values; after the last value a row of zeros.
        uint16_t *const q = take(tokens_ * row), *const k = take(tokens_ * row),
                        *const v = take((tokens_ + 1) * row);
        bf16.convert(queries, ld, tokens_, head_dim_, q, row);
        bf16.convert(queries + width, ld, tokens_, head_dim_, k, row);
        bf16.convert(queries + 2 * width, ld, tokens_, head_dim_, v, row);
        std::fill_n(v + tokens_ * row, row, uint16_t{0});
        // Packed as simd::DenseBf16 has them, pair by pair: of a key two numbers, of two values one number.
        const int key_pairs = (head_dim_ + 1) / 2, value_pairs = (tokens_ + 1) / 2;
        uint16_t* const packed_keys = take(ptrdiff_t{2} * key_pairs * score_ld);
        uint16_t* to = packed_keys;
        for (int c0 = 0; c0 < tokens_; c0 += simd::kPanel) {
            const int columns = std::min(simd::kPanel, score_ld - c0),
                      there = std::min(columns, tokens_ - c0);
            for (int pair = 0; pair < key_pairs; ++pair, to += 2 * columns) {
                for (int c = 0; c < there; ++c)
                    std::memcpy(to + 2 * c, k + (c0 + c) * row + 2 * pair, 2 * sizeof *to);
                std::fill(to + 2 * there, to + 2 * columns, uint16_t{0});
            }
        }
        uint16_t* const packed_values = take(ptrdiff_t{2} * value_pairs * simd::padded(head_dim_));
        to = packed_values;
        for (int c0 = 0; c0 < head_dim_; c0 += simd::kPanel) {
            const int columns = std::min(simd::kPanel, simd::padded(head_dim_) - c0);
            for (int pair = 0; pair < value_pairs; ++pair, to += 2 * columns) {
                const uint16_t *const even = v + 2 * pair * row + c0, *const odd = even + row;
                for (int c = 0; c < columns; ++c) {
                    to[2 * c] = even[c];
                    to[2 * c + 1] = odd[c];
                }
            }
        }
        uint16_t* const seen = take(kQueries * seen_row);
        const simd::DenseBf16 score{packed_keys, no_bias_.data(), head_dim_, tokens_},
            mix{packed_values, no_bias_.data(), tokens_, head_dim_};
        for (int i = 0; i < tokens_; i += kQueries) {
            const int rows = std::min(kQueries, tokens_ - i);
            bf16.dense(score, q + i * row, row, rows, scores, score_ld, nullptr, 0, none, false);
            kernels.simnorm(scores, score_ld, rows, tokens_, tokens_);  // softmax
            bf16.convert(scores, score_ld, rows, tokens_, seen, seen_row);
            bf16.dense(mix, seen, seen_row, rows, y + static_cast<ptrdiff_t>(i) * width, width, nullptr, 0,
                       none, false);
        }
    }

    VitSpec spec_;
    Conv2d patches_;
    int first_, tokens_, head_dim_;  // first_: where the patches' tokens begin
    AlignedFloats position_, cls_;
    float scale_;
    size_t narrow_ = 0;  // floats of scratch for what a dense layer reads of a group
    LayerNorm norm_;
    AlignedFloats no_bias_;
    std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Block> make_vit(const VitSpec& spec, const Shape& in, Layout layout, const Weights& weights,
                                std::span<const simd::Precision> precisions,
                                std::span<const ActivationScale> activations) {
    return std::make_unique<Vit>(spec, in, layout, weights, precisions, activations);
}

}  // namespace pyjepa
