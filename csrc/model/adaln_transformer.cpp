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
#include "model/linear.hpp"

namespace pyjepa {
namespace {

using simd::Precision;

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
    Linear modulation, query, key_value, out, linear0, linear1;
};

class AdalnTransformer final : public Block {
  public:
    AdalnTransformer(const AdalnTransformerSpec& spec, int latent, int in, const Weights& weights,
                     std::span<const Precision> precisions, std::span<const ActivationScale> activations)
        : spec_(spec),
          latent_(latent),
          in_(in),
          inner_(spec.heads * spec.head_dim),
          position_(static_cast<size_t>(spec.window) * static_cast<size_t>(simd::padded(spec.width))),
          action0_(weights("action0.weight"), weights("action0.bias"), in, spec.embedding),
          action1_(weights("action1.weight"), weights("action1.bias"), spec.embedding, spec.width,
                   precisions[0], scale_of(activations, 0)),
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
            const auto first = static_cast<size_t>(2 + 4 * d);
            const auto dense = [&](const char* name, int inputs, int outputs, size_t which) {
                return Linear(weights(layer + name + ".weight"), weights(layer + name + ".bias"), inputs,
                              outputs, precisions[which], scale_of(activations, which));
            };
            const auto norm = [&](const char* name) {
                return Norm2{copy_of(weights(layer + name + ".weight")),
                             copy_of(weights(layer + name + ".bias"))};
            };
            layers_.push_back({norm("norm0"), norm("norm1"),
                               dense("modulation", spec.width, 6 * spec.width, 1),
                               Linear(qkv.first(queries), no_bias.first(static_cast<size_t>(inner_)),
                                      spec.width, inner_, precisions[first], scale_of(activations, first)),
                               Linear(qkv.subspan(queries), no_bias, spec.width, 2 * inner_,
                                      precisions[first], scale_of(activations, first)),
                               dense("out", inner_, spec.width, first + 1),
                               dense("linear0", spec.width, spec.hidden, first + 2),
                               dense("linear1", spec.hidden, spec.width, first + 3)});
        }
    }

    size_t past_size() const noexcept override {
        const auto window = static_cast<size_t>(spec_.window), depth = static_cast<size_t>(spec_.depth);
        return window * (static_cast<size_t>(state_ld()) + depth * static_cast<size_t>(modulation_ld())) +
               depth * (window - 1) * static_cast<size_t>(key_value_ld());
    }

    // Of a rollout, and behind it what forward keeps meanwhile.
    size_t workspace(int rows) const noexcept override { return step_workspace(rows) + kAlone * past_size(); }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept override {
        const Past past{work + step_workspace(rows), kAlone, 0};
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
            embed(kernels, states(past, slot), rows, position, tokens + token_size(rows) * i);
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

    void move(const Past& past, int from, int to) const noexcept override {
        const auto copy = [&](float* rows, ptrdiff_t ld) {
            std::copy_n(rows + from * ld, ld, rows + to * ld);
        };
        for (int slot = 0; slot < std::min(past.step, spec_.window); ++slot) {
            copy(states(past, slot), state_ld());
            for (int d = 0; d < spec_.depth; ++d) copy(modulations(past, d, slot), modulation_ld());
        }
        if (past.step < spec_.window)
            for (int d = 0; d < spec_.depth; ++d)
                for (int token = 0; token < past.step; ++token)
                    copy(key_values(past, d, token), key_value_ld());
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

    std::unique_ptr<BlockGradient> differentiate() const override;

  private:
    friend class AdalnGradient;

    ptrdiff_t ld() const noexcept { return simd::padded(spec_.width); }
    ptrdiff_t token_size(int rows) const noexcept { return ld() * rows; }

    // ---- the past: states and modulations of the last actions, each in the slot of its step; keys and
    // values of all tokens of a growing window but its last one. Rows lie side by side, so that reading one
    // after the other is reading on.
    ptrdiff_t state_ld() const noexcept { return simd::padded(latent_); }
    ptrdiff_t modulation_ld() const noexcept { return simd::padded(6 * spec_.width); }
    ptrdiff_t key_value_ld() const noexcept { return simd::padded(2 * inner_); }
    float* states(const Past& past, int slot) const noexcept {
        return past.floats + past.capacity * state_ld() * slot;
    }
    float* modulations(const Past& past, int layer, int slot) const noexcept {
        return states(past, spec_.window) +
               past.capacity * modulation_ld() * (static_cast<ptrdiff_t>(layer) * spec_.window + slot);
    }
    float* key_values(const Past& past, int layer, int token) const noexcept {
        return modulations(past, spec_.depth, 0) +
               past.capacity * key_value_ld() * (static_cast<ptrdiff_t>(layer) * (spec_.window - 1) + token);
    }

    // ---- scratch: all tokens, then what a group of them needs within a layer, or the actions' embedding
    int group_rows() const noexcept { return std::max(kGroup, spec_.window); }
    size_t wide() const noexcept {
        return std::max(static_cast<size_t>(simd::padded(inner_)) + static_cast<size_t>(key_value_ld()),
                        static_cast<size_t>(simd::padded(spec_.hidden)));
    }
    size_t scratch(int rows) const noexcept {
        size_t narrow = 0;
        for (const AdalnLayer& l : layers_)
            for (const Linear* linear : {&l.key_value, &l.out, &l.linear0, &l.linear1})
                narrow = std::max(narrow, linear->scratch(group_rows()));
        const size_t group =
            static_cast<size_t>(group_rows()) * (static_cast<size_t>(ld()) + wide()) + narrow;
        const size_t action = static_cast<size_t>(simd::padded(spec_.embedding)) + static_cast<size_t>(ld());
        return std::max(group,
                        static_cast<size_t>(rows) * action +
                            std::max(action1_.scratch(rows), layers_.front().modulation.scratch(rows)));
    }
    size_t step_workspace(int rows) const noexcept {
        return static_cast<size_t>(token_size(rows)) * static_cast<size_t>(spec_.window) + scratch(rows);
    }

    // This step's state and what its action modulates by, to the past.
    void keep(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* work,
              const Past& past) const noexcept {
        const int slot = past.step % spec_.window;
        const ptrdiff_t hidden_ld = simd::padded(spec_.embedding);
        float* const hidden = work;
        float* const condition = hidden + hidden_ld * rows;
        for (int r = 0; r < rows; ++r) std::copy_n(x + r * ldx, latent_, states(past, slot) + r * state_ld());
        float* const narrow = condition + ld() * rows;
        // SiLU ends the first layer of the action's MLP, and begins every layer's modulation.
        constexpr auto silu = simd::Act::silu;
        kernels.dense(action0_.view(), x + latent_, ldx, rows, hidden, hidden_ld, simd::Act::none, false);
        action1_.multiply(kernels, action1_.read(kernels, hidden, hidden_ld, rows, silu, narrow), rows,
                          condition, ld());
        const Linear::Rows seen =
            layers_.front().modulation.read(kernels, condition, ld(), rows, silu, narrow);
        for (int d = 0; d < spec_.depth; ++d)
            layers_[static_cast<size_t>(d)].modulation.multiply(kernels, seen, rows,
                                                                modulations(past, d, slot), modulation_ld());
    }

    void embed(const simd::Kernels& kernels, const float* states, int rows, int position,
               float* tokens) const noexcept {
        if (!input_.empty())
            kernels.dense(input_.front().view(), states, state_ld(), rows, tokens, ld(), simd::Act::none,
                          false);
        else
            for (int r = 0; r < rows; ++r) std::copy_n(states + r * state_ld(), latent_, tokens + r * ld());
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
        float* const queries = wide;                           // (fresh, count, inner)
        float* const own = queries + inner_ld * group_rows();  // keys and values
        float* const narrow = wide + static_cast<ptrdiff_t>(this->wide()) * group_rows();
        const auto token = [&](int i) { return tokens + token_size(rows) * i + first * row; };
        const auto modulation = [&](int i, int part) {
            return modulations(past, layer, (step - fresh + 1 + i) % window) + first * modulation_ld() +
                   part * width;
        };
        const auto normalise = [&](int i, int part, const Norm2& norm) {
            kernels.modulated_norm(token(i), row, count, width, modulation(i, part), modulation(i, part + 1),
                                   modulation_ld(), norm.gamma.data(), norm.beta.data(),
                                   normed + i * count * row, row);
        };

        for (int i = 0; i < fresh; ++i) normalise(i, 0, l.norm0);
        // Kept where a later step of a growing window will read them.
        const ptrdiff_t kept_ld = key_value_ld();
        const auto kept = [&](int i) { return key_values(past, layer, i) + first * kept_ld; };
        float* const to = step + 1 < window ? kept(step) : own;
        constexpr auto none = simd::Act::none;
        const Linear::Rows seen = l.key_value.read(kernels, normed, row, all, none, narrow);
        l.key_value.multiply(kernels, seen, all, to, kept_ld);
        l.query.multiply(kernels, seen.from(from * count), read, queries + from * count * inner_ld, inner_ld);
        simd::Token keys[simd::kMaxWindow];
        for (int i = 0; i < length - fresh; ++i) keys[i] = {kept(i), kept_ld};
        for (int i = 0; i < fresh; ++i) keys[length - fresh + i] = {to + i * count * kept_ld, kept_ld};
        for (int i = from; i < fresh; ++i)
            kernels.attend(queries + i * count * inner_ld, inner_ld, keys, length - fresh + i + 1, count,
                           spec_.heads, spec_.head_dim);
        float* const result = normed + from * count * row;
        l.out.multiply(kernels,
                       l.out.read(kernels, queries + from * count * inner_ld, inner_ld, read, none, narrow),
                       read, result, row);
        for (int i = from; i < fresh; ++i) {
            kernels.add_gated(normed + i * count * row, row, modulation(i, 2), modulation_ld(), count, width,
                              token(i), row);
            normalise(i, 3, l.norm1);
        }
        l.linear0.multiply(kernels, l.linear0.read(kernels, result, row, read, none, narrow), read, wide,
                           hidden_ld);
        l.linear1.multiply(kernels, l.linear1.read(kernels, wide, hidden_ld, read, simd::Act::gelu, narrow),
                           read, result, row);
        for (int i = from; i < fresh; ++i)
            kernels.add_gated(normed + i * count * row, row, modulation(i, 5), modulation_ld(), count, width,
                              token(i), row);
    }

    AdalnTransformerSpec spec_;
    int latent_, in_, inner_;
    AlignedFloats position_;          // (window, ld)
    std::vector<PackedDense> input_;  // one where the state is not as wide as the tokens
    PackedDense action0_;
    Linear action1_;
    Norm2 norm_;
    std::vector<AdalnLayer> layers_;
};

// The whole window at every step, forward with a tape and back. On the tape, in this order: the actions' MLP
// (before its activations), then for every layer what entered it, its modulations, queries, keys and values,
// what attention found and the MLP's hidden units before GELU, and where the two branches joined; at the end
// what entered the last norm. Rows lie token by token: (tokens, rows).
class AdalnGradient final : public BlockGradient {
  public:
    explicit AdalnGradient(const AdalnTransformer& block) : b_(block) {
        for (const PackedDense& input : b_.input_) input_.push_back(input.transposed());
        embedding_.push_back(b_.action0_.transposed());
        embedding_.push_back(b_.action1_.fp32().transposed());
        for (const AdalnLayer& l : b_.layers_)
            layers_.push_back({l.modulation.fp32().transposed(), l.query.fp32().transposed(),
                               l.key_value.fp32().transposed(), l.out.fp32().transposed(),
                               l.linear0.fp32().transposed(), l.linear1.fp32().transposed()});
    }

    int window() const noexcept override { return b_.spec_.window; }
    size_t tape(int rows) const noexcept override {
        float* const nothing = nullptr;
        Tape t{};
        return static_cast<size_t>(lay_out(nothing, rows, t) - nothing) +
               layer_size(rows) * static_cast<size_t>(b_.spec_.depth) +
               static_cast<size_t>(rows * b_.spec_.window) * static_cast<size_t>(b_.ld());
    }
    // Four rows as wide as a token, two as wide as anything, and one of modulations, for every token.
    size_t workspace(int rows) const noexcept override {
        return static_cast<size_t>(rows * b_.spec_.window) *
               static_cast<size_t>(4 * b_.ld() + 2 * widest() + b_.modulation_ld());
    }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* tape, float* work) const noexcept override {
        forward_steps(kernels, x, ldx, Steps{}, rows, y, ldy, accumulate, tape, work);
    }
    void backward(const simd::Kernels& kernels, const float* tape, float* dy, ptrdiff_t lddy, int rows,
                  float* dx, ptrdiff_t lddx, float* work) const noexcept override {
        backward_steps(kernels, tape, dy, lddy, Steps{}, rows, dx, lddx, work);
    }

    void forward_steps(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, const Steps& steps,
                       int rows, float* y, ptrdiff_t ldy, bool accumulate, float* tape,
                       float* work) const noexcept override {
        const int width = b_.spec_.width, hidden = b_.spec_.hidden, all = steps.count * rows;
        const ptrdiff_t ld = b_.ld(), hidden_ld = simd::padded(hidden);
        constexpr auto none = simd::Act::none, silu = simd::Act::silu;
        Tape t{};
        float* at = lay_out(tape, rows, t);
        float* const normed = work;
        float* const condition = normed + ld * all;
        float* const wide = condition + ld * all;
        Layer first{};
        lay_out(at, rows, first);
        for (int i = 0; i < steps.count; ++i) {
            const float* const from = x - (steps.count - 1 - i) * steps.apart;
            kernels.dense(b_.action0_.view(), from + b_.latent_, ldx, rows,
                          t.embedded + i * rows * embedding_ld(), embedding_ld(), none, false);
            float* const tokens = first.x + i * rows * ld;
            if (!b_.input_.empty())
                kernels.dense(b_.input_.front().view(), from, ldx, rows, tokens, ld, none, false);
            else
                for (int r = 0; r < rows; ++r) std::copy_n(from + r * ldx, width, tokens + r * ld);
            kernels.add(b_.position_.data() + i * ld, 0, rows, width, tokens, ld);
        }
        copy(t.embedded, all * embedding_ld(), wide);
        kernels.activate(wide, embedding_ld(), all, b_.spec_.embedding, silu);
        kernels.dense(b_.action1_.fp32().view(), wide, embedding_ld(), all, t.condition, ld, none, false);
        copy(t.condition, all * ld, condition);
        kernels.activate(condition, ld, all, width, silu);
        for (const AdalnLayer& l : b_.layers_) {
            Layer tl{};
            at = lay_out(at, rows, tl);
            const ptrdiff_t mod = b_.modulation_ld();
            const auto part = [&](int which) { return tl.modulation + which * width; };
            kernels.dense(l.modulation.fp32().view(), condition, ld, all, tl.modulation, mod, none, false);
            kernels.modulated_norm(tl.x, ld, all, width, part(0), part(1), mod, l.norm0.gamma.data(),
                                   l.norm0.beta.data(), normed, ld);
            kernels.dense(l.query.fp32().view(), normed, ld, all, tl.queries, inner_ld(), none, false);
            kernels.dense(l.key_value.fp32().view(), normed, ld, all, tl.key_values, b_.key_value_ld(), none,
                          false);
            copy(tl.queries, all * inner_ld(), wide);
            simd::Token keys[simd::kMaxWindow];
            for (int i = 0; i < steps.count; ++i) {
                keys[i] = {tl.key_values + i * rows * b_.key_value_ld(), b_.key_value_ld()};
                kernels.attend(wide + i * rows * inner_ld(), inner_ld(), keys, i + 1, rows, b_.spec_.heads,
                               b_.spec_.head_dim);
            }
            kernels.dense(l.out.fp32().view(), wide, inner_ld(), all, tl.found, ld, none, false);
            copy(tl.x, all * ld, tl.joined);
            kernels.add_gated(tl.found, ld, part(2), mod, all, width, tl.joined, ld);
            kernels.modulated_norm(tl.joined, ld, all, width, part(3), part(4), mod, l.norm1.gamma.data(),
                                   l.norm1.beta.data(), normed, ld);
            kernels.dense(l.linear0.fp32().view(), normed, ld, all, tl.hidden, hidden_ld, none, false);
            copy(tl.hidden, all * hidden_ld, wide);
            kernels.activate(wide, hidden_ld, all, hidden, simd::Act::gelu);
            kernels.dense(l.linear1.fp32().view(), wide, hidden_ld, all, tl.mixed, ld, none, false);
            float* const next = at;  // where the next layer, or the last norm, begins
            copy(tl.joined, all * ld, next);
            kernels.add_gated(tl.mixed, ld, part(5), mod, all, width, next, ld);
        }
        copy(at + (all - rows) * ld, rows * ld, normed);
        kernels.layer_norm(normed, ld, rows, width, b_.norm_.gamma.data(), b_.norm_.beta.data(), none);
        if (accumulate)
            kernels.add(normed, ld, rows, width, y, ldy);
        else
            for (int r = 0; r < rows; ++r) std::copy_n(normed + r * ld, width, y + r * ldy);
    }

    void backward_steps(const simd::Kernels& kernels, const float* tape, float* dy, ptrdiff_t lddy,
                        const Steps& steps, int rows, float* dx, ptrdiff_t lddx,
                        float* work) const noexcept override {
        const int width = b_.spec_.width, hidden = b_.spec_.hidden, all = steps.count * rows;
        const ptrdiff_t ld = b_.ld(), mod = b_.modulation_ld(), hidden_ld = simd::padded(hidden);
        constexpr auto none = simd::Act::none, silu = simd::Act::silu;
        float* const g = work;  // dL/d tokens
        float* const conditions = g + ld * all;
        float* const branch = conditions + ld * all;
        float* const normed = branch + ld * all;
        float* const wide = normed + ld * all;
        float* const other = wide + widest() * all;
        float* const modulation = other + widest() * all;
        Tape t{};
        float* const read = const_cast<float*>(tape);  // laid out as it was written; only read
        float* const layers = lay_out(read, rows, t);
        const auto layer_at = [&](int d) { return layers + static_cast<ptrdiff_t>(layer_size(rows)) * d; };
        std::fill_n(g, all * ld, 0.0f);
        std::fill_n(conditions, all * ld, 0.0f);
        float* const newest = g + (all - rows) * ld;
        for (int r = 0; r < rows; ++r) std::copy_n(dy + r * lddy, width, newest + r * ld);
        kernels.layer_norm_backward(layer_at(b_.spec_.depth) + (all - rows) * ld, ld, rows, width,
                                    b_.norm_.gamma.data(), newest, ld);
        for (int d = b_.spec_.depth; d-- > 0;) {
            const AdalnLayer& l = b_.layers_[static_cast<size_t>(d)];
            const Transposed& back = layers_[static_cast<size_t>(d)];
            Layer tl{};
            lay_out(layer_at(d), rows, tl);
            const auto part = [&](int which) { return tl.modulation + which * width; };
            const auto to = [&](int which) { return modulation + which * width; };
            kernels.gate_backward(tl.mixed, ld, part(5), mod, all, width, g, ld, branch, ld, to(5), mod);
            kernels.dense(back.linear1.view(), branch, ld, all, wide, hidden_ld, none, false);
            kernels.activate_backward(tl.hidden, hidden_ld, all, hidden, simd::Act::gelu, wide, hidden_ld);
            kernels.dense(back.linear0.view(), wide, hidden_ld, all, normed, ld, none, false);
            kernels.modulated_norm_backward(tl.joined, ld, all, width, part(3), part(4), mod,
                                            l.norm1.gamma.data(), normed, ld, to(3), to(4), mod);
            kernels.add(normed, ld, all, width, g, ld);
            kernels.gate_backward(tl.found, ld, part(2), mod, all, width, g, ld, branch, ld, to(2), mod);
            kernels.dense(back.out.view(), branch, ld, all, wide, inner_ld(), none, false);
            simd::Token keys[simd::kMaxWindow];
            float* slopes[simd::kMaxWindow];
            std::fill_n(other, all * b_.key_value_ld(), 0.0f);
            for (int i = 0; i < steps.count; ++i) {
                const ptrdiff_t token = i * rows * b_.key_value_ld();
                keys[i] = {tl.key_values + token, b_.key_value_ld()};
                slopes[i] = other + token;
                kernels.attend_backward(tl.queries + i * rows * inner_ld(), inner_ld(), keys, slopes, i + 1,
                                        rows, b_.spec_.heads, b_.spec_.head_dim, wide + i * rows * inner_ld(),
                                        inner_ld());
            }
            kernels.dense(back.query.view(), wide, inner_ld(), all, normed, ld, none, false);
            kernels.dense(back.key_value.view(), other, b_.key_value_ld(), all, normed, ld, none, true);
            kernels.modulated_norm_backward(tl.x, ld, all, width, part(0), part(1), mod, l.norm0.gamma.data(),
                                            normed, ld, to(0), to(1), mod);
            kernels.add(normed, ld, all, width, g, ld);
            kernels.dense(back.modulation.view(), modulation, mod, all, conditions, ld, none, true);
        }
        kernels.activate_backward(t.condition, ld, all, width, silu, conditions, ld);
        kernels.dense(embedding_[1].view(), conditions, ld, all, wide, embedding_ld(), none, false);
        kernels.activate_backward(t.embedded, embedding_ld(), all, b_.spec_.embedding, silu, wide,
                                  embedding_ld());
        for (int i = 0; i < steps.count; ++i) {
            float* const to = dx - (steps.count - 1 - i) * steps.apart;
            const float* const tokens = g + i * rows * ld;
            if (!input_.empty())
                kernels.dense(input_.front().view(), tokens, ld, rows, to, lddx, none, false);
            else
                for (int r = 0; r < rows; ++r) std::copy_n(tokens + r * ld, width, to + r * lddx);
            kernels.dense(embedding_[0].view(), wide + i * rows * embedding_ld(), embedding_ld(), rows,
                          to + b_.latent_, lddx, none, false);
        }
    }

  private:
    struct Transposed {
        PackedDense modulation, query, key_value, out, linear0, linear1;
    };
    struct Tape {
        float *embedded, *condition;
    };
    struct Layer {
        float *x, *modulation, *queries, *key_values, *found, *joined, *hidden, *mixed;
    };

    ptrdiff_t inner_ld() const noexcept { return simd::padded(b_.inner_); }
    ptrdiff_t embedding_ld() const noexcept { return simd::padded(b_.spec_.embedding); }
    ptrdiff_t widest() const noexcept {
        return std::max({inner_ld(), b_.key_value_ld(), embedding_ld(),
                         static_cast<ptrdiff_t>(simd::padded(b_.spec_.hidden))});
    }
    size_t layer_size(int rows) const noexcept {
        float* const nothing = nullptr;
        Layer l{};
        return static_cast<size_t>(lay_out(nothing, rows, l) - nothing);
    }
    // Where things are on a tape from `at` on; returns where it goes on.
    float* lay_out(float* at, int rows, Layer& l) const noexcept {
        const ptrdiff_t tokens = static_cast<ptrdiff_t>(rows) * b_.spec_.window, ld = b_.ld();
        const auto place = [&](float*& where, ptrdiff_t row) {
            where = at;
            at += tokens * row;
        };
        place(l.x, ld);
        place(l.modulation, b_.modulation_ld());
        place(l.queries, inner_ld());
        place(l.key_values, b_.key_value_ld());
        place(l.found, ld);
        place(l.joined, ld);
        place(l.hidden, simd::padded(b_.spec_.hidden));
        place(l.mixed, ld);
        return at;
    }
    float* lay_out(float* at, int rows, Tape& t) const noexcept {
        const ptrdiff_t tokens = static_cast<ptrdiff_t>(rows) * b_.spec_.window;
        t.embedded = at;
        t.condition = t.embedded + tokens * embedding_ld();
        return t.condition + tokens * b_.ld();
    }

    static void copy(const float* from, ptrdiff_t count, float* to) noexcept { std::copy_n(from, count, to); }

    const AdalnTransformer& b_;
    std::vector<PackedDense> input_, embedding_;
    std::vector<Transposed> layers_;
};

std::unique_ptr<BlockGradient> AdalnTransformer::differentiate() const {
    const auto fp32 = [](const Linear& l) { return l.precision() == Precision::fp32; };
    const bool differentiable =
        fp32(action1_) && std::all_of(layers_.begin(), layers_.end(), [&](const AdalnLayer& l) {
            return fp32(l.modulation) && fp32(l.query) && fp32(l.key_value) && fp32(l.out) &&
                   fp32(l.linear0) && fp32(l.linear1);
        });
    if (!differentiable) return nullptr;
    return std::make_unique<AdalnGradient>(*this);
}

}  // namespace

std::unique_ptr<Block> make_adaln_transformer(const AdalnTransformerSpec& spec, int latent, int in,
                                              const Weights& weights, std::span<const Precision> precisions,
                                              std::span<const ActivationScale> activations) {
    return std::make_unique<AdalnTransformer>(spec, latent, in, weights, precisions, activations);
}

}  // namespace pyjepa
