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
    std::variant<PackedDense, PackedDenseBf16, PackedDenseInt8, PackedDenseInt8Static> dense;
    Precision precision;
    int in, out;
    Norm norm;
    simd::Act act;
    AlignedFloats gamma, beta;
};

class Mlp final : public Block {
  public:
    Mlp(const MlpSpec& spec, int in, std::span<const int> order, const Weights& weights,
        std::span<const Precision> precisions, std::span<const ActivationScale> activations)
        : group_(spec.simnorm_group), widest_(in) {
        for (const LayerSpec& layer : spec.layers) widest_ = std::max(widest_, layer.out);
        layers_.reserve(spec.layers.size());
        for (size_t j = 0; j < spec.layers.size(); ++j) {
            const LayerSpec& layer = spec.layers[j];
            const std::string linear = "linear" + std::to_string(j), norm = "norm" + std::to_string(j);
            const auto next = activations.subspan(std::min(j, activations.size()));
            const bool too_wide = precisions[j] == Precision::int8 && widest_ > simd::kMaxInt8Inputs;
            const Precision precision = too_wide ? Precision::fp32 : precisions[j];
            MlpLayer made{pack(precision, weights(linear + ".weight"), weights(linear + ".bias"), in,
                               layer.out, j == 0 ? order : std::span<const int>{}, next),
                          precision,
                          in,
                          layer.out,
                          layer.norm,
                          to_act(layer.activation),
                          {},
                          {}};
            if (precision != Precision::fp32)
                narrow_element_ = std::max<size_t>(narrow_element_, precision == Precision::int8 ? 1 : 2);
            if (has_layer_norm(layer.norm)) {
                made.gamma = copy(weights(norm + ".weight"));
                made.beta = copy(weights(norm + ".bias"));
            }
            layers_.push_back(std::move(made));
            if (j + 1 < spec.layers.size()) hidden_ = std::max(hidden_, simd::padded(layer.out));
            in = layer.out;
        }
        // An output that is added to something, and not by the dense kernel, needs a place of its own before.
        if (!fused(layers_.back())) hidden_ = std::max(hidden_, simd::padded(in));
    }

    size_t workspace(int rows) const noexcept override {
        const size_t hidden = 2 * static_cast<size_t>(hidden_);
        return static_cast<size_t>(rows) * hidden + Narrow::size(narrow_element_, narrow_ld(), rows);
    }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept override {
        Recurrence alone;
        step(kernels, x, ldx, rows, y, ldy, accumulate, work, alone);
    }

    void step(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy,
              bool accumulate, float* work, Recurrence& recurrence) const noexcept override {
        float* const buffers[2] = {work, work + static_cast<ptrdiff_t>(hidden_) * rows};
        Narrow narrow(narrow_element_, work + 2 * static_cast<ptrdiff_t>(hidden_) * rows, narrow_ld(), rows);
        narrow.ready = recurrence.ready;
        narrow.current = recurrence.buffer;
        recurrence.ready = false;
        for (size_t j = 0; j < layers_.size(); ++j) {
            const MlpLayer& layer = layers_[j];
            const bool last = j + 1 == layers_.size();
            const bool direct = last && (fused(layer) || !accumulate);
            float* const out = direct ? y : buffers[j % 2];
            const ptrdiff_t ld = direct ? ldy : hidden_;
            const simd::Act act = fused(layer) ? layer.act : simd::Act::none;
            const bool stay_narrow = fused(layer) && !last && layers_[j + 1].precision == layer.precision;
            if (layer.precision == Precision::fp32) {
                kernels.dense(std::get<PackedDense>(layer.dense).view(), x, ldx, rows, out, ld, act,
                              direct && accumulate);
            } else if (layer.precision == Precision::bf16) {
                dense_bf16(layer, x, ldx, rows, out, ld, act, direct && accumulate, stay_narrow, narrow);
            } else if (last && leaves_input(recurrence)) {
                dense_int8_next(layer, x, ldx, rows, out, ld, accumulate, narrow, recurrence);
            } else {
                dense_int8(layer, x, ldx, rows, out, ld, act, direct && accumulate, stay_narrow, narrow);
            }
            const bool in_norm = layer.norm == Norm::layer;  // which ends the layer, too
            if (has_layer_norm(layer.norm))
                kernels.layer_norm(out, ld, rows, layer.out, layer.gamma.data(), layer.beta.data(),
                                   in_norm ? layer.act : simd::Act::none);
            if (has_simnorm(layer.norm)) kernels.simnorm(out, ld, rows, layer.out, group_);
            if (!fused(layer) && !in_norm && layer.act != simd::Act::none)
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
    // Inputs in fewer bits: two buffers of bf16 or bytes (`element` bytes each, 0: neither) that take turns;
    // for bytes each row's scale, zero and largest elements, where they are not known in advance. All buffers
    // begin at multiples of 64 bytes.
    struct Narrow {
        Narrow(size_t element, float* work, ptrdiff_t row, int rows) : ld(row) {
            const auto bytes_each = static_cast<ptrdiff_t>(element) * row * rows;
            auto* at = reinterpret_cast<unsigned char*>(work);
            for (unsigned char*& buffer : buffers) {
                buffer = at;
                at += bytes_each;
            }
            most = reinterpret_cast<float*>(at);
            scale = most + ptrdiff_t{16} * rows;
            zero = reinterpret_cast<int32_t*>(scale + rows);
        }
        static size_t size(size_t element, ptrdiff_t row, int rows) noexcept {
            const size_t per_row = 2 * element * static_cast<size_t>(row) / sizeof(float) + 16 + 2;
            return element == 0 ? 0 : per_row * static_cast<size_t>(rows);
        }
        uint16_t* pairs(int which) const noexcept { return reinterpret_cast<uint16_t*>(buffers[which]); }

        ptrdiff_t ld;  // in elements
        unsigned char* buffers[2];
        float *most, *scale;
        int32_t* zero;
        int current = 0;      // which buffer holds the layer's input
        bool ready = false;   // and whether it is there already
        bool maxima = false;  // or else, whether `most` belongs to it
    };

    // Whether the dense kernel itself can end the layer: those of lower precision know ReLU only.
    static bool fused(const MlpLayer& layer) noexcept {
        return layer.norm == Norm::none &&
               (layer.precision == Precision::fp32 || layer.act <= simd::Act::relu);
    }

    ptrdiff_t narrow_ld() const noexcept { return (widest_ + 63) / 64 * 64; }

    void dense_bf16(const MlpLayer& layer, const float* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy,
                    simd::Act act, bool accumulate, bool stay_narrow, Narrow& narrow) const noexcept {
        const simd::Bf16Kernels& bf16 = *simd::bf16_kernels();
        if (!narrow.ready) bf16.convert(x, ldx, rows, layer.in, narrow.pairs(narrow.current), narrow.ld);
        uint16_t* const next = stay_narrow ? narrow.pairs(1 - narrow.current) : nullptr;
        bf16.dense(std::get<PackedDenseBf16>(layer.dense).view(), narrow.pairs(narrow.current), narrow.ld,
                   rows, y, ldy, next, narrow.ld, act, accumulate);
        narrow.ready = stay_narrow;
        if (stay_narrow) narrow.current = 1 - narrow.current;
    }

    // The layer's input, where it is not in bytes yet.
    static void to_bytes(const MlpLayer& layer, const float* x, ptrdiff_t ldx, int rows,
                         Narrow& narrow) noexcept {
        const simd::Int8Kernels& int8 = *simd::int8_kernels();
        unsigned char* const bytes = narrow.buffers[narrow.current];
        if (narrow.maxima)
            int8.quantise_relu(x, ldx, rows, layer.in, narrow.most, bytes, narrow.ld, narrow.scale,
                               narrow.zero);
        else if (narrow.ready)
            return;
        else if (const auto* known = std::get_if<PackedDenseInt8Static>(&layer.dense))
            int8.quantise_static(x, ldx, rows, layer.in, known->inverse(), known->zero(), bytes, narrow.ld);
        else
            int8.quantise(x, ldx, rows, layer.in, bytes, narrow.ld, narrow.scale, narrow.zero);
    }

    void dense_int8(const MlpLayer& layer, const float* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy,
                    simd::Act act, bool accumulate, bool stay_narrow, Narrow& narrow) const noexcept {
        const simd::Int8Kernels& int8 = *simd::int8_kernels();
        to_bytes(layer, x, ldx, rows, narrow);
        const unsigned char* const bytes = narrow.buffers[narrow.current];
        if (const auto* known = std::get_if<PackedDenseInt8Static>(&layer.dense)) {
            int8.dense_static(known->view(), bytes, narrow.ld, rows, y, ldy,
                              stay_narrow ? narrow.buffers[1 - narrow.current] : nullptr, narrow.ld, act,
                              accumulate);
            narrow.ready = stay_narrow;
            if (stay_narrow) narrow.current = 1 - narrow.current;
            return;
        }
        const simd::DenseInt8 dense = std::get<PackedDenseInt8>(layer.dense).view();
        const bool relu = stay_narrow && act == simd::Act::relu;
        narrow.ready = relu && layer.out <= simd::kMaxInt8Row;
        narrow.maxima = relu && !narrow.ready;
        if (narrow.ready) {
            narrow.current = 1 - narrow.current;
            int8.dense_relu(dense, bytes, narrow.ld, narrow.scale, narrow.zero, rows,
                            narrow.buffers[narrow.current], narrow.ld);
        } else {
            int8.dense(dense, bytes, narrow.ld, narrow.scale, narrow.zero, rows, y, ldy, act, accumulate,
                       narrow.maxima ? narrow.most : nullptr);
        }
    }

    // Whether the last layer can leave the next step's input in bytes.
    bool leaves_input(const Recurrence& recurrence) const noexcept {
        const MlpLayer& layer = layers_.back();
        return recurrence.more != nullptr && fused(layer) && layer.act == simd::Act::none &&
               layer.dense.index() == layers_.front().dense.index() &&
               layer.out + recurrence.count == layers_.front().in &&
               simd::has_next_input(layer.out, recurrence.count);
    }

    // As dense_int8 for the last layer.
    void dense_int8_next(const MlpLayer& layer, const float* x, ptrdiff_t ldx, int rows, float* y,
                         ptrdiff_t ldy, bool accumulate, Narrow& narrow,
                         Recurrence& recurrence) const noexcept {
        const simd::Int8Kernels& int8 = *simd::int8_kernels();
        to_bytes(layer, x, ldx, rows, narrow);
        recurrence.ready = true;
        recurrence.buffer = 1 - narrow.current;
        const unsigned char* const bytes = narrow.buffers[narrow.current];
        const simd::NextInput next{narrow.buffers[recurrence.buffer], narrow.ld, recurrence.more,
                                   recurrence.ld_more, recurrence.count};
        if (const auto* known = std::get_if<PackedDenseInt8Static>(&layer.dense)) {
            const auto& first = std::get<PackedDenseInt8Static>(layers_.front().dense);
            int8.dense_static_next(known->view(), bytes, narrow.ld, rows, y, ldy, accumulate, first.inverse(),
                                   first.zero(), next);
        } else {
            int8.dense_next(std::get<PackedDenseInt8>(layer.dense).view(), bytes, narrow.ld, narrow.scale,
                            narrow.zero, rows, y, ldy, accumulate, next);
        }
    }

    // activations: of this layer's input and those after it.
    static decltype(MlpLayer::dense) pack(Precision precision, std::span<const float> weight,
                                          std::span<const float> bias, int in, int out,
                                          std::span<const int> order,
                                          std::span<const ActivationScale> activations) {
        if (precision == Precision::bf16) return PackedDenseBf16(weight, bias, in, out, order);
        if (precision == Precision::int8 && !activations.empty()) {
            const ActivationScale next = activations.size() > 1 ? activations[1] : ActivationScale{};
            return PackedDenseInt8Static(weight, bias, in, out, order, activations[0], next);
        }
        if (precision == Precision::int8) return PackedDenseInt8(weight, bias, in, out, order);
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
    int widest_;  // of all inputs and outputs
    size_t narrow_element_ = 0;
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
                    kernels.layer_norm(before, ld, rows, layer.out, layer.gamma.data(), layer.beta.data(),
                                       simd::Act::none);
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
    if (narrow_element_ != 0) return nullptr;
    return std::make_unique<MlpGradient>(layers_, group_);
}

}  // namespace

std::unique_ptr<Block> make_mlp(const MlpSpec& spec, int in, std::span<const int> order,
                                const Weights& weights, std::span<const simd::Precision> precisions,
                                std::span<const ActivationScale> activations) {
    return std::make_unique<Mlp>(spec, in, order, weights, precisions, activations);
}

}  // namespace pyjepa
