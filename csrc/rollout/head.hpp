// A critic or prediction head at work in a tile: what its module reads put together, and the outputs of an
// ensemble's members made one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "model/model.hpp"

namespace pyjepa {

class Head {
  public:
    // `members` (0: all) of the module's networks, drawn for each plan.
    Head(const Model& model, const std::string& module, int members, Reduce reduce);

    int out() const noexcept { return out_; }
    bool reads_action() const noexcept { return reads_action_; }
    bool reads_goal() const noexcept { return reads_goal_; }
    // Floats of scratch for forward.
    size_t workspace(int rows) const noexcept;
    // out (rows, out()), gapless. `inputs`: rows of a state (L,) and, for a head that reads one, the
    // normalised action (D,). `goal` (L,) or nullptr. `draw` decides on the members.
    void forward(const simd::Kernels& kernels, const float* inputs, ptrdiff_t ld, int rows, const float* goal,
                 uint64_t draw, float* out, float* work) const noexcept;
    double flops() const noexcept;

    // Makes the two below ready; false where that cannot be: an ensemble, a block without a backward pass.
    bool differentiate();
    // forward(), keeping in `work` what pull_back needs. gradient_workspace(rows) floats.
    void record(const simd::Kernels& kernels, const float* inputs, ptrdiff_t ld, int rows, const float* goal,
                float* out, float* work) const noexcept;
    // dy (rows, out()), derivatives with respect to the outputs recorded, which it overwrites -> added to
    // states (rows, L) and, for a head that reads them, actions (rows, D).
    void pull_back(const simd::Kernels& kernels, float* dy, int rows, float* states, ptrdiff_t state_ld,
                   float* actions, ptrdiff_t action_ld, float* work) const noexcept;
    size_t gradient_workspace(int rows) const noexcept;

    // `count` of 0 .. n - 1, without repetition, at random as `draw` says.
    static void choose(uint64_t draw, int n, int count, int* chosen) noexcept;

  private:
    // The rows that the networks read: `inputs` as they are, or put together with the goal at `to`.
    const float* gather(const float* inputs, ptrdiff_t& ld, int rows, const float* goal,
                        float* to) const noexcept;

    const std::vector<Network>& networks_;
    std::unique_ptr<NetworkGradient> gradient_;
    int members_;
    Reduce reduce_;
    bool reads_state_, reads_action_, reads_goal_;
    int latent_, plan_dim_, out_;
};

}  // namespace pyjepa
