// mlp: dense layers, each activation(norm(W x + b)).
#include <algorithm>
#include <variant>

#include "model/block.hpp"
#include "model/dense.hpp"

namespace pyjepa {
namespace {

using simd::Precision;

bool has_layer_norm(Norm n) {
    return n == Norm::layer || n == Norm::layer_simnorm;
}
bool has_simnorm(Norm n) {
    return n == Norm::simnorm || n == Norm::layer_simnorm;
}

struct MlpLayer {
    std::variant<PackedDense, PackedDenseBf16, PackedDenseInt8> dense;  // all of one precision
    int in, out;
    Norm norm;
    simd::Act act;
    AlignedFloats gamma, beta;
};

class Mlp final : public Block {
  public:
    Mlp(const MlpSpec& spec, int in, std::span<const int> order, const Weights& weights, Precision precision)
        : group_(spec.simnorm_group), precision_(precision), widest_(in) {
        layers_.reserve(spec.layers.size());
        for (size_t j = 0; j < spec.layers.size(); ++j) {
            const LayerSpec& layer = spec.layers[j];
            const std::string linear = "linear" + std::to_string(j), norm = "norm" + std::to_string(j);
            MlpLayer made{pack(weights(linear + ".weight"), weights(linear + ".bias"), in, layer.out,
                               j == 0 ? order : std::span<const int>{}),
                          in,
                          layer.out,
                          layer.norm,
                          to_act(layer.activation),
                          {},
                          {}};
            if (has_layer_norm(layer.norm)) {
                made.gamma = copy(weights(norm + ".weight"));
                made.beta = copy(weights(norm + ".bias"));
            }
            layers_.push_back(std::move(made));
            if (j + 1 < spec.layers.size()) hidden_ = std::max(hidden_, simd::padded(layer.out));
            widest_ = std::max(widest_, layer.out);
            in = layer.out;
        }
        // An output that is added to something, and not by the dense kernel, needs a place of its own before.
        if (!fused(layers_.back())) hidden_ = std::max(hidden_, simd::padded(in));
    }

    size_t workspace(int rows) const noexcept override {
        const size_t hidden = 2 * static_cast<size_t>(hidden_), narrow = static_cast<size_t>(narrow_ld());
        return static_cast<size_t>(rows) * (hidden + (precision_ == Precision::fp32 ? 0 : narrow + 2));
    }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept override {
        float* const buffers[2] = {work, work + static_cast<ptrdiff_t>(hidden_) * rows};
        Narrow narrow(work + 2 * static_cast<ptrdiff_t>(hidden_) * rows, narrow_ld(), rows);
        for (size_t j = 0; j < layers_.size(); ++j) {
            const MlpLayer& layer = layers_[j];
            const bool last = j + 1 == layers_.size();
            const bool direct = last && (fused(layer) || !accumulate);
            float* const out = direct ? y : buffers[j % 2];
            const ptrdiff_t ld = direct ? ldy : hidden_;
            const simd::Act act = fused(layer) ? layer.act : simd::Act::none;
            if (precision_ == Precision::fp32) {
                kernels.dense(std::get<PackedDense>(layer.dense).view(), x, ldx, rows, out, ld, act,
                              direct && accumulate);
            } else if (precision_ == Precision::bf16) {
                dense_bf16(layer, x, ldx, rows, out, ld, act, direct && accumulate, fused(layer) && !last,
                           narrow);
            } else {
                dense_int8(layer, x, ldx, rows, out, ld, act, direct && accumulate, narrow);
            }
            if (has_layer_norm(layer.norm))
                kernels.layer_norm(out, ld, rows, layer.out, layer.gamma.data(), layer.beta.data());
            if (has_simnorm(layer.norm)) kernels.simnorm(out, ld, rows, layer.out, group_);
            if (!fused(layer) && layer.act != simd::Act::none)
                kernels.activate(out, ld, rows, layer.out, layer.act);
            if (last && !direct) kernels.add(out, ld, rows, layer.out, y, ldy);
            x = out;
            ldx = ld;
        }
    }

    bool in_place() const noexcept override { return layers_.size() > 1; }

    double flops() const noexcept override {
        double total = 0.0;
        for (const MlpLayer& layer : layers_) total += 2.0 * layer.in * layer.out;
        return total;
    }

    std::unique_ptr<BlockGradient> differentiate() const override;

  private:
    // Inputs in fewer bits: two buffers of bf16 that take turns, or one of bytes with a scale and a zero for
    // each row.
    struct Narrow {
        Narrow(float* work, ptrdiff_t row, int rows)
            : ld(row),
              pairs{reinterpret_cast<uint16_t*>(work), reinterpret_cast<uint16_t*>(work) + row * rows},
              bytes(reinterpret_cast<uint8_t*>(work)),
              scale(work + row * rows),
              zero(reinterpret_cast<int32_t*>(scale + rows)) {}
        ptrdiff_t ld;
        uint16_t* pairs[2];
        uint8_t* bytes;
        float* scale;
        int32_t* zero;
        int current = 0;     // which of pairs holds the layer's input
        bool ready = false;  // and whether it is there already
    };

    // Whether the dense kernel itself can end the layer: those of lower precision know ReLU only.
    bool fused(const MlpLayer& layer) const noexcept {
        return layer.norm == Norm::none && (precision_ == Precision::fp32 || layer.act <= simd::Act::relu);
    }

    ptrdiff_t narrow_ld() const noexcept { return (widest_ + 31) / 32 * 32; }

    void dense_bf16(const MlpLayer& layer, const float* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy,
                    simd::Act act, bool accumulate, bool stay_narrow, Narrow& narrow) const noexcept {
        const simd::Bf16Kernels& bf16 = *simd::bf16_kernels();
        if (!narrow.ready) bf16.convert(x, ldx, rows, layer.in, narrow.pairs[narrow.current], narrow.ld);
        uint16_t* const next = stay_narrow ? narrow.pairs[1 - narrow.current] : nullptr;
        bf16.dense(std::get<PackedDenseBf16>(layer.dense).view(), narrow.pairs[narrow.current], narrow.ld,
                   rows, y, ldy, next, narrow.ld, act, accumulate);
        narrow.ready = stay_narrow;
        if (stay_narrow) narrow.current = 1 - narrow.current;
    }

    void dense_int8(const MlpLayer& layer, const float* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy,
                    simd::Act act, bool accumulate, Narrow& narrow) const noexcept {
        const simd::Int8Kernels& int8 = *simd::int8_kernels();
        int8.quantise(x, ldx, rows, layer.in, narrow.bytes, narrow.ld, narrow.scale, narrow.zero);
        int8.dense(std::get<PackedDenseInt8>(layer.dense).view(), narrow.bytes, narrow.ld, narrow.scale,
                   narrow.zero, rows, y, ldy, act, accumulate);
    }

    std::variant<PackedDense, PackedDenseBf16, PackedDenseInt8> pack(std::span<const float> weight,
                                                                     std::span<const float> bias, int in,
                                                                     int out,
                                                                     std::span<const int> order) const {
        if (precision_ == Precision::bf16) return PackedDenseBf16(weight, bias, in, out, order);
        if (precision_ == Precision::int8) return PackedDenseInt8(weight, bias, in, out, order);
        return PackedDense(weight, bias, in, out, order);
    }

    static AlignedFloats copy(std::span<const float> from) {
        AlignedFloats to(from.size());
        std::copy(from.begin(), from.end(), to.data());
        return to;
    }

    std::vector<MlpLayer> layers_;
    int hidden_ = 0;  // row length of the two hidden buffers
    int group_;
    Precision precision_;
    int widest_;  // of all inputs and outputs
};

// The backward pass: what each layer was given and gave is on the tape, the weights are transposed.
class MlpGradient final : public BlockGradient {
  public:
    MlpGradient(const std::vector<MlpLayer>& layers, int group) : group_(group) {
        layers_.reserve(layers.size());
        for (const MlpLayer& layer : layers) {
            const PackedDense& dense = std::get<PackedDense>(layer.dense);
            layers_.push_back({&layer, dense.view(), dense.transposed()});
            widest_ = std::max({widest_, simd::padded(layer.in), simd::padded(layer.out)});
        }
    }

    size_t tape(int rows) const noexcept override {
        size_t floats = 0;
        for (const Layer& l : layers_)
            floats += slots(*l.layer) * static_cast<size_t>(simd::padded(l.layer->out));
        return floats * static_cast<size_t>(rows);
    }
    size_t workspace(int rows) const noexcept override {
        return 2 * static_cast<size_t>(widest_) * static_cast<size_t>(rows);
    }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* tape, float* work) const noexcept override {
        float* const buffers[2] = {work, work + static_cast<ptrdiff_t>(widest_) * rows};
        for (size_t j = 0; j < layers_.size(); ++j) {
            const MlpLayer& layer = *layers_[j].layer;
            const ptrdiff_t ld = simd::padded(layer.out), size = ld * rows;
            const bool last = j + 1 == layers_.size();
            float* before = tape;  // what enters the activation
            if (layer.norm == Norm::none && layer.act <= simd::Act::relu) {
                kernels.dense(layers_[j].forward, x, ldx, rows, before, ld, layer.act, false);
                tape += size;
                x = before;
                ldx = ld;
            } else {
                kernels.dense(layers_[j].forward, x, ldx, rows, before, ld, simd::Act::none, false);
                if (has_layer_norm(layer.norm)) {
                    before += size;
                    std::copy_n(tape, size, before);
                    kernels.layer_norm(before, ld, rows, layer.out, layer.gamma.data(), layer.beta.data());
                }
                if (has_simnorm(layer.norm)) kernels.simnorm(before, ld, rows, layer.out, group_);
                tape += size * static_cast<ptrdiff_t>(slots(layer));
                x = before;
                ldx = ld;
                if (layer.act != simd::Act::none) {
                    std::copy_n(before, size, buffers[j % 2]);
                    kernels.activate(buffers[j % 2], ld, rows, layer.out, layer.act);
                    x = buffers[j % 2];
                }
            }
            if (!last) continue;
            if (accumulate)
                kernels.add(x, ldx, rows, layer.out, y, ldy);
            else
                for (int r = 0; r < rows; ++r) std::copy_n(x + r * ldx, layer.out, y + r * ldy);
        }
    }

    void backward(const simd::Kernels& kernels, const float* tape, float* dy, ptrdiff_t lddy, int rows,
                  float* dx, ptrdiff_t lddx, float* work) const noexcept override {
        float* const buffers[2] = {work, work + static_cast<ptrdiff_t>(widest_) * rows};
        tape += this->tape(rows);
        for (size_t j = layers_.size(); j-- > 0;) {
            const MlpLayer& layer = *layers_[j].layer;
            const ptrdiff_t ld = simd::padded(layer.out), size = ld * rows;
            const float* const before = tape - size;
            tape -= size * static_cast<ptrdiff_t>(slots(layer));
            if (layer.act != simd::Act::none)
                kernels.activate_backward(before, ld, rows, layer.out, layer.act, dy, lddy);
            if (has_simnorm(layer.norm))
                kernels.simnorm_backward(before, ld, rows, layer.out, group_, dy, lddy);
            if (has_layer_norm(layer.norm))
                kernels.layer_norm_backward(tape, ld, rows, layer.out, layer.gamma.data(), dy, lddy);
            float* const to = j == 0 ? dx : buffers[j % 2];
            const ptrdiff_t ldto = j == 0 ? lddx : widest_;
            kernels.dense(layers_[j].transposed.view(), dy, lddy, rows, to, ldto, simd::Act::none, false);
            dy = to;
            lddy = ldto;
        }
    }

  private:
    struct Layer {
        const MlpLayer* layer;
        simd::Dense forward;
        PackedDense transposed;
    };
    // Of a layer on the tape: with a LayerNorm what entered it, and always what entered the activation.
    static size_t slots(const MlpLayer& layer) noexcept { return has_layer_norm(layer.norm) ? 2 : 1; }

    std::vector<Layer> layers_;
    int group_, widest_ = 0;
};

std::unique_ptr<BlockGradient> Mlp::differentiate() const {
    if (precision_ != Precision::fp32) return nullptr;
    return std::make_unique<MlpGradient>(layers_, group_);
}

}  // namespace

std::unique_ptr<Block> make_mlp(const MlpSpec& spec, int in, std::span<const int> order,
                                const Weights& weights, simd::Precision precision) {
    return std::make_unique<Mlp>(spec, in, order, weights, precision);
}

}  // namespace pyjepa
