// A block of a network: packed weights and a forward pass. One file per kind: mlp.cpp, conv.cpp, impala.cpp,
// two_hot.cpp, gru.cpp, adaln_transformer.cpp, vit.cpp.
//
// Inside the engine images are (H, W, C), channel last; torch's (C, H, W) is undone when weights are packed,
// and restored only where a network ends in an image. To add a block: a spec struct (spec.hpp, spec.py), its
// reader and shape (agent_file/), a file here, a torch module (pyjepa/blocks.py).
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/spec.hpp"
#include "simd/kernels.hpp"

namespace pyjepa {

// The inputs of some steps of a rollout: x[r] of the newest, and `apart` floats before it that of the one
// before.
struct Steps {
    int count = 1;
    ptrdiff_t apart = 0;
};

// A block's derivative with respect to its input: made once, where a planner asks for it, and holding what
// that takes (transposed weights). Real-time safe as Block::forward is.
class BlockGradient {
  public:
    virtual ~BlockGradient() = default;
    // Floats that forward leaves on its tape for backward, and floats of scratch for either.
    virtual size_t tape(int rows) const noexcept = 0;
    virtual size_t workspace(int rows) const noexcept = 0;
    // As Block::forward; y must not be x.
    virtual void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                         ptrdiff_t ldy, bool accumulate, float* tape, float* work) const noexcept = 0;
    // dx[r] = (dy[r] / dx[r])^T dy[r], from the tape of the forward pass with as many rows. Overwrites dy.
    virtual void backward(const simd::Kernels& kernels, const float* tape, float* dy, ptrdiff_t lddy,
                          int rows, float* dx, ptrdiff_t lddx, float* work) const noexcept = 0;
    // Steps whose inputs it reads at most: more than one where it looks back. Then it takes those, the
    // newest's output is y, and dx is laid out as x is.
    virtual int window() const noexcept { return 1; }
    virtual void forward_steps(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, const Steps&,
                               int rows, float* y, ptrdiff_t ldy, bool accumulate, float* tape,
                               float* work) const noexcept {
        forward(kernels, x, ldx, rows, y, ldy, accumulate, tape, work);
    }
    virtual void backward_steps(const simd::Kernels& kernels, const float* tape, float* dy, ptrdiff_t lddy,
                                const Steps&, int rows, float* dx, ptrdiff_t lddx,
                                float* work) const noexcept {
        backward(kernels, tape, dy, lddy, rows, dx, lddx, work);
    }
};

// What a block that looks back keeps of a rollout of at most `capacity` rows: past_size() floats for each,
// laid out as the block likes and in need of no preparation; and which step this is, from 0.
struct Past {
    float* floats = nullptr;
    int capacity = 0;
    int step = 0;
};

// Steps of a recurrence: y = x + f(x), or f(x), where the next x is y and then `count` numbers that are known
// already. A block may leave that input in `work` as it will want it; then those are not behind the next x.
struct Recurrence {
    const float* more = nullptr;  // (rows, count); nullptr: this step is the last
    ptrdiff_t ld_more = 0;
    int count = 0;
    bool ready = false;  // whether it did so; the caller takes it back where rows move
    int buffer = 0;      // and where
};

class Block {
  public:
    virtual ~Block() = default;
    // Floats of scratch that forward needs for `rows` inputs.
    virtual size_t workspace(int rows) const noexcept = 0;
    // y[r] = f(x[r]), added to y if `accumulate`. Real-time safe: no allocation, no system call, no
    // exception. y may be x itself only where in_place() says so.
    virtual void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                         ptrdiff_t ldy, bool accumulate, float* work) const noexcept = 0;
    // The same as a step of a recurrence, `work` being what the step before left.
    virtual void step(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                      ptrdiff_t ldy, bool accumulate, float* work, Recurrence&) const noexcept {
        forward(kernels, x, ldx, rows, y, ldy, accumulate, work);
    }
    virtual bool in_place() const noexcept { return false; }
    // Floats a row that a rollout keeps from step to step; 0 for what depends on its input alone.
    virtual size_t past_size() const noexcept { return 0; }
    // As forward, which is the first step of a rollout, at any step of one.
    virtual void advance(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                         ptrdiff_t ldy, bool accumulate, float* work, const Past&) const noexcept {
        forward(kernels, x, ldx, rows, y, ldy, accumulate, work);
    }
    // Row `to` becomes what row `from` was, as of the steps before past.step.
    virtual void move(const Past&, int /*from*/, int /*to*/) const noexcept {}
    // Multiply-adds * 2 for one input, and for a rollout of so many steps.
    virtual double flops() const noexcept = 0;
    virtual double flops(int steps) const noexcept { return flops() * steps; }
    // nullptr for what has no backward pass: convolutions, and weights of lower precision. The block outlives
    // it.
    virtual std::unique_ptr<BlockGradient> differentiate() const { return nullptr; }
};

// How a block finds its parameters: `weights("linear0.weight")`.
using Weights = std::function<std::span<const float>(const std::string&)>;

// How a block's input is laid out in memory, where torch's order differs.
enum class Layout { torch, channels_last };

// `order`: what PackedDense takes, for the first layer.
// precisions: for each of quantised_layers that of the weights and of what they are multiplied with; the
// machine must have kernels for it.
// activations: for int8 the scales of those layers' inputs, or none, then each row gets one as it comes.
std::unique_ptr<Block> make_mlp(const MlpSpec& spec, int in, std::span<const int> order,
                                const Weights& weights, std::span<const simd::Precision> precisions,
                                std::span<const ActivationScale> activations);
std::unique_ptr<Block> make_conv(const ConvSpec& spec, const Shape& in, Layout layout, const Weights& weights,
                                 std::span<const simd::Precision> precisions,
                                 std::span<const ActivationScale> activations);
std::unique_ptr<Block> make_impala(const ImpalaSpec& spec, const Shape& in, Layout layout,
                                   const Weights& weights, std::span<const simd::Precision> precisions,
                                   std::span<const ActivationScale> activations);
std::unique_ptr<Block> make_vit(const VitSpec& spec, const Shape& in, Layout layout, const Weights& weights,
                                std::span<const simd::Precision> precisions,
                                std::span<const ActivationScale> activations);
std::unique_ptr<Block> make_two_hot(const TwoHotSpec& spec);
// Reads the hidden state, then `in` numbers. activations: for int8 the hidden state's scale, or none.
std::unique_ptr<Block> make_gru(const GruSpec& spec, int in, const Weights& weights,
                                simd::Precision precision, std::span<const ActivationScale> activations);

// Reads the state, `latent` numbers, then `in` numbers.
std::unique_ptr<Block> make_adaln_transformer(const AdalnTransformerSpec& spec, int latent, int in,
                                              const Weights& weights,
                                              std::span<const simd::Precision> precisions,
                                              std::span<const ActivationScale> activations);

// One layer's part of `activations`.
inline std::span<const ActivationScale> scale_of(std::span<const ActivationScale> activations, size_t layer) {
    return activations.empty() ? activations : activations.subspan(layer, 1);
}

inline simd::Act to_act(Activation a) {
    switch (a) {
        case Activation::none:
            return simd::Act::none;
        case Activation::relu:
            return simd::Act::relu;
        case Activation::gelu:
            return simd::Act::gelu;
        case Activation::silu:
            return simd::Act::silu;
        case Activation::mish:
            return simd::Act::mish;
        case Activation::tanh:
            return simd::Act::tanh;
    }
    return simd::Act::none;
}

}  // namespace pyjepa
