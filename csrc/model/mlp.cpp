// mlp: dense layers, each activation(norm(W x + b)).
#include <algorithm>

#include "model/block.hpp"
#include "model/dense.hpp"

namespace pyjepa {
namespace {

struct MlpLayer {
    PackedDense dense;
    Norm norm;
    simd::Act act;
    AlignedFloats gamma, beta;
};

bool has_layer_norm(Norm n) {
    return n == Norm::layer || n == Norm::layer_simnorm;
}
bool has_simnorm(Norm n) {
    return n == Norm::simnorm || n == Norm::layer_simnorm;
}

class Mlp final : public Block {
  public:
    Mlp(const MlpSpec& spec, int in, std::span<const int> order, const Weights& weights)
        : group_(spec.simnorm_group) {
        layers_.reserve(spec.layers.size());
        for (size_t j = 0; j < spec.layers.size(); ++j) {
            const LayerSpec& layer = spec.layers[j];
            const std::string linear = "linear" + std::to_string(j), norm = "norm" + std::to_string(j);
            MlpLayer made{PackedDense(weights(linear + ".weight"), weights(linear + ".bias"), in, layer.out,
                                      j == 0 ? order : std::span<const int>{}),
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
            in = layer.out;
        }
        // A normalised output that is added to something needs a place of its own before the addition.
        if (layers_.back().norm != Norm::none) hidden_ = std::max(hidden_, simd::padded(in));
    }

    size_t workspace(int rows) const noexcept override {
        return 2 * static_cast<size_t>(hidden_) * static_cast<size_t>(rows);
    }

    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept override {
        float* buffers[2] = {work, work + static_cast<ptrdiff_t>(hidden_) * rows};
        for (size_t j = 0; j < layers_.size(); ++j) {
            const MlpLayer& layer = layers_[j];
            const bool last = j + 1 == layers_.size(), plain = layer.norm == Norm::none;
            const bool direct = last && (plain || !accumulate);
            float* out = direct ? y : buffers[j % 2];
            const ptrdiff_t ld = direct ? ldy : hidden_;
            kernels.dense(layer.dense.view(), x, ldx, rows, out, ld, plain ? layer.act : simd::Act::none,
                          direct && accumulate);
            const int n = layer.dense.out();
            if (has_layer_norm(layer.norm))
                kernels.layer_norm(out, ld, rows, n, layer.gamma.data(), layer.beta.data());
            if (has_simnorm(layer.norm)) kernels.simnorm(out, ld, rows, n, group_);
            if (!plain && layer.act != simd::Act::none) kernels.activate(out, ld, rows, n, layer.act);
            if (last && !direct) kernels.add(out, ld, rows, n, y, ldy);
            x = out;
            ldx = ld;
        }
    }

    bool in_place() const noexcept override { return layers_.size() > 1; }

    double flops() const noexcept override {
        double total = 0.0;
        for (const MlpLayer& layer : layers_) total += 2.0 * layer.dense.in() * layer.dense.out();
        return total;
    }

  private:
    static AlignedFloats copy(std::span<const float> from) {
        AlignedFloats to(from.size());
        std::copy(from.begin(), from.end(), to.data());
        return to;
    }

    std::vector<MlpLayer> layers_;
    int hidden_ = 0;  // row length of the two hidden buffers
    int group_;
};

}  // namespace

std::unique_ptr<Block> make_mlp(const MlpSpec& spec, int in, std::span<const int> order,
                                const Weights& weights) {
    return std::make_unique<Mlp>(spec, in, order, weights);
}

}  // namespace pyjepa
