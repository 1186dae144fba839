#include "rollout/stand_in.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "error.hpp"

namespace pyjepa {

StandInRollout::StandInRollout(const Spec& spec, pyjepa_rollout_call_fn function, void* user,
                               const RolloutLimits& limits, std::unique_ptr<NativeRollout> native)
    : spec_(spec), function_(function), user_(user), steps_(limits.steps), native_(std::move(native)) {
    const auto e = static_cast<size_t>(limits.environments),
               n = static_cast<size_t>(std::max(limits.candidates, limits.descending)),
               d = static_cast<size_t>(spec.plan_dim);
    plans_ = AlignedFloats(e * n * static_cast<size_t>(steps_) * d);
    previous_ = AlignedFloats(e * d);
    scratch_ = AlignedFloats(n * limits.proposal_scratch_per_row);
    snapshot_ = AlignedFloats(limits.proposal_snapshot);
}

bool StandInRollout::evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                              const Deadline& deadline) {
    return gradient(now, proposal, candidates, cost, nullptr, deadline);
}

bool StandInRollout::gradient(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                              float* gradient, const Deadline& deadline) {
    if (deadline.over()) return false;
    const ptrdiff_t per_plan = static_cast<ptrdiff_t>(steps_) * spec_.plan_dim;
    proposal.snapshot(snapshot_.data());
    for (int e = 0; e < now.environments; ++e) {
        proposal.fill(snapshot_.data(), e, 0, candidates, plans_.data() + e * candidates * per_plan,
                      scratch_.data());
        for (int d = 0; d < spec_.plan_dim; ++d) {
            const auto i = static_cast<size_t>(e * spec_.plan_dim + d),
                       a = static_cast<size_t>(d % spec_.action_dim);
            previous_[i] = now.has_previous[e]
                               ? now.previous[i] * spec_.actions.scale[a] + spec_.actions.center[a]
                               : std::nanf("");
        }
    }
    const ptrdiff_t count = static_cast<ptrdiff_t>(now.environments) * candidates;
    std::fill_n(cost, count, std::nanf(""));  // what the callback leaves out is found out
    if (gradient != nullptr) std::fill_n(gradient, count * per_plan, std::nanf(""));
    const pyjepa_rollout_call call{sizeof(pyjepa_rollout_call),
                                   static_cast<size_t>(now.environments),
                                   static_cast<size_t>(candidates),
                                   static_cast<size_t>(steps_),
                                   static_cast<size_t>(spec_.plan_dim),
                                   static_cast<size_t>(spec_.latent_dim),
                                   now.states,
                                   now.goals,
                                   plans_.data(),
                                   previous_.data(),
                                   now.draws,
                                   cost,
                                   gradient};
    const int result = function_(user_, &call);
    if (result != 0)
        throw Error(PYJEPA_CALLBACK, "the rollout callback failed with code " + std::to_string(result));
    const auto where = [candidates](ptrdiff_t i) {
        return "candidate " + std::to_string(i % candidates) + " in environment " +
               std::to_string(i / candidates);
    };
    for (ptrdiff_t i = 0; i < count; ++i) {
        if (!(cost[i] > -HUGE_VALF))  // infinite: it leads nowhere
            throw Error(PYJEPA_CALLBACK, "the rollout callback returned " + std::to_string(cost[i]) +
                                             " as the cost of " + where(i));
        if (gradient != nullptr && !std::all_of(gradient + i * per_plan, gradient + (i + 1) * per_plan,
                                                [](float g) { return std::isfinite(g); }))
            throw Error(PYJEPA_CALLBACK,
                        "the rollout callback returned a gradient that is not finite for " + where(i));
    }
    return true;
}

}  // namespace pyjepa
