#include "model/network.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace pyjepa {
namespace {

int elements(const Shape& shape) {
    return std::accumulate(shape.begin(), shape.end(), 1, std::multiplies<int>());
}

// For each position of a channel-last image, where torch keeps it.
std::vector<int> channels_last_order(const Shape& shape) {
    std::vector<int> order;
    for (int y = 0; y < shape[1]; ++y)
        for (int x = 0; x < shape[2]; ++x)
            for (int c = 0; c < shape[0]; ++c) order.push_back((c * shape[1] + y) * shape[2] + x);
    return order;
}

// What each layer of a block runs in: the higher of two precisions, or the next higher that the machine has.
std::vector<simd::Precision> layer_precisions(size_t layers, simd::Precision wanted,
                                              std::span<const LayerPrecision> limits) {
    std::vector<simd::Precision> precisions(layers, wanted);
    for (size_t j = 0; j < std::min(layers, limits.size()); ++j) {
        precisions[j] = std::min(wanted, static_cast<simd::Precision>(limits[j]));
        if (precisions[j] == simd::Precision::bf16 && simd::bf16_kernels() == nullptr)
            precisions[j] = simd::Precision::fp32;
    }
    return precisions;
}
static_assert(static_cast<int>(LayerPrecision::bf16) == static_cast<int>(simd::Precision::bf16) &&
              static_cast<int>(LayerPrecision::int8) == static_cast<int>(simd::Precision::int8));

}  // namespace

Network::Network(const AgentFile& file, const std::string& name, std::vector<int> input_order,
                 simd::Precision precision, int member) {
    const ModuleSpec& spec = file.spec.modules.at(name);
    residual_ = spec.residual;
    Shape shape = module_input_shape(file.spec, spec);
    in_ = elements(shape);
    Layout layout = Layout::torch;
    std::vector<int> order = std::move(input_order);
    std::span<const ActivationScale> activations = spec.activations;
    std::span<const LayerPrecision> limits = spec.precisions;
    for (size_t i = 0; i < spec.blocks.size(); ++i) {
        const std::string prefix = name + "." + std::to_string(i) + ".";
        std::span<const float> packed;  // most likely, once the next is asked for; to be read again, if not
        const Weights weights = [&](const std::string& parameter) {
            const std::span<const float> all = file.tensors.at(prefix + parameter).data;
            file.release(std::exchange(packed, all));
            const size_t own = all.size() / static_cast<size_t>(spec.ensemble);
            return all.subspan(own * static_cast<size_t>(member), own);
        };
        const BlockSpec& block = spec.blocks[i];
        const Shape out = block_output_shape(block, shape, prefix);
        const size_t layers = quantised_layers(block), scales = std::min(activations.size(), layers);
        const std::vector<simd::Precision> precisions = layer_precisions(layers, precision, limits);
        if (const auto* mlp = std::get_if<MlpSpec>(&block)) {
            if (layout == Layout::channels_last) order = channels_last_order(shape);
            blocks_.push_back(
                make_mlp(*mlp, elements(shape), order, weights, precisions, activations.first(scales)));
            layout = Layout::torch;
        } else if (const auto* gru = std::get_if<GruSpec>(&block)) {
            blocks_.push_back(
                make_gru(*gru, in_ - gru->hidden, weights, precisions.front(), activations.first(scales)));
        } else if (const auto* transformer = std::get_if<AdalnTransformerSpec>(&block)) {
            blocks_.push_back(make_adaln_transformer(*transformer, file.spec.latent_dim,
                                                     in_ - file.spec.latent_dim, weights, precisions,
                                                     activations.first(scales)));
        } else if (const auto* vit = std::get_if<VitSpec>(&block)) {
            blocks_.push_back(make_vit(*vit, shape, layout, weights, precisions, activations.first(scales)));
            layout = Layout::torch;
        } else if (const auto* two_hot = std::get_if<TwoHotSpec>(&block)) {
            blocks_.push_back(make_two_hot(*two_hot));
        } else {
            blocks_.push_back(std::holds_alternative<ConvSpec>(block)
                                  ? make_conv(std::get<ConvSpec>(block), shape, layout, weights, precisions,
                                              activations.first(scales))
                                  : make_impala(std::get<ImpalaSpec>(block), shape, layout, weights,
                                                precisions, activations.first(scales)));
            layout = Layout::channels_last;
        }
        file.release(packed);
        activations = activations.subspan(scales);
        limits = limits.subspan(std::min(limits.size(), layers));
        order.clear();
        shape = out;
        sizes_.push_back(elements(shape));
        widest_ = std::max(widest_, simd::padded(sizes_.back()));
    }
    out_ = sizes_.back();
    if (layout == Layout::channels_last) output_order_ = channels_last_order(shape);
    // The last block writes to y itself, unless its output needs sorting or it would overwrite what it still
    // reads.
    buffered_ = !output_order_.empty() || (blocks_.size() == 1 && !blocks_.front()->in_place());
}

size_t Network::workspace(int rows) const noexcept {
    size_t block = 0;
    for (const auto& b : blocks_) block = std::max(block, b->workspace(rows));
    return block + 2 * static_cast<size_t>(widest_) * static_cast<size_t>(rows);
}

void Network::forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                      ptrdiff_t ldy, bool accumulate, float* work) const noexcept {
    run(kernels, x, ldx, rows, y, ldy, accumulate, work, nullptr, nullptr);
}

void Network::advance(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                      ptrdiff_t ldy, bool accumulate, float* work, const Past& past,
                      Recurrence* recurrence) const noexcept {
    run(kernels, x, ldx, rows, y, ldy, accumulate, work, &past, recurrence);
}

// Of all blocks only the first can look back.
size_t Network::past_size() const noexcept {
    return blocks_.front()->past_size();
}

void Network::move(const Past& past, int from, int to) const noexcept {
    blocks_.front()->move(past, from, to);
}

void Network::run(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                  ptrdiff_t ldy, bool accumulate, float* work, const Past* past,
                  Recurrence* recurrence) const noexcept {
    float* buffers[2] = {work, work + static_cast<ptrdiff_t>(widest_) * rows};
    float* const block_work = work + 2 * static_cast<ptrdiff_t>(widest_) * rows;
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const bool direct = i + 1 == blocks_.size() && !buffered_;
        float* const to = direct ? y : buffers[i % 2];
        const ptrdiff_t ld = direct ? ldy : widest_;
        if (recurrence != nullptr && blocks_.size() == 1 && direct && past_size() == 0)
            blocks_[i]->step(kernels, x, ldx, rows, to, ld, accumulate, block_work, *recurrence);
        else if (i == 0 && past != nullptr)
            blocks_[i]->advance(kernels, x, ldx, rows, to, ld, direct && accumulate, block_work, *past);
        else
            blocks_[i]->forward(kernels, x, ldx, rows, to, ld, direct && accumulate, block_work);
        x = to;
        ldx = ld;
    }
    if (!buffered_) return;
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < out_; ++j) {
            float& to = y[r * ldy + (output_order_.empty() ? j : output_order_[static_cast<size_t>(j)])];
            to = accumulate ? to + x[r * ldx + j] : x[r * ldx + j];
        }
}

double Network::flops() const noexcept {
    double total = 0.0;
    for (const auto& b : blocks_) total += b->flops();
    return total;
}

double Network::flops(int steps) const noexcept {
    double total = 0.0;
    for (const auto& b : blocks_) total += b->flops(steps);
    return total;
}

std::unique_ptr<NetworkGradient> Network::differentiate() const {
    std::vector<std::unique_ptr<BlockGradient>> blocks;
    for (const auto& b : blocks_) {
        blocks.push_back(b->differentiate());
        if (blocks.back() == nullptr) return nullptr;
    }
    return std::make_unique<NetworkGradient>(std::move(blocks), sizes_);
}

NetworkGradient::NetworkGradient(std::vector<std::unique_ptr<BlockGradient>> blocks, std::vector<int> sizes)
    : blocks_(std::move(blocks)) {
    for (const int size : sizes) widest_ = std::max(widest_, simd::padded(size));
}

size_t NetworkGradient::tape(int rows) const noexcept {
    size_t floats = 0;
    for (const auto& b : blocks_) floats += b->tape(rows);
    return floats;
}

size_t NetworkGradient::workspace(int rows) const noexcept {
    size_t block = 0;
    for (const auto& b : blocks_) block = std::max(block, b->workspace(rows));
    return block + 2 * static_cast<size_t>(widest_) * static_cast<size_t>(rows);
}

void NetworkGradient::forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, const Steps& steps,
                              int rows, float* y, ptrdiff_t ldy, bool accumulate, float* tape,
                              float* work) const noexcept {
    float* const buffers[2] = {work, work + static_cast<ptrdiff_t>(widest_) * rows};
    float* const block_work = work + 2 * static_cast<ptrdiff_t>(widest_) * rows;
    for (size_t i = 0; i < blocks_.size(); ++i) {
        const bool last = i + 1 == blocks_.size();
        float* const to = last ? y : buffers[i % 2];
        const ptrdiff_t ld = last ? ldy : widest_;
        blocks_[i]->forward_steps(kernels, x, ldx, i == 0 ? steps : Steps{}, rows, to, ld, last && accumulate,
                                  tape, block_work);
        tape += blocks_[i]->tape(rows);
        x = to;
        ldx = ld;
    }
}

void NetworkGradient::backward(const simd::Kernels& kernels, const float* tape, float* dy, ptrdiff_t lddy,
                               const Steps& steps, int rows, float* dx, ptrdiff_t lddx,
                               float* work) const noexcept {
    float* const buffers[2] = {work, work + static_cast<ptrdiff_t>(widest_) * rows};
    float* const block_work = work + 2 * static_cast<ptrdiff_t>(widest_) * rows;
    tape += this->tape(rows);
    for (size_t i = blocks_.size(); i-- > 0;) {
        tape -= blocks_[i]->tape(rows);
        float* const to = i == 0 ? dx : buffers[i % 2];
        const ptrdiff_t ld = i == 0 ? lddx : widest_;
        blocks_[i]->backward_steps(kernels, tape, dy, lddy, i == 0 ? steps : Steps{}, rows, to, ld,
                                   block_work);
        dy = to;
        lddy = ld;
    }
}

}  // namespace pyjepa
