// A rollout of the caller's that does what the model's own does, elsewhere: on a GPU, say. Whole arrays of
// plans out, costs and gradients in, once per planner iteration; what else is asked the model's own answers.
#pragma once

#include "model/dense.hpp"
#include "model/spec.hpp"
#include "pyjepa/pyjepa.h"
#include "rollout/native.hpp"
#include "rollout/rollout.hpp"

namespace pyjepa {

class StandInRollout final : public Rollout {
  public:
    // `native` traces and proposes; it needs no room for more.
    StandInRollout(const Spec& spec, pyjepa_rollout_call_fn function, void* user, const RolloutLimits& limits,
                   std::unique_ptr<NativeRollout> native);
    bool evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                  const Deadline& deadline) override;
    bool gradient(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                  float* gradient, const Deadline& deadline) override;
    bool trace(const Situation& now, int e, const float* plan, float* states,
               float* terms) noexcept override {
        return native_->trace(now, e, plan, states, terms);
    }
    bool propose(const Situation& now, int count, float* plans, const Deadline& deadline) override {
        return native_->propose(now, count, plans, deadline);
    }
    double flops_per_proposal() const noexcept override { return native_->flops_per_proposal(); }
    double flops_per_candidate() const noexcept override { return native_->flops_per_candidate(); }

  private:
    const Spec& spec_;
    pyjepa_rollout_call_fn function_;
    void* user_;
    int steps_;
    AlignedFloats plans_, previous_, scratch_, snapshot_;
    std::unique_ptr<NativeRollout> native_;
};

}  // namespace pyjepa
