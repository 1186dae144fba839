// One module of the spec, ready to run: its blocks in order.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "agent_file/agent_file.hpp"
#include "model/block.hpp"

namespace pyjepa {

// A network's derivative with respect to its inputs; see BlockGradient.
class NetworkGradient {
  public:
    explicit NetworkGradient(std::vector<std::unique_ptr<BlockGradient>> blocks, std::vector<int> sizes);
    size_t tape(int rows) const noexcept;
    size_t workspace(int rows) const noexcept;
    // Of one step, and of as many as the first block looks back on: see BlockGradient.
    int window() const noexcept { return blocks_.front()->window(); }
    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* tape, float* work) const noexcept {
        forward(kernels, x, ldx, Steps{}, rows, y, ldy, accumulate, tape, work);
    }
    void backward(const simd::Kernels& kernels, const float* tape, float* dy, ptrdiff_t lddy, int rows,
                  float* dx, ptrdiff_t lddx, float* work) const noexcept {
        backward(kernels, tape, dy, lddy, Steps{}, rows, dx, lddx, work);
    }
    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, const Steps& steps, int rows,
                 float* y, ptrdiff_t ldy, bool accumulate, float* tape, float* work) const noexcept;
    void backward(const simd::Kernels& kernels, const float* tape, float* dy, ptrdiff_t lddy,
                  const Steps& steps, int rows, float* dx, ptrdiff_t lddx, float* work) const noexcept;

  private:
    std::vector<std::unique_ptr<BlockGradient>> blocks_;
    int widest_ = 0;
};

class Network {
  public:
    // `input_order`: see PackedDense; for networks whose inputs the engine keeps in another order than the
    // spec lists.
    // `precision` holds for its blocks' quantised_layers, but for those that the spec wants in a higher one.
    // `member`: which network of an ensemble.
    Network(const AgentFile& file, const std::string& name, std::vector<int> input_order,
            simd::Precision precision, int member = 0);

    int in() const noexcept { return in_; }
    int out() const noexcept { return out_; }
    bool residual() const noexcept { return residual_; }
    size_t workspace(int rows) const noexcept;
    // y[r] = blocks(x[r]), added to y if `accumulate`. y may be x. The residual connection is the caller's:
    // it holds the state, and adding to it in place is free.
    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work) const noexcept;
    // Floats a row that a rollout keeps from step to step, and a step of one: see Block.
    // `recurrence`: what follows the output in the next step's input, or nullptr.
    size_t past_size() const noexcept;
    void advance(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float* work, const Past& past,
                 Recurrence* recurrence = nullptr) const noexcept;
    void move(const Past& past, int from, int to) const noexcept;
    double flops() const noexcept;
    double flops(int steps) const noexcept;
    // Its derivative; nullptr if one of its blocks has none. The network outlives it.
    std::unique_ptr<NetworkGradient> differentiate() const;

  private:
    // `past`: nullptr where there is none.
    void run(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y, ptrdiff_t ldy,
             bool accumulate, float* work, const Past* past, Recurrence* recurrence) const noexcept;

    std::vector<std::unique_ptr<Block>> blocks_;
    std::vector<int> sizes_;         // outputs of each block
    std::vector<int> output_order_;  // torch position of each output, where the network ends in an image
    int in_ = 0, out_ = 0, widest_ = 0;
    bool residual_ = false, buffered_ = false;
};

}  // namespace pyjepa
