// adaln_transformer: LeWM's predictor. A causal transformer over the last states, each token modulated by the
// action taken in its state (AdaLN-zero, Peebles and Xie 2023); the output is the last token's.
//
// Exact savings over running the window anew at every step, all of them always on:
// - an action's modulations of all layers are computed once, when it is taken, and kept while it is looked
//   back on;
// - while the window grows, tokens stay where they are: their keys and values are kept, and only the new
//   token is computed. From then on all move by one position, so that all are computed anew;
// - of the last layer nobody reads the outputs of earlier tokens: of those it computes keys and values alone;
// - what follows the transformer sees the last token alone.
#include <algorithm>
#include <vector>

#include "model/block.hpp"
#include "model/dense.hpp"

namespace pyjepa {
namespace {

// Tokens that go through a layer together: enough of them that its weights are read seldom, few enough that
// what lies between its parts stays in L2.
constexpr int kGroup = 96;
// Candidates that forward, which keeps nothing, takes at once.
constexpr int kAlone = 8;

AlignedFloats copy_of(std::span<const float> from) {
    AlignedFloats to(from.size());
    std::copy(from.begin(), from.end(), to.data());
    return to;
}

struct Norm2 {
    AlignedFloats gamma, beta;
};

struct AdalnLayer {
    Norm2 norm0, norm1;
    PackedDense query, key_value, out, linear0, linear1;
};

class AdalnTransformer final : public Block {
  public:
    AdalnTransformer(const AdalnTransformerSpec& spec, int latent, int in, const Weights& weights)
        : spec_(spec),
          latent_(latent),
          in_(in),
          inner_(spec.heads * spec.head_dim),
          position_(static_cast<size_t>(spec.window) * static_cast<size_t>(simd::padded(spec.width))),
          action0_(weights("action0.weight"), weights("action0.bias"), in, spec.embedding),
          action1_(weights("action1.weight"), weights("action1.bias"), spec.embedding, spec.width),
          modulation_(all_modulations(weights)),
          norm_{copy_of(weights("norm.weight")), copy_of(weights("norm.bias"))} {
        const std::span<const float> position = weights("position");
        for (int t = 0; t < spec.window; ++t)
            std::copy_n(position.data() + static_cast<ptrdiff_t>(t) * spec.width, spec.width,
                        position_.data() + static_cast<ptrdiff_t>(t) * ld());
        if (spec.width != latent)
            input_.emplace_back(weights("input.weight"), weights("input.bias"), latent, spec.width);
        for (int d = 0; d < spec.depth; ++d) {
            const std::string layer = "layer" + std::to_string(d) + ".";
            const std::span<const float> qkv = weights(layer + "qkv.weight");
            const size_t queries = static_cast<size_t>(inner_) * static_cast<size_t>(spec.width);
            const std::vector<float> none(static_cast<size_t>(2 * inner_));
            const std::span<const float> no_bias(none);
            const auto dense = [&](const char* name, int inputs, int outputs) {
                return PackedDense(weights(layer + name + ".weight"), weights(layer + name + ".bias"), inputs,
                                   outputs);
            };
            const auto norm = [&](const char* name) {
                return Norm2{copy_of(weights(layer + name + ".weight")),
                             copy_of(weights(layer + name + ".bias"))};
            };
            layers_.push_back({norm("norm0"), norm("norm1"),
                               PackedDense(qkv.first(queries), no_bias.first(static_cast<size_t>(inner_)),
                                           spec.width, inner_),
                               PackedDense(qkv.subspan(queries), no_bias, spec.width, 2 * inner_),
                               dense("out", inner_, spec.width), dense("linear0", spec.width, spec.hidden),
                               dense("linear1", spec.hidden, spec.width)});
        }
    }

    size_t past_size() const noexcept override {
        return static_cast<size_t>(spec_.window) * (state_size() + modulation_size()) + cache_size();
    }

    // Of a rollout, and behind it what forward keeps meanwhile.
    size_t workspace(int rows) const noexcept override {
        const auto alone = static_cast<size_t>(std::min(rows, kAlone));
        return step_workspace(rows) + alone * past_size();
    }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept override {
        const Past past{work + step_workspace(rows), static_cast<ptrdiff_t>(past_size()), 0};
        for (int r = 0; r < rows; r += kAlone, x += kAlone * ldx, y += kAlone * ldy)
            advance(kernels, x, ldx, std::min(kAlone, rows - r), y, ldy, accumulate, work, past);
    }

    void advance(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work, const Past& past) const noexcept override {
        const int window = spec_.window, step = past.step;
        const int length = std::min(step + 1, window);  // tokens of the window
        const int fresh = step < window ? 1 : window;   // of these, computed at this step: the last ones
        float* const tokens = work;                     // (fresh, rows, width)
        float* const scratch = tokens + token_size(rows) * window;

        keep(kernels, x, ldx, rows, scratch, past);
        for (int i = 0; i < fresh; ++i) {
            const int position = length - fresh + i, slot = (step - fresh + 1 + i) % window;
            embed(kernels, past.rows + state_at(slot), past.ld, rows, position,
                  tokens + token_size(rows) * i);
        }
        for (int d = 0; d < spec_.depth; ++d) {
            const int count = std::max(1, kGroup / fresh);
            for (int r = 0; r < rows; r += count)
                run_layer(kernels, d, tokens, rows, r, std::min(count, rows - r), fresh, past, scratch);
        }
        float* const last = tokens + token_size(rows) * (fresh - 1);
        kernels.layer_norm(last, ld(), rows, spec_.width, norm_.gamma.data(), norm_.beta.data(),
                           simd::Act::none);
        if (accumulate)
            kernels.add(last, ld(), rows, spec_.width, y, ldy);
        else
            for (int r = 0; r < rows; ++r) std::copy_n(last + r * ld(), spec_.width, y + r * ldy);
    }

    bool in_place() const noexcept override { return true; }

    double flops() const noexcept override { return flops(1); }
    double flops(int steps) const noexcept override {
        const double width = spec_.width, inner = inner_, hidden = spec_.hidden;
        const double action =
            in_ * double{1.0} * spec_.embedding + spec_.embedding * width + 6.0 * spec_.depth * width * width;
        const double input = input_.empty() ? 0.0 : latent_ * width;
        const double keys = 2.0 * width * inner, rest = 2.0 * width * inner + 2.0 * width * hidden;
        double total = 0.0;
        for (int step = 0; step < steps; ++step) {
            const int length = std::min(step + 1, spec_.window),
                      fresh = step < spec_.window ? 1 : spec_.window;
            total += action + fresh * (input + spec_.depth * keys) + (fresh * (spec_.depth - 1) + 1) * rest;
            // Scores and sums of values: of each fresh token with itself and those before it.
            for (int i = 0; i < fresh; ++i)
                total += 2.0 * inner * (length - i) * (i == 0 ? spec_.depth : spec_.depth - 1);
        }
        return 2.0 * total;
    }

  private:
    ptrdiff_t ld() const noexcept { return simd::padded(spec_.width); }
    ptrdiff_t token_size(int rows) const noexcept { return ld() * rows; }

    // ---- a row's memory: states and modulations of the last actions, each in the slot of its step, then
    // keys and values, layer by layer, of all tokens of a growing window but its last one
    size_t state_size() const noexcept { return static_cast<size_t>(simd::padded(latent_)); }
    size_t modulation_size() const noexcept {
        return static_cast<size_t>(simd::padded(6 * spec_.width * spec_.depth));
    }
    size_t cache_size() const noexcept {
        return static_cast<size_t>(spec_.depth) * static_cast<size_t>(spec_.window - 1) *
               static_cast<size_t>(cached());
    }
    ptrdiff_t cached() const noexcept { return simd::padded(2 * inner_); }
    ptrdiff_t state_at(int slot) const noexcept { return slot * static_cast<ptrdiff_t>(state_size()); }
    ptrdiff_t modulation_at(int slot) const noexcept {
        return state_at(spec_.window) + slot * static_cast<ptrdiff_t>(modulation_size());
    }
    ptrdiff_t cache_at(int layer, int token) const noexcept {
        return modulation_at(spec_.window) +
               (static_cast<ptrdiff_t>(layer) * (spec_.window - 1) + token) * cached();
    }

    // ---- scratch: all tokens, then what a group of them needs within a layer, or the actions' embedding
    int group_rows() const noexcept { return std::max(kGroup, spec_.window); }
    size_t scratch(int rows) const noexcept {
        const size_t attention = static_cast<size_t>(simd::padded(inner_)) + static_cast<size_t>(cached());
        const size_t wide = std::max(attention, static_cast<size_t>(simd::padded(spec_.hidden)));
        const size_t group = static_cast<size_t>(group_rows()) * (static_cast<size_t>(ld()) + wide);
        const size_t action = static_cast<size_t>(simd::padded(spec_.embedding)) + static_cast<size_t>(ld());
        return std::max(group, static_cast<size_t>(rows) * action);
    }
    size_t step_workspace(int rows) const noexcept {
        return static_cast<size_t>(token_size(rows)) * static_cast<size_t>(spec_.window) + scratch(rows);
    }

    // The weights that make of an embedded action the modulations of all layers, one after the other.
    PackedDense all_modulations(const Weights& weights) const {
        std::vector<float> weight, bias;
        for (int d = 0; d < spec_.depth; ++d) {
            const std::string layer = "layer" + std::to_string(d) + ".modulation.";
            const auto w = weights(layer + "weight"), b = weights(layer + "bias");
            weight.insert(weight.end(), w.begin(), w.end());
            bias.insert(bias.end(), b.begin(), b.end());
        }
        return {weight, bias, spec_.width, 6 * spec_.width * spec_.depth};
    }

    // This step's state and what its action modulates by, to the past.
    void keep(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* work,
              const Past& past) const noexcept {
        const int slot = past.step % spec_.window;
        const ptrdiff_t hidden_ld = simd::padded(spec_.embedding);
        float* const hidden = work;
        float* const condition = hidden + hidden_ld * rows;
        for (int r = 0; r < rows; ++r)
            std::copy_n(x + r * ldx, latent_, past.rows + r * past.ld + state_at(slot));
        kernels.dense(action0_.view(), x + latent_, ldx, rows, hidden, hidden_ld, simd::Act::silu, false);
        // SiLU begins every layer's modulation.
        kernels.dense(action1_.view(), hidden, hidden_ld, rows, condition, ld(), simd::Act::silu, false);
        kernels.dense(modulation_.view(), condition, ld(), rows, past.rows + modulation_at(slot), past.ld,
                      simd::Act::none, false);
    }

    void embed(const simd::Kernels& kernels, const float* states, ptrdiff_t lds, int rows, int position,
               float* tokens) const noexcept {
        if (!input_.empty())
            kernels.dense(input_.front().view(), states, lds, rows, tokens, ld(), simd::Act::none, false);
        else
            for (int r = 0; r < rows; ++r) std::copy_n(states + r * lds, latent_, tokens + r * ld());
        kernels.add(position_.data() + position * ld(), 0, rows, spec_.width, tokens, ld());
    }

    // One layer for `count` candidates from `first` on: `fresh` tokens each.
    void run_layer(const simd::Kernels& kernels, int layer, float* tokens, int rows, int first, int count,
                   int fresh, const Past& past, float* work) const noexcept {
        const AdalnLayer& l = layers_[static_cast<size_t>(layer)];
        const int width = spec_.width, window = spec_.window, step = past.step;
        const int length = std::min(step + 1, window), all = count * fresh;
        const bool last = layer + 1 == spec_.depth;
        const int from = last ? fresh - 1 : 0, read = last ? count : all;  // tokens whose output is read
        const ptrdiff_t row = ld(), inner_ld = simd::padded(inner_), hidden_ld = simd::padded(spec_.hidden);
        float* const normed = work;  // (fresh, count, width)
        float* const wide = normed + row * group_rows();
        float* const queries = wide;  // (fresh, count, inner)
        float* const key_values = queries + inner_ld * group_rows();
        float* const kept = past.rows + first * past.ld;
        const auto token = [&](int i) { return tokens + token_size(rows) * i + first * row; };
        const auto modulation = [&](int i, int part) {
            return kept + modulation_at((step - fresh + 1 + i) % window) + (6 * layer + part) * width;
        };
        const auto normalise = [&](int i, int part, const Norm2& norm) {
            kernels.modulated_norm(token(i), row, count, width, modulation(i, part), modulation(i, part + 1),
                                   past.ld, norm.gamma.data(), norm.beta.data(), normed + i * count * row,
                                   row);
        };

        for (int i = 0; i < fresh; ++i) normalise(i, 0, l.norm0);
        // Kept where a later step of a growing window will read them.
        const bool keeps = step + 1 < window;
        float* const to = keeps ? kept + cache_at(layer, step) : key_values;
        const ptrdiff_t to_ld = keeps ? past.ld : cached();
        kernels.dense(l.key_value.view(), normed, row, all, to, to_ld, simd::Act::none, false);
        kernels.dense(l.query.view(), normed + from * count * row, row, read,
                      queries + from * count * inner_ld, inner_ld, simd::Act::none, false);
        simd::Token keys[simd::kMaxWindow];
        for (int i = 0; i < length - fresh; ++i) keys[i] = {kept + cache_at(layer, i), past.ld};
        for (int i = 0; i < fresh; ++i) keys[length - fresh + i] = {to + i * count * to_ld, to_ld};
        for (int i = from; i < fresh; ++i)
            kernels.attend(queries + i * count * inner_ld, inner_ld, keys, length - fresh + i + 1, count,
                           spec_.heads, spec_.head_dim);
        float* const result = normed + from * count * row;
        kernels.dense(l.out.view(), queries + from * count * inner_ld, inner_ld, read, result, row,
                      simd::Act::none, false);
        for (int i = from; i < fresh; ++i) {
            kernels.add_gated(normed + i * count * row, row, modulation(i, 2), past.ld, count, width,
                              token(i), row);
            normalise(i, 3, l.norm1);
        }
        kernels.dense(l.linear0.view(), result, row, read, wide, hidden_ld, simd::Act::gelu, false);
        kernels.dense(l.linear1.view(), wide, hidden_ld, read, result, row, simd::Act::none, false);
        for (int i = from; i < fresh; ++i)
            kernels.add_gated(normed + i * count * row, row, modulation(i, 5), past.ld, count, width,
                              token(i), row);
    }

    AdalnTransformerSpec spec_;
    int latent_, in_, inner_;
    AlignedFloats position_;          // (window, ld)
    std::vector<PackedDense> input_;  // one where the state is not as wide as the tokens
    PackedDense action0_, action1_, modulation_;
    Norm2 norm_;
    std::vector<AdalnLayer> layers_;
};

}  // namespace

std::unique_ptr<Block> make_adaln_transformer(const AdalnTransformerSpec& spec, int latent, int in,
                                              const Weights& weights) {
    return std::make_unique<AdalnTransformer>(spec, latent, in, weights);
}

}  // namespace pyjepa
