// Costs and their gradients with respect to plans, through the model's own predictor: forward with a tape,
// then back through time. Tiles are as in native.hpp.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "model/dense.hpp"
#include "model/model.hpp"
#include "parallel/pool.hpp"
#include "rollout/cost.hpp"
#include "rollout/rollout.hpp"

namespace pyjepa {

class NativeGradient {
  public:
    // model, cost and pool outlive it. Throws Error(PYJEPA_UNSUPPORTED) naming what has no gradient.
    NativeGradient(const Model& model, Cost& cost, Pool& pool, const RolloutLimits& limits);
    // See Rollout::gradient.
    bool evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                  float* gradient, const Deadline& deadline);

  private:
    // One worker's scratch. Rows are `ld_` apart: a state, the action behind it; steps `apart()`. Before
    // `states` is room for the steps that the predictor looks back on.
    struct Lane {
        float *actions, *slope, *states, *tape, *dy, *dx, *carry, *cost, *scratch, *proposal, *network,
            *heads;
    };
    // Laid out from `memory` on; returns where it ends.
    float* lay_out(float* memory, Lane& lane) const noexcept;
    Lane lane(int thread) noexcept;
    ptrdiff_t apart() const noexcept { return static_cast<ptrdiff_t>(block_) * ld_; }
    // The inputs that the predictor reads at step t, `before` steps before the present among them.
    Steps steps_at(int before, int t) const noexcept {
        return {std::min(before + t + 1, predictor_->window()), apart()};
    }
    void forward(const Situation& now, int e, int rows, const Lane& lane) noexcept;
    void backward(const Situation& now, int e, int rows, const Lane& lane) noexcept;
    // What terms of actions, or of states, see of step t.
    StepView view(Cost::Of what, const Situation& now, int e, int t, int rows,
                  const Lane& lane) const noexcept;

    const Model& model_;
    const Cost& cost_;
    Pool& pool_;
    std::unique_ptr<NetworkGradient> predictor_;
    int steps_, latent_, plan_dim_, ld_, block_;
    size_t proposal_scratch_, lane_size_ = 0;
    std::vector<float> discounts_;  // (S,)
    AlignedFloats memory_, snapshot_;
};

}  // namespace pyjepa
