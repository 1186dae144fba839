// Rollouts that the user provides: whole arrays of candidates out, costs in, once per planner iteration.
#pragma once

#include "model/dense.hpp"
#include "model/spec.hpp"
#include "pyjepa/pyjepa.h"
#include "rollout/rollout.hpp"

namespace pyjepa {

class CallbackRollout final : public Rollout {
  public:
    CallbackRollout(const Spec& spec, pyjepa_rollout_fn function, void* user, const RolloutLimits& limits);
    bool evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                  const Deadline& deadline) override;
    bool trace(const Situation&, int, const float*, float*, float*) noexcept override { return false; }
    double flops_per_candidate() const noexcept override { return 0.0; }

  private:
    const Spec& spec_;
    pyjepa_rollout_fn function_;
    void* user_;
    int steps_;
    AlignedFloats plans_, actions_, scratch_, snapshot_;
};

// A plan (S, D) as environment actions (S * action_block, A): held, or taken apart; discrete ones as indices.
void expand_to_actions(const Spec& spec, const float* plan, int steps, float* actions) noexcept;

}  // namespace pyjepa
