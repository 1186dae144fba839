// Rollouts through the model's own predictor, on the CPU.
//
// A tile - one environment, a few dozen candidates - goes through the whole horizon with its activations in
// cache: weights stream, nothing else moves, and threads meet once per call.
#pragma once

#include <memory>
#include <vector>

#include "model/dense.hpp"
#include "model/model.hpp"
#include "parallel/pool.hpp"
#include "rollout/cost.hpp"
#include "rollout/native_gradient.hpp"
#include "rollout/rollout.hpp"

namespace pyjepa {

class NativeRollout final : public Rollout {
  public:
    // model, cost and pool outlive the rollout.
    NativeRollout(const Model& model, const Cost& cost, Pool& pool, const RolloutLimits& limits);
    bool evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                  const Deadline& deadline) override;
    bool gradient(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                  float* gradient, const Deadline& deadline) override {
        return gradient_->evaluate(now, proposal, candidates, cost, gradient, deadline);
    }
    bool trace(const Situation& now, int e, const float* plan, float* states, float* terms) noexcept override;
    double flops_per_candidate() const noexcept override { return predictor_.flops() * steps_; }

  private:
    // One worker's scratch.
    struct Lane {
        float *actions, *state, *cost, *scratch, *proposal, *network;
    };
    Lane lane(int thread) noexcept;
    // Rolls `rows` sequences of lane.actions (rows, S, D), in action units, out from environment e's state.
    void roll(const Situation& now, int e, int rows, const Lane& lane, float* states, float* terms) noexcept;

    const Model& model_;
    const Network& predictor_;
    const Cost& cost_;
    Pool& pool_;
    int steps_, latent_, plan_dim_, state_ld_, block_;
    size_t lane_size_, proposal_scratch_, network_work_;
    AlignedFloats memory_;
    std::unique_ptr<NativeGradient> gradient_;  // where the limits ask for it
};

}  // namespace pyjepa
