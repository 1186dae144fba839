#include "planner/optimise.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

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
    const PlannerSettings& s = planner.settings();
    const auto e = static_cast<size_t>(s.environments);
    const int descending = planner.descending();
    cost_ = AlignedFloats(e * static_cast<size_t>(std::max(s.candidates, descending)));
    gradient_ = AlignedFloats(e * static_cast<size_t>(descending) * static_cast<size_t>(s.steps) *
                              static_cast<size_t>(s.plan_dim));
    best_ = AlignedFloats(e * planner.knots_size());
    best_cost_.resize(e);
    history_.resize(e * history_size());
}

bool Optimiser::evaluate_mean(const Situation& now, const Deadline& deadline) {
    if (!rollout_.evaluate(now, mean_, 1, cost_.data(), deadline)) return false;
    for (int e = 0; e < now.environments; ++e) {
        const auto i = static_cast<size_t>(e);
        if (!(cost_[i] < best_cost_[i])) continue;
        best_cost_[i] = cost_[i];
        std::copy_n(planner_.mean(e), planner_.knots_size(), best_.data() + i * planner_.knots_size());
    }
    return true;
}

bool Optimiser::improve(const Situation& now, int iteration, const Deadline& deadline) {
    const PlannerSettings& s = planner_.settings();
    const ptrdiff_t plan = static_cast<ptrdiff_t>(s.steps) * s.plan_dim;
    planner_.iterate(iteration);
    const int count = planner_.count(iteration);
    const bool descends = planner_.descends(iteration);
    if (!(descends ? rollout_.gradient(now, planner_, count, cost_.data(), gradient_.data(), deadline)
                   : rollout_.evaluate(now, planner_, count, cost_.data(), deadline)))
        return false;
    for (int e = 0; e < s.environments; ++e) {
        const float* cost = cost_.data() + static_cast<ptrdiff_t>(e) * count;
        const auto best = std::min_element(cost, cost + count) - cost;  // the first of equals
        const auto i = static_cast<size_t>(e);
        if (cost[best] < best_cost_[i]) {
            best_cost_[i] = cost[best];
            planner_.sample(e, static_cast<int>(best), best_.data() + i * planner_.knots_size());
        }
        if (descends)
            planner_.descend(e, cost, gradient_.data() + e * count * plan);
        else
            planner_.refit(e, cost);
    }
    return true;
}

int Optimiser::plan(const Situation& now, const float* shift, const Deadline& deadline) {
    const PlannerSettings& s = planner_.settings();
    for (int e = 0; e < s.environments; ++e) planner_.begin(e, shift[e]);
    std::copy_n(planner_.mean(0), best_.size(), best_.data());
    std::fill(best_cost_.begin(), best_cost_.end(), std::numeric_limits<float>::infinity());
    const auto record = [&](int iteration) {
        for (int e = 0; e < s.environments; ++e)
            history_[static_cast<size_t>(e) * history_size() + static_cast<size_t>(iteration)] = cost(e);
    };
    // Even with no time left, what is returned has been evaluated; without a deadline, as the first
    // candidate.
    const auto evaluate_start = [&] {
        evaluate_mean(now, Deadline());
        record(0);
    };
    const bool evaluated = deadline.set() || s.iterations == 0 || !begins_with_mean();
    if (evaluated) evaluate_start();
    bool on_time = s.policy_candidates == 0 || !deadline.over();
    if (s.policy_candidates > 0 && on_time) {
        planner_.draw_proposals();
        on_time = rollout_.propose(now, s.policy_candidates, planner_.proposals(), deadline);
        planner_.bound_proposals();
    }
    int completed = 0;
    for (; on_time && completed < s.iterations && improve(now, completed, deadline); ++completed) {
        for (int e = 0; e < s.environments && completed == 0 && !evaluated; ++e)
            history_[static_cast<size_t>(e) * history_size()] =
                cost_[static_cast<size_t>(e) * static_cast<size_t>(planner_.count(0))];
        record(completed + 1);
    }
    if (completed == 0 && !evaluated) evaluate_start();
    // What the last refit arrived at has not been evaluated yet.
    if (completed == s.iterations && completed > 0) evaluate_mean(now, deadline);
    for (int e = 0; e < s.environments; ++e)
        std::fill(
            history_.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(e) * history_size()) + completed,
            history_.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(e + 1) * history_size()), cost(e));
    for (int e = 0; e < s.environments; ++e) planner_.set_mean(e, knots(e));
    return completed;
}

int Optimiser::converged(int e) const noexcept {
    const float* costs = history(e);
    const float within = cost(e) + 0.01f * std::abs(cost(e));
    int iteration = 0;
    while (iteration + 1 < static_cast<int>(history_size()) && costs[iteration] > within) ++iteration;
    return iteration;
}

}  // namespace pyjepa
