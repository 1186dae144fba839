#include "planner/optimise.hpp"

#include <algorithm>

namespace pyjepa {

size_t Optimiser::Mean::snapshot_size() const noexcept {
    return static_cast<size_t>(planner_.settings().environments) * planner_.knots_size();
}

void Optimiser::Mean::snapshot(float* out) const noexcept {
    std::copy_n(planner_.mean(0), snapshot_size(), out);
}

void Optimiser::Mean::fill(const float* snapshot, int e, int n0, int n1, float* out, float*) const noexcept {
    if (n0 < n1) planner_.expand(snapshot + static_cast<size_t>(e) * planner_.knots_size(), out);
}

Optimiser::Optimiser(Planner& planner, Rollout& rollout)
    : planner_(planner), rollout_(rollout), mean_(planner) {
    const auto e = static_cast<size_t>(planner.settings().environments);
    cost_ = AlignedFloats(e * static_cast<size_t>(planner.settings().candidates));
    best_ = AlignedFloats(e * planner.knots_size());
    best_cost_.resize(e);
}

bool Optimiser::evaluate_mean(const Situation& now, const Deadline& deadline, bool first) {
    if (!rollout_.evaluate(now, mean_, 1, cost_.data(), deadline)) return false;
    for (int e = 0; e < now.environments; ++e) {
        const auto i = static_cast<size_t>(e);
        if (!first && !(cost_[i] < best_cost_[i])) continue;
        best_cost_[i] = cost_[i];
        std::copy_n(planner_.mean(e), planner_.knots_size(), best_.data() + i * planner_.knots_size());
    }
    return true;
}

bool Optimiser::improve(const Situation& now, int iteration, const Deadline& deadline) {
    const PlannerSettings& s = planner_.settings();
    planner_.iterate(iteration);
    if (!rollout_.evaluate(now, planner_, s.candidates, cost_.data(), deadline)) return false;
    for (int e = 0; e < s.environments; ++e) {
        const float* cost = cost_.data() + static_cast<ptrdiff_t>(e) * s.candidates;
        const auto best = std::min_element(cost, cost + s.candidates) - cost;  // the first of equals
        const auto i = static_cast<size_t>(e);
        if (cost[best] < best_cost_[i]) {
            best_cost_[i] = cost[best];
            planner_.sample(e, static_cast<int>(best), best_.data() + i * planner_.knots_size());
        }
        planner_.refit(e, cost);
    }
    return true;
}

int Optimiser::plan(const Situation& now, const float* shift, const Deadline& deadline) {
    const PlannerSettings& s = planner_.settings();
    for (int e = 0; e < s.environments; ++e) planner_.begin(e, shift[e]);
    evaluate_mean(now, Deadline(), true);  // even with no time left: what is returned has been evaluated

    if (s.policy_candidates > 0) {
        planner_.draw_proposals();
        if (!rollout_.propose(now, s.policy_candidates, planner_.proposals(), deadline)) return 0;
    }
    int completed = 0;
    while (completed < s.iterations && improve(now, completed, deadline)) ++completed;
    // What the last refit arrived at has not been evaluated yet.
    if (completed == s.iterations && completed > 0) evaluate_mean(now, deadline, false);
    for (int e = 0; e < s.environments; ++e) planner_.set_mean(e, knots(e));
    return completed;
}

}  // namespace pyjepa
