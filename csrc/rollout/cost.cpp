#include "rollout/cost.hpp"

#include <algorithm>
#include <cmath>

namespace pyjepa {

std::unique_ptr<CostTerm> make_cost_term(const Model& model, const Policy* policy, const CostSpec& spec) {
    switch (spec.kind) {
        case CostKind::goal_distance:
            return make_goal_distance(model, spec);
        case CostKind::action_size:
            return make_action_size();
        case CostKind::action_change:
            return make_action_change();
        case CostKind::reward:
            return make_reward(model, spec);
        case CostKind::disagreement:
            return make_disagreement(model, spec);
        case CostKind::hazard:
            return make_hazard(model, spec);
        case CostKind::box:
            return make_box(model, spec);
        case CostKind::half_space:
            return make_half_space(model, spec);
        case CostKind::critic:
            return make_critic(model, policy, spec);
    }
    return nullptr;
}

Cost::Cost(const Model& model, const Policy* policy, const std::vector<float>& weights, float discount)
    : discount_(discount) {
    const std::vector<CostSpec>& specs = model.spec().cost;
    for (size_t i = 0; i < specs.size(); ++i) {
        auto term = make_cost_term(model, policy, specs[i]);
        const float u = (weights.empty() ? 1.0f : weights[i]) * (term->judges_future() ? discount_ : 1.0f);
        const float stage = u * specs[i].stage;
        const float terminal = term->judges_action() ? stage : u * specs[i].terminal;
        terms_.push_back({std::move(term), stage, terminal});
    }
}

const char* Cost::needs_goal() const noexcept {
    for (const Weighted& t : terms_)
        if (const char* name = t.term->needs_goal(); name != nullptr && t.used()) return name;
    return nullptr;
}

float Cost::intrinsic(const simd::Kernels& kernels, float* state, int latent, const float* goal,
                      int environment, float* work) const noexcept {
    const StepView view{kernels, environment, 1, state, latent, latent, goal, nullptr,
                        nullptr, 0,           0, 0,     0,      1.0f,   work};
    float total = 0.0f;
    for (const Weighted& t : terms_) {
        if (t.term->judges_action() || t.term->judges_future() || t.stage == 0.0f) continue;
        float cost = 0.0f;
        t.term->score(view, &cost);
        if (!std::isinf(cost)) total += t.stage * cost;  // a hard constraint filters plans, it is not felt
    }
    return total;
}

bool Cost::only_rises() const noexcept {
    return std::all_of(terms_.begin(), terms_.end(),
                       [](const Weighted& t) { return !t.used() || t.term->non_negative(); });
}

bool Cost::judges_actions() const noexcept {
    return std::any_of(terms_.begin(), terms_.end(),
                       [](const Weighted& t) { return t.used() && t.term->judges_action(); });
}

void Cost::set_goals(const float* goals, int environments) {
    for (const Weighted& t : terms_) t.term->set_goals(goals, environments);
}

size_t Cost::workspace(int rows) const noexcept {
    size_t most = 0;
    for (const Weighted& t : terms_)
        if (t.used()) most = std::max(most, t.term->workspace(rows));
    return most;
}

double Cost::flops(int steps) const noexcept {
    double total = 0.0;
    for (const Weighted& t : terms_)
        total += t.term->flops() * ((t.stage != 0.0f ? steps - 1 : 0) + (t.terminal != 0.0f ? 1 : 0));
    return total;
}

void Cost::add(Of what, const StepView& step, bool last, float* total, float* each,
               float* scratch) const noexcept {
    for (size_t i = 0; i < terms_.size(); ++i) {
        if (terms_[i].term->judges_action() != (what == Of::action)) continue;
        const float weight = (last ? terms_[i].terminal : terms_[i].stage) * step.discount;
        if (each != nullptr) each[i] = 0.0f;
        if (weight == 0.0f) continue;
        terms_[i].term->score(step, scratch);
        for (int r = 0; r < step.rows; ++r) total[r] += weight * scratch[r];
        if (each != nullptr) each[i] = weight * scratch[0];
    }
}

int Cost::differentiate() {
    for (size_t i = 0; i < terms_.size(); ++i)
        if (terms_[i].used() && !terms_[i].term->differentiate()) return static_cast<int>(i);
    return -1;
}

void Cost::add_gradient(Of what, const StepView& step, bool last, const StepGradient& to) const noexcept {
    for (const Weighted& t : terms_) {
        if (t.term->judges_action() != (what == Of::action)) continue;
        const float weight = (last ? t.terminal : t.stage) * step.discount;
        if (weight != 0.0f) t.term->add_gradient(step, weight, to);
    }
}

size_t Cost::gradient_workspace(int rows) const noexcept {
    size_t most = 0;
    for (const Weighted& t : terms_)
        if (t.used()) most = std::max(most, t.term->gradient_workspace(rows));
    return most;
}

}  // namespace pyjepa
