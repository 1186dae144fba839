// Single moves through the model's own predictor, for tree search: what Rollout::move and Rollout::prior
// promise.
#pragma once

#include <vector>

#include "model/dense.hpp"
#include "model/model.hpp"
#include "model/policy.hpp"
#include "parallel/pool.hpp"
#include "rollout/cost.hpp"
#include "rollout/rollout.hpp"

namespace pyjepa {

class NativeMoves {
  public:
    // model, cost, policy (nullptr: there is none) and pool outlive it.
    NativeMoves(const Model& model, const Cost& cost, const Policy* policy, Pool& pool, int steps);
    void move(const Situation& now, const Moves& moves) noexcept;
    void prior(const Situation& now, int e, int rows, const float* const* states, float* const* out) noexcept;
    bool has_prior() const noexcept;

  private:
    // One worker's scratch.
    struct Lane {
        float *state, *action, *previous, *cost, *stage, *terminal, *stay, *scratch, *network, *heads;
    };
    Lane lane(int thread) noexcept;
    void run(const Situation& now, const Moves& moves, int r0, int rows, const Lane& lane) noexcept;
    void normalise(const float* action, float* out) const noexcept;  // (D,)

    const Model& model_;
    const Network& predictor_;
    const Cost& cost_;
    const Policy* policy_;
    Pool& pool_;
    int steps_, latent_, plan_dim_, state_ld_;
    size_t network_work_, head_work_, lane_size_;
    std::vector<float> discount_;  // (S,): of each step
    std::vector<float> until_;     // (S + 1,): the sum of those before it
    AlignedFloats memory_, zero_;  // zero_ (D,): no action at all
};

}  // namespace pyjepa
