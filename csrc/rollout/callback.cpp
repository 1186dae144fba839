#include "rollout/callback.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "error.hpp"

namespace pyjepa {

void expand_to_actions(const Spec& spec, const float* plan, int steps, float* actions) noexcept {
    const int per_step = spec.plan_dim / spec.action_dim;  // actions
    const int repeat = spec.level.action_block / per_step;
    for (int s = 0; s < steps; ++s, plan += spec.plan_dim)
        for (int i = 0; i < repeat; ++i)
            for (int b = 0; b < per_step; ++b, actions += spec.action_width) {
                const float* action = plan + b * spec.action_dim;
                if (spec.actions.discrete())
                    *actions =
                        static_cast<float>(std::max_element(action, action + spec.action_dim) - action);
                else
                    std::copy_n(action, spec.action_dim, actions);
            }
}

CallbackRollout::CallbackRollout(const Spec& spec, pyjepa_rollout_fn function, void* user,
                                 const RolloutLimits& limits)
    : spec_(spec), function_(function), user_(user), steps_(limits.steps) {
    const auto n = static_cast<size_t>(limits.candidates), s = static_cast<size_t>(steps_);
    plans_ = AlignedFloats(n * s * static_cast<size_t>(spec.plan_dim));
    actions_ = AlignedFloats(static_cast<size_t>(limits.environments) * n * s *
                             static_cast<size_t>(spec.level.action_block * spec.action_width));
    scratch_ = AlignedFloats(n * limits.proposal_scratch_per_row);
    snapshot_ = AlignedFloats(limits.proposal_snapshot);
}

bool CallbackRollout::evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                               const Deadline& deadline) {
    if (deadline.over()) return false;
    const int horizon = steps_ * spec_.level.action_block;
    const ptrdiff_t plan = static_cast<ptrdiff_t>(steps_) * spec_.plan_dim;
    float* to = actions_.data();
    proposal.snapshot(snapshot_.data());
    for (int e = 0; e < now.environments; ++e) {
        proposal.fill(snapshot_.data(), e, 0, candidates, plans_.data(), scratch_.data());
        for (int n = 0; n < candidates; ++n, to += static_cast<ptrdiff_t>(horizon) * spec_.action_width)
            expand_to_actions(spec_, plans_.data() + n * plan, steps_, to);
    }
    const ptrdiff_t count = static_cast<ptrdiff_t>(now.environments) * candidates;
    std::fill_n(cost, count, std::nanf(""));  // what the callback leaves out is found out
    const int result =
        function_(user_, now.states, now.goals, actions_.data(), static_cast<size_t>(now.environments),
                  static_cast<size_t>(candidates), static_cast<size_t>(horizon),
                  static_cast<size_t>(spec_.action_width), static_cast<size_t>(spec_.latent_dim), cost);
    if (result != 0)
        throw Error(PYJEPA_CALLBACK, "the rollout callback failed with code " + std::to_string(result));
    for (ptrdiff_t i = 0; i < count; ++i)
        if (!std::isfinite(cost[i]))
            throw Error(PYJEPA_CALLBACK, "the rollout callback returned " + std::to_string(cost[i]) +
                                             " as the cost of candidate " + std::to_string(i % candidates) +
                                             " in environment " + std::to_string(i / candidates));
    return true;
}

}  // namespace pyjepa
