#include "rollout/native_gradient.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "error.hpp"

namespace pyjepa {
namespace {

// Rows per tile: what one thread has to do, at most two register tiles, so that the tape stays in L2.
int choose_block(const RolloutLimits& limits, int threads) {
    constexpr int most = 24;
    const int share = (limits.environments * std::min(limits.descending, most) + threads - 1) / threads;
    return std::clamp(share, 1, std::min(limits.descending, most));
}

size_t round_up(size_t n) {
    return (n + 15) / 16 * 16;
}

}  // namespace

NativeGradient::NativeGradient(const Model& model, Cost& cost, Pool& pool, const RolloutLimits& limits)
    : model_(model),
      cost_(cost),
      pool_(pool),
      predictor_(model.predictor()->differentiate()),
      steps_(limits.steps),
      latent_(model.spec().latent_dim),
      plan_dim_(model.spec().plan_dim),
      ld_(simd::padded(latent_ + plan_dim_)),
      block_(choose_block(limits, pool.threads())),
      proposal_scratch_(round_up(limits.proposal_scratch_per_row * static_cast<size_t>(block_))) {
    if (model.precision() != simd::Precision::fp32)
        throw Error(PYJEPA_UNSUPPORTED,
                    "planning by gradient needs fp32 weights: load the model in that precision");
    if (predictor_ == nullptr)
        throw Error(PYJEPA_UNSUPPORTED,
                    "planning by gradient: the predictor has a block without a backward pass (mlp, gru and "
                    "adaln_transformer have one)");
    if (const int term = cost.differentiate(); term != -1)
        throw Error(PYJEPA_UNSUPPORTED,
                    "planning by gradient: cost term " + std::to_string(term) +
                        " has no gradient: it asks an ensemble, a policy or a block without a backward pass");
    float discount = 1.0f;
    for (int t = 0; t < steps_; ++t, discount *= cost.discount()) discounts_.push_back(discount);
    snapshot_ = AlignedFloats(limits.proposal_snapshot);
    Lane l{};
    float* const nothing = nullptr;
    lane_size_ = static_cast<size_t>(lay_out(nothing, l) - nothing);
    memory_ = AlignedFloats(lane_size_ * static_cast<size_t>(pool.threads()));
}

float* NativeGradient::lay_out(float* memory, Lane& l) const noexcept {
    const auto rows = static_cast<size_t>(block_), steps = static_cast<size_t>(steps_);
    const size_t row = rows * static_cast<size_t>(ld_), plan = rows * steps * static_cast<size_t>(plan_dim_);
    const auto place = [&memory](float*& at, size_t count) {
        at = memory;
        memory += round_up(count);
    };
    place(l.actions, plan);
    place(l.slope, plan);
    const size_t before = static_cast<size_t>(predictor_->window() - 1) * row;
    place(l.states, before + (steps + 1) * row);
    l.states += before;
    place(l.tape, steps * predictor_->tape(block_));
    place(l.dy, row);
    place(l.dx, static_cast<size_t>(predictor_->window()) * row);
    place(l.carry, (steps + 1) * row);
    for (float** at : {&l.cost, &l.scratch}) place(*at, rows);
    place(l.proposal, proposal_scratch_);
    place(l.network, predictor_->workspace(block_));
    place(l.heads, std::max(cost_.workspace(block_), cost_.gradient_workspace(block_)));
    return memory;
}

NativeGradient::Lane NativeGradient::lane(int thread) noexcept {
    Lane l{};
    lay_out(memory_.data() + lane_size_ * static_cast<size_t>(thread), l);
    return l;
}

bool NativeGradient::evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                              float* gradient, const Deadline& deadline) {
    const int per_environment = (candidates + block_ - 1) / block_;
    const ptrdiff_t plan = static_cast<ptrdiff_t>(steps_) * plan_dim_;
    const ActionSpec& box = model_.spec().actions;
    std::atomic<bool> expired{false};
    proposal.snapshot(snapshot_.data());
    pool_.run(now.environments * per_environment, [&](int tile, int thread) noexcept {
        if (expired.load(std::memory_order_relaxed)) return;
        if (thread == 0 ? deadline.over() : deadline.expired()) {
            expired.store(true, std::memory_order_relaxed);
            return;
        }
        const int e = tile / per_environment, n0 = tile % per_environment * block_;
        const int rows = std::min(block_, candidates - n0);
        const Lane l = lane(thread);
        proposal.fill(snapshot_.data(), e, n0, n0 + rows, l.actions, l.proposal);
        forward(now, e, rows, l);
        backward(now, e, rows, l);
        const ptrdiff_t first = static_cast<ptrdiff_t>(e) * candidates + n0;
        for (int r = 0; r < rows; ++r) {
            const float* from = l.slope + r * plan;
            float* to = gradient + (first + r) * plan;
            for (ptrdiff_t i = 0; i < plan; ++i)
                to[i] = from[i] / box.scale[static_cast<size_t>(i % model_.spec().action_dim)];
            const bool sound = std::isfinite(l.cost[r]) &&
                               std::all_of(to, to + plan, [](float g) { return std::isfinite(g); });
            cost[first + r] = std::isfinite(l.cost[r]) ? l.cost[r] : std::numeric_limits<float>::infinity();
            if (!sound) std::fill_n(to, plan, 0.0f);  // nowhere to go from here
        }
    });
    return !expired.load(std::memory_order_relaxed);
}

StepView NativeGradient::view(Cost::Of what, const Situation& now, int e, int t, int rows,
                              const Lane& l) const noexcept {
    const ptrdiff_t sequence = static_cast<ptrdiff_t>(steps_) * plan_dim_;
    const float* goal = now.goals == nullptr ? nullptr : now.goals + static_cast<ptrdiff_t>(e) * latent_;
    const float* actions = l.actions + static_cast<ptrdiff_t>(t) * plan_dim_;
    const int judged = what == Cost::Of::action ? t : t + 1;
    StepView step{simd::kernels(),
                  e,
                  rows,
                  l.states + judged * static_cast<ptrdiff_t>(block_) * ld_,
                  ld_,
                  latent_,
                  goal,
                  actions,
                  nullptr,
                  sequence,
                  sequence,
                  plan_dim_,
                  now.draws[e],
                  discounts_[static_cast<size_t>(t)],
                  l.heads};
    if (t > 0) {
        step.previous = actions - plan_dim_;
    } else if (now.has_previous[e]) {
        step.previous = now.previous + static_cast<ptrdiff_t>(e) * plan_dim_;
        step.previous_ld = 0;
    }
    return step;
}

void NativeGradient::forward(const Situation& now, int e, int rows, const Lane& l) noexcept {
    const ActionSpec& box = model_.spec().actions;
    const int action_dim = model_.spec().action_dim;
    const ptrdiff_t sequence = static_cast<ptrdiff_t>(steps_) * plan_dim_;
    for (ptrdiff_t i = 0; i < rows * sequence; ++i) {
        const auto a = static_cast<size_t>(i % action_dim);
        l.actions[i] = (l.actions[i] - box.center[a]) / box.scale[a];
    }
    for (int r = 0; r < rows; ++r)
        std::copy_n(now.states + static_cast<ptrdiff_t>(e) * latent_, latent_,
                    l.states + static_cast<ptrdiff_t>(r) * ld_);
    const int before = now.pasts_of(e);
    for (int i = 0; i < before; ++i) {
        const ptrdiff_t row = latent_ + plan_dim_;
        const float* from = now.past + (static_cast<ptrdiff_t>(e) * (predictor_->window() - 1) + i) * row;
        for (int r = 0; r < rows; ++r) std::copy_n(from, row, l.states - (before - i) * apart() + r * ld_);
    }
    std::fill_n(l.cost, rows, 0.0f);
    const bool residual = model_.predictor()->residual();
    for (int t = 0; t < steps_; ++t) {
        float* state = l.states + t * static_cast<ptrdiff_t>(block_) * ld_;
        float* next = state + static_cast<ptrdiff_t>(block_) * ld_;
        for (int r = 0; r < rows; ++r) {
            std::copy_n(l.actions + r * sequence + t * plan_dim_, plan_dim_, state + r * ld_ + latent_);
            if (residual) std::copy_n(state + r * ld_, latent_, next + r * ld_);
        }
        const bool last = t + 1 == steps_;
        cost_.add(Cost::Of::action, view(Cost::Of::action, now, e, t, rows, l), last, l.cost, nullptr,
                  l.scratch);
        predictor_->forward(
            simd::kernels(), state, ld_, steps_at(before, t), rows, next, ld_, residual,
            l.tape + static_cast<ptrdiff_t>(t) * static_cast<ptrdiff_t>(predictor_->tape(block_)), l.network);
        cost_.add(Cost::Of::state, view(Cost::Of::state, now, e, t, rows, l), last, l.cost, nullptr,
                  l.scratch);
    }
}

void NativeGradient::backward(const Situation& now, int e, int rows, const Lane& l) noexcept {
    const ptrdiff_t sequence = static_cast<ptrdiff_t>(steps_) * plan_dim_;
    const bool residual = model_.predictor()->residual();
    std::fill_n(l.slope, rows * sequence, 0.0f);
    std::fill_n(l.carry, (steps_ + 1) * apart(), 0.0f);  // dL/d state, step by step
    for (int t = steps_; t-- > 0;) {
        float* slope = l.slope + static_cast<ptrdiff_t>(t) * plan_dim_;
        float* const reached = l.carry + (t + 1) * apart();
        const StepGradient to{reached, ld_, slope, t > 0 ? slope - plan_dim_ : nullptr, sequence};
        const bool last = t + 1 == steps_;
        cost_.add_gradient(Cost::Of::state, view(Cost::Of::state, now, e, t, rows, l), last, to);
        std::copy_n(reached, static_cast<ptrdiff_t>(rows) * ld_, l.dy);
        const Steps steps = steps_at(now.pasts_of(e), t);
        predictor_->backward(
            simd::kernels(),
            l.tape + static_cast<ptrdiff_t>(t) * static_cast<ptrdiff_t>(predictor_->tape(block_)), l.dy, ld_,
            steps, rows, l.dx + (steps.count - 1) * apart(), ld_, l.network);
        for (int i = 0; i < steps.count; ++i) {
            const int step = t - steps.count + 1 + i;
            if (step < 0) continue;  // what is past stays as it is
            for (int r = 0; r < rows; ++r) {
                const float* dx = l.dx + i * apart() + static_cast<ptrdiff_t>(r) * ld_;
                float* carry = l.carry + step * apart() + static_cast<ptrdiff_t>(r) * ld_;
                float* slopes = l.slope + r * sequence + static_cast<ptrdiff_t>(step) * plan_dim_;
                for (int j = 0; j < latent_; ++j) carry[j] += dx[j];
                for (int d = 0; d < plan_dim_; ++d) slopes[d] += dx[latent_ + d];
            }
        }
        if (residual) simd::kernels().add(reached, ld_, rows, latent_, l.carry + t * apart(), ld_);
        // The action's own terms read where the state was before.
        const StepGradient acted{l.carry + t * apart(), ld_, slope, to.previous, sequence};
        cost_.add_gradient(Cost::Of::action, view(Cost::Of::action, now, e, t, rows, l), last, acted);
    }
}

}  // namespace pyjepa
