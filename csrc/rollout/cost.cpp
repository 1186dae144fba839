#include "rollout/cost.hpp"

namespace pyjepa {

std::unique_ptr<CostTerm> make_cost_term(const CostSpec& spec) {
    switch (spec.kind) {
        case CostKind::goal_distance:
            return make_goal_distance(spec.metric);
        case CostKind::action_size:
            return make_action_size();
        case CostKind::action_change:
            return make_action_change();
    }
    return nullptr;
}

Cost::Cost(const std::vector<CostSpec>& specs, const std::vector<float>& weights) {
    for (size_t i = 0; i < specs.size(); ++i) {
        const float u = weights.empty() ? 1.0f : weights[i];
        auto term = make_cost_term(specs[i]);
        const float stage = u * specs[i].stage;
        const float terminal = term->judges_action() ? stage : u * specs[i].terminal;
        terms_.push_back({std::move(term), stage, terminal});
    }
}

bool Cost::needs_goal() const noexcept {
    for (const Weighted& t : terms_)
        if (t.term->needs_goal() && (t.stage != 0.0f || t.terminal != 0.0f)) return true;
    return false;
}

float Cost::intrinsic(const simd::Kernels& kernels, const float* state, int latent,
                      const float* goal) const noexcept {
    const StepView view{kernels, 1, state, latent, latent, goal, nullptr, nullptr, 0, 0, 0};
    float total = 0.0f;
    for (const Weighted& t : terms_) {
        if (t.term->judges_action() || t.stage == 0.0f) continue;
        float cost = 0.0f;
        t.term->score(view, &cost);
        total += t.stage * cost;
    }
    return total;
}

void Cost::add(const StepView& step, bool last, float* total, float* each, float* scratch) const noexcept {
    for (size_t i = 0; i < terms_.size(); ++i) {
        const float weight = last ? terms_[i].terminal : terms_[i].stage;
        if (each != nullptr) each[i] = 0.0f;
        if (weight == 0.0f) continue;
        terms_[i].term->score(step, scratch);
        for (int r = 0; r < step.rows; ++r) total[r] += weight * scratch[r];
        if (each != nullptr) each[i] = weight * scratch[0];
    }
}

void Cost::add_gradient(const StepView& step, bool last, const StepGradient& to,
                        float* scratch) const noexcept {
    for (const Weighted& t : terms_) {
        const float weight = last ? t.terminal : t.stage;
        if (weight != 0.0f) t.term->add_gradient(step, weight, to, scratch);
    }
}

bool Cost::differentiable(int term) const noexcept {
    const Weighted& t = terms_[static_cast<size_t>(term)];
    return t.term->differentiable() || (t.stage == 0.0f && t.terminal == 0.0f);
}

}  // namespace pyjepa
