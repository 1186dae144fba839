// The policy module as actions: its network, its head, the bounds (paper section 3, the actor's policy).
#pragma once

#include <span>
#include <vector>

#include "model/model.hpp"

namespace pyjepa {

class Policy {
  public:
    // `network` is the model's policy in either precision; low and high: (A,) or longer.
    Policy(const Model& model, const Network& network, std::span<const float> low,
           std::span<const float> high);

    bool reads_goal() const noexcept { return reads_goal_; }
    // Whether noise changes what it does.
    bool samples() const noexcept { return head_ == PolicyHead::gaussian_tanh; }
    // Floats of scratch for act.
    size_t workspace(int rows) const noexcept;
    // Actions (rows, A) in the environment's units, one-hot where they are discrete: the first of the largest
    // logits. At states (rows, L) and a goal (L,), nullptr if it reads none. `noise` (rows, A): normals for
    // gaussian_tanh, standard Gumbel variables for logits, and may be `actions` itself; nullptr: the mean.
    // Real-time safe.
    void act(const simd::Kernels& kernels, const float* states, ptrdiff_t ld, int rows, const float* goal,
             const float* noise, ptrdiff_t noise_ld, float* actions, ptrdiff_t action_ld,
             float* work) const noexcept;
    // What it thinks, (rows, A): the logits of discrete actions, or its mean action as a place between the
    // bounds, -1 to 1. Real-time safe.
    void prior(const simd::Kernels& kernels, const float* states, ptrdiff_t ld, int rows, const float* goal,
               float* out, ptrdiff_t out_ld, float* work) const noexcept;
    double flops() const noexcept { return network_.flops(); }

  private:
    // The network's outputs (rows, output_ld_), at the beginning of work.
    float* forward(const simd::Kernels& kernels, const float* states, ptrdiff_t ld, int rows,
                   const float* goal, float* work) const noexcept;

    const Network& network_;
    PolicyHead head_;
    bool reads_state_, reads_goal_;
    int latent_, actions_;
    ptrdiff_t input_ld_, output_ld_;
    std::vector<float> middle_, half_;  // (A,)
};

}  // namespace pyjepa
