// gru: torch's GRU cell, whose hidden state is the state and whose input the action, and a LayerNorm.
//
// Hidden units are computed in chunks of one panel, gates side by side, so that what lies between the dense
// layers and the new state stays in cache. The action's part is fp32 in every precision: it is small, and
// candidates differ in nothing else.
#include <algorithm>
#include <cstring>
#include <variant>

#include "model/block.hpp"
#include "model/dense.hpp"

namespace pyjepa {
namespace {

using simd::Precision;

using HiddenDense = std::variant<PackedDense, PackedDenseBf16, PackedDenseInt8, PackedDenseInt8Static>;

// Hidden units [at, at + count), each group of their sums `stride` apart; see Kernels::gru.
struct Chunk {
    int at, count, stride;
    PackedDense input;   // action -> a, R, Z and of b the bias
    HiddenDense hidden;  // state -> R, Z, b, added to those
    int sums() const noexcept { return 4 * stride; }
};

class Gru final : public Block {
  public:
    Gru(const GruSpec& spec, int in, const Weights& weights, Precision precision,
        std::span<const ActivationScale> activations)
        : hidden_(spec.hidden), in_(in), precision_(precision) {
        if (precision_ == Precision::int8 && hidden_ > simd::kMaxInt8Inputs) precision_ = Precision::fp32;
        const std::span<const float> weight_ih = weights("weight_ih"), weight_hh = weights("weight_hh"),
                                     bias_ih = weights("bias_ih"), bias_hh = weights("bias_hh");
        constexpr int r = 0, z = 1, n = 2;  // torch's order of the gates
        for (int at = 0; at < hidden_; at += simd::kPanel) {
            const int count = std::min(simd::kPanel, hidden_ - at), stride = simd::padded(count);
            std::vector<float> input(static_cast<size_t>(4 * stride * in)),
                bias(static_cast<size_t>(4 * stride)),
                hidden(static_cast<size_t>(3 * stride) * static_cast<size_t>(hidden_));
            for (int j = 0; j < count; ++j) {
                const auto row = [&](int gate) { return static_cast<size_t>(gate * hidden_ + at + j); };
                const auto copy = [&](std::span<const float> from, int gate, int columns,
                                      std::vector<float>& to, int group) {
                    const auto width = static_cast<size_t>(columns);
                    std::copy_n(
                        from.begin() + static_cast<ptrdiff_t>(row(gate) * width), width,
                        to.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(group * stride + j) * width));
                };
                copy(weight_ih, n, in, input, 0);
                copy(weight_ih, r, in, input, 1);
                copy(weight_ih, z, in, input, 2);
                copy(weight_hh, r, hidden_, hidden, 0);
                copy(weight_hh, z, hidden_, hidden, 1);
                copy(weight_hh, n, hidden_, hidden, 2);
                const auto put = [&](int group, float value) {
                    bias[static_cast<size_t>(group * stride + j)] = value;
                };
                put(0, bias_ih[row(n)]);
                put(1, bias_ih[row(r)] + bias_hh[row(r)]);
                put(2, bias_ih[row(z)] + bias_hh[row(z)]);
                put(3, bias_hh[row(n)]);
            }
            chunks_.push_back({at, count, stride, PackedDense(input, bias, in, 4 * stride),
                               pack(hidden, 3 * stride, activations)});
        }
        if (spec.norm != CellNorm::none) {
            gamma_ = copy_of(weights("norm.weight"));
            beta_ = copy_of(weights("norm.bias"));
        }
    }

    size_t workspace(int rows) const noexcept override {
        const auto count = static_cast<size_t>(rows);
        const size_t bytes = precision_ == Precision::fp32   ? 0
                             : precision_ == Precision::bf16 ? 2 * narrow_ld()
                                                             : narrow_ld() + sizeof(float) + sizeof(int32_t);
        return kShared + count * (kSums + static_cast<size_t>(simd::padded(hidden_)) + bytes / sizeof(float));
    }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept override {
        float* const shared = work;
        float* const sums = shared + kShared;
        float* const aside = sums + rows * static_cast<ptrdiff_t>(kSums);
        // Where the state is read as floats to the end it must not be overwritten before.
        const bool direct = !accumulate && !(precision_ == Precision::fp32 && y == x);
        float* const out = direct ? y : aside;
        const ptrdiff_t ld = direct ? ldy : simd::padded(hidden_);
        States states(*this, x, ldx, rows, aside + static_cast<ptrdiff_t>(simd::padded(hidden_)) * rows);
        // All candidates begin a plan in one state.
        const bool same = rows > 1 && all_equal(x, ldx, rows);
        states.narrow(same ? 1 : rows);
        for (const Chunk& c : chunks_) {
            if (same) states.multiply(kernels, c, 1, shared, c.sums(), false);
            kernels.dense(c.input.view(), x + hidden_, ldx, rows, sums, c.sums(), simd::Act::none, false);
            if (same)
                kernels.add(shared, 0, rows, 3 * c.stride, sums + c.stride, c.sums());
            else
                states.multiply(kernels, c, rows, sums + c.stride, c.sums(), true);
            kernels.gru(sums, c.sums(), c.stride, x + c.at, ldx, rows, c.count, out + c.at, ld);
        }
        if (gamma_.size() > 0)
            kernels.layer_norm(out, ld, rows, hidden_, gamma_.data(), beta_.data(), simd::Act::none);
        if (direct) return;
        if (accumulate)
            kernels.add(out, ld, rows, hidden_, y, ldy);
        else
            for (int row = 0; row < rows; ++row) std::copy_n(out + row * ld, hidden_, y + row * ldy);
    }

    bool in_place() const noexcept override { return true; }

    double flops() const noexcept override { return 6.0 * hidden_ * (hidden_ + in_); }

    std::unique_ptr<BlockGradient> differentiate() const override;

  private:
    friend class GruGradient;

    static constexpr size_t kSums = 4 * simd::kPanel;    // of a chunk at most
    static constexpr size_t kShared = 3 * simd::kPanel;  // those of the state

    // Rows of states as the dense layers read them: as they are, or narrowed to `work`.
    class States {
      public:
        States(const Gru& gru, const float* x, ptrdiff_t ldx, int rows, float* work) noexcept
            : gru_(gru),
              x_(x),
              ldx_(ldx),
              ld_(static_cast<ptrdiff_t>(gru.narrow_ld())),
              narrow_(work),
              scale_(work + ld_ / static_cast<ptrdiff_t>(sizeof(float)) * rows),
              zero_(reinterpret_cast<int32_t*>(scale_ + rows)) {}

        void narrow(int rows) noexcept {
            const int n = gru_.hidden_;
            if (gru_.precision_ == Precision::bf16)
                simd::bf16_kernels()->convert(x_, ldx_, rows, n, pairs(), ld_);
            if (gru_.precision_ != Precision::int8) return;
            const simd::Int8Kernels& int8 = *simd::int8_kernels();
            if (const auto* known = std::get_if<PackedDenseInt8Static>(&gru_.chunks_.front().hidden))
                int8.quantise_static(x_, ldx_, rows, n, known->inverse(), known->zero(), bytes(), ld_);
            else
                int8.quantise(x_, ldx_, rows, n, bytes(), ld_, scale_, zero_);
        }

        // y = hidden(states), added to y if `accumulate`.
        void multiply(const simd::Kernels& kernels, const Chunk& c, int rows, float* y, ptrdiff_t ldy,
                      bool accumulate) const noexcept {
            constexpr auto act = simd::Act::none;
            if (const auto* fp32 = std::get_if<PackedDense>(&c.hidden))
                kernels.dense(fp32->view(), x_, ldx_, rows, y, ldy, act, accumulate);
            else if (const auto* bf16 = std::get_if<PackedDenseBf16>(&c.hidden))
                simd::bf16_kernels()->dense(bf16->view(), pairs(), ld_, rows, y, ldy, nullptr, 0, act,
                                            accumulate);
            else if (const auto* known = std::get_if<PackedDenseInt8Static>(&c.hidden))
                simd::int8_kernels()->dense_static(known->view(), bytes(), ld_, rows, y, ldy, nullptr, 0, act,
                                                   accumulate);
            else
                simd::int8_kernels()->dense(std::get<PackedDenseInt8>(c.hidden).view(), bytes(), ld_, scale_,
                                            zero_, rows, y, ldy, act, accumulate, nullptr);
        }

      private:
        uint16_t* pairs() const noexcept { return reinterpret_cast<uint16_t*>(narrow_); }
        uint8_t* bytes() const noexcept { return reinterpret_cast<uint8_t*>(narrow_); }

        const Gru& gru_;
        const float* x_;
        ptrdiff_t ldx_, ld_;  // ld_ in elements
        float* narrow_;
        float* scale_;   // of int8, as is
        int32_t* zero_;  // this
    };

    size_t narrow_ld() const noexcept { return static_cast<size_t>((hidden_ + 63) / 64 * 64); }

    // Bit for bit; in all but a plan's first step the second row tells.
    bool all_equal(const float* x, ptrdiff_t ldx, int rows) const noexcept {
        for (int row = 1; row < rows; ++row)
            if (std::memcmp(x, x + row * ldx, sizeof(float) * static_cast<size_t>(hidden_)) != 0)
                return false;
        return true;
    }

    HiddenDense pack(std::span<const float> weight, int out,
                     std::span<const ActivationScale> activations) const {
        const std::vector<float> no_bias(static_cast<size_t>(out));
        if (precision_ == Precision::bf16) return PackedDenseBf16(weight, no_bias, hidden_, out);
        if (precision_ == Precision::int8 && !activations.empty())
            return PackedDenseInt8Static(weight, no_bias, hidden_, out, {}, activations[0],
                                         ActivationScale{});
        if (precision_ == Precision::int8) return PackedDenseInt8(weight, no_bias, hidden_, out);
        return PackedDense(weight, no_bias, hidden_, out);
    }

    static AlignedFloats copy_of(std::span<const float> from) {
        AlignedFloats to(from.size());
        std::copy(from.begin(), from.end(), to.data());
        return to;
    }

    int hidden_, in_;
    Precision precision_;
    std::vector<Chunk> chunks_;
    AlignedFloats gamma_, beta_;  // empty without a norm
};

// On the tape: the state, the new state before the norm (if there is one), then the sums chunk by chunk.
class GruGradient final : public BlockGradient {
  public:
    explicit GruGradient(const Gru& gru) : gru_(gru) {
        for (const Chunk& c : gru.chunks_)
            transposed_.push_back({c.input.transposed(), std::get<PackedDense>(c.hidden).transposed()});
    }

    size_t tape(int rows) const noexcept override {
        size_t floats = static_cast<size_t>(ld()) * (normed() ? 2 : 1);
        for (const Chunk& c : gru_.chunks_) floats += static_cast<size_t>(c.sums());
        return floats * static_cast<size_t>(rows);
    }
    size_t workspace(int rows) const noexcept override {
        return static_cast<size_t>(rows) * static_cast<size_t>(std::max(ld(), 4 * simd::kPanel));
    }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* tape, float* work) const noexcept override {
        const int hidden = gru_.hidden_;
        float* const state = tape;
        float* const before = normed() ? state + static_cast<ptrdiff_t>(ld()) * rows : work;
        float* gates = state + static_cast<ptrdiff_t>(ld()) * rows * (normed() ? 2 : 1);
        for (int r = 0; r < rows; ++r)
            std::copy_n(x + r * ldx, hidden, state + static_cast<ptrdiff_t>(r) * ld());
        for (const Chunk& c : gru_.chunks_) {
            kernels.dense(c.input.view(), x + hidden, ldx, rows, gates, c.sums(), simd::Act::none, false);
            kernels.dense(std::get<PackedDense>(c.hidden).view(), state, ld(), rows, gates + c.stride,
                          c.sums(), simd::Act::none, true);
            kernels.gru(gates, c.sums(), c.stride, state + c.at, ld(), rows, c.count, before + c.at, ld());
            gates += static_cast<ptrdiff_t>(c.sums()) * rows;
        }
        if (normed()) {
            std::copy_n(before, static_cast<ptrdiff_t>(ld()) * rows, work);
            kernels.layer_norm(work, ld(), rows, hidden, gru_.gamma_.data(), gru_.beta_.data(),
                               simd::Act::none);
        }
        if (accumulate)
            kernels.add(work, ld(), rows, hidden, y, ldy);
        else
            for (int r = 0; r < rows; ++r)
                std::copy_n(work + static_cast<ptrdiff_t>(r) * ld(), hidden, y + r * ldy);
    }

    void backward(const simd::Kernels& kernels, const float* tape, float* dy, ptrdiff_t lddy, int rows,
                  float* dx, ptrdiff_t lddx, float* work) const noexcept override {
        const int hidden = gru_.hidden_;
        const float* const state = tape;
        const float* gates = state + static_cast<ptrdiff_t>(ld()) * rows * (normed() ? 2 : 1);
        if (normed())
            kernels.layer_norm_backward(state + static_cast<ptrdiff_t>(ld()) * rows, ld(), rows, hidden,
                                        gru_.gamma_.data(), dy, lddy);
        for (size_t i = 0; i < transposed_.size(); ++i) {
            const Chunk& c = gru_.chunks_[i];
            kernels.gru_backward(gates, c.sums(), c.stride, state + c.at, ld(), rows, c.count, dy + c.at,
                                 lddy, work, c.sums());
            kernels.dense(transposed_[i].input.view(), work, c.sums(), rows, dx + hidden, lddx,
                          simd::Act::none, i > 0);
            kernels.dense(transposed_[i].hidden.view(), work + c.stride, c.sums(), rows, dx, lddx,
                          simd::Act::none, i > 0);
            gates += static_cast<ptrdiff_t>(c.sums()) * rows;
        }
        kernels.add(dy, lddy, rows, hidden, dx, lddx);
    }

  private:
    struct Transposed {
        PackedDense input, hidden;
    };
    int ld() const noexcept { return simd::padded(gru_.hidden_); }
    bool normed() const noexcept { return gru_.gamma_.size() > 0; }

    const Gru& gru_;
    std::vector<Transposed> transposed_;
};

std::unique_ptr<BlockGradient> Gru::differentiate() const {
    if (precision_ != Precision::fp32) return nullptr;
    return std::make_unique<GruGradient>(*this);
}

}  // namespace

std::unique_ptr<Block> make_gru(const GruSpec& spec, int in, const Weights& weights,
                                simd::Precision precision, std::span<const ActivationScale> activations) {
    return std::make_unique<Gru>(spec, in, weights, precision, activations);
}

}  // namespace pyjepa
