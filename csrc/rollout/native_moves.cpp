#include "rollout/native_moves.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "error.hpp"

namespace pyjepa {
namespace {

constexpr int kTile = 48;  // rows: few enough that threads have something to share, a multiple of 3, 6 and 12

size_t round_up(size_t n) {
    return (n + 15) / 16 * 16;
}

}  // namespace

NativeMoves::NativeMoves(const Model& model, const Cost& cost, const Policy* policy, Pool& pool, int steps)
    : model_(model),
      predictor_(*model.predictor()),
      cost_(cost),
      policy_(policy),
      pool_(pool),
      steps_(steps),
      latent_(model.spec().latent_dim),
      plan_dim_(model.spec().plan_dim),
      state_ld_(simd::padded(latent_ + plan_dim_)),
      zero_(static_cast<size_t>(plan_dim_)) {
    if (predictor_.past_size() > 0)
        throw Error(PYJEPA_UNSUPPORTED,
                    "planning by tree: a node holds one state, but the predictor looks back on several");
    network_work_ = round_up(predictor_.workspace(kTile));
    head_work_ = cost_.workspace(kTile);
    if (has_prior()) head_work_ = std::max(head_work_, policy_->workspace(kTile));
    head_work_ = round_up(head_work_);
    constexpr auto rows = static_cast<size_t>(kTile);
    lane_size_ = rows * static_cast<size_t>(state_ld_) + 2 * round_up(rows * static_cast<size_t>(plan_dim_)) +
                 5 * round_up(rows) + network_work_ + head_work_;
    memory_ = AlignedFloats(lane_size_ * static_cast<size_t>(pool.threads()));
    std::fill_n(zero_.data(), plan_dim_, 0.0f);
    float discount = 1.0f, sum = 0.0f;
    for (int t = 0; t < steps_; ++t, discount *= cost_.discount()) {
        discount_.push_back(discount);
        until_.push_back(sum);
        sum += discount;
    }
    until_.push_back(sum);
}

NativeMoves::Lane NativeMoves::lane(int thread) noexcept {
    constexpr auto rows = static_cast<size_t>(kTile);
    float* at = memory_.data() + lane_size_ * static_cast<size_t>(thread);
    const auto take = [&at](size_t count) {
        float* here = at;
        at += round_up(count);
        return here;
    };
    Lane l{};
    l.state = take(rows * static_cast<size_t>(state_ld_));
    l.action = take(rows * static_cast<size_t>(plan_dim_));
    l.previous = take(rows * static_cast<size_t>(plan_dim_));
    l.cost = take(rows);
    l.stage = take(rows);
    l.terminal = take(rows);
    l.stay = take(rows);
    l.scratch = take(rows);
    l.network = take(network_work_);
    l.heads = take(head_work_);
    return l;
}

void NativeMoves::normalise(const float* action, float* out) const noexcept {
    const ActionSpec& box = model_.spec().actions;
    for (int d = 0; d < plan_dim_; ++d) {
        const auto a = static_cast<size_t>(d % model_.spec().action_dim);
        out[d] = (action[d] - box.center[a]) / box.scale[a];
    }
}

void NativeMoves::move(const Situation& now, const Moves& moves) noexcept {
    pool_.run((moves.rows + kTile - 1) / kTile, [&](int tile, int thread) noexcept {
        const int r0 = tile * kTile;
        run(now, moves, r0, std::min(kTile, moves.rows - r0), lane(thread));
    });
}

void NativeMoves::run(const Situation& now, const Moves& m, int r0, int rows, const Lane& l) noexcept {
    const simd::Kernels& kernels = simd::kernels();
    const ptrdiff_t dim = plan_dim_, e = m.environment;
    const float* goal = now.goals == nullptr ? nullptr : now.goals + e * latent_;
    const float* executed = now.has_previous[e] ? now.previous + e * dim : nullptr;
    int longest = 0;
    for (int r = 0; r < rows; ++r) {
        const int row = r0 + r;
        std::copy_n(m.from[row], latent_, l.state + r * static_cast<ptrdiff_t>(state_ld_));
        float *action = l.action + r * dim, *previous = l.previous + r * dim;
        normalise(m.action[row], action);
        if (m.previous[row] != nullptr)
            normalise(m.previous[row], previous);
        else  // where nothing came before, the first action is no change
            std::copy_n(executed != nullptr ? executed : action, dim, previous);
        l.cost[r] = 0.0f;
        longest = std::max(longest, m.steps[row]);
    }
    const uint64_t draw = now.draws[e];
    const auto put_actions = [&] {
        for (int r = 0; r < rows; ++r)
            std::copy_n(l.action + r * dim, dim, l.state + r * static_cast<ptrdiff_t>(state_ld_) + latent_);
    };
    // If the state stayed: no action is paid for, but heads that read one see the last again, for a network
    // knows no other way to do nothing.
    const StepView stays{kernels, m.environment, rows,         l.state,      state_ld_,
                         latent_, goal,          zero_.data(), zero_.data(), 0,
                         0,       plan_dim_,     draw,         1.0f,         l.heads};
    const auto score_staying = [&](bool last, float* out) {
        std::fill_n(out, rows, 0.0f);
        put_actions();
        cost_.add(Cost::Of::action, stays, last, out, nullptr, l.scratch);
        cost_.add(Cost::Of::state, stays, last, out, nullptr, l.scratch);
    };
    // All rows go on for as long as the longest move; each is read off when its own is over.
    for (int i = 0; i < longest; ++i) {
        const StepView taken{kernels, m.environment, rows,
                             l.state, state_ld_,     latent_,
                             goal,    l.action,      i == 0 ? l.previous : l.action,
                             dim,     dim,           plan_dim_,
                             draw,    1.0f,          l.heads};
        bool ends = false, ends_plan = false, goes_on = false;
        for (int r = 0; r < rows; ++r) {
            if (i + 1 != m.steps[r0 + r]) continue;
            ends = true;
            (m.first[r0 + r] + i + 1 == steps_ ? ends_plan : goes_on) = true;
        }
        std::fill_n(l.stage, rows, 0.0f);
        put_actions();
        cost_.add(Cost::Of::action, taken, false, l.stage, nullptr, l.scratch);
        std::copy_n(l.stage, rows, l.terminal);  // an action weighs the same at the plan's end
        predictor_.forward(kernels, l.state, state_ld_, rows, l.state, state_ld_, predictor_.residual(),
                           l.network);
        cost_.add(Cost::Of::state, taken, false, l.stage, nullptr, l.scratch);
        if (ends_plan) {
            cost_.add(Cost::Of::state, taken, true, l.terminal, nullptr, l.scratch);
            for (int r = 0; r < rows; ++r)
                if (m.first[r0 + r] + i + 1 == steps_) l.stage[r] = l.terminal[r];
        }
        for (int r = 0; r < rows; ++r)
            if (const int t = m.first[r0 + r] + i; t < steps_)
                l.cost[r] += discount_[static_cast<size_t>(t)] * l.stage[r];
        if (!ends) continue;
        if (goes_on) {
            score_staying(false, l.stay);
            score_staying(true, l.terminal);
        }
        for (int r = 0; r < rows; ++r) {
            const int row = r0 + r, next = m.first[row] + m.steps[row];
            if (i + 1 != m.steps[row]) continue;
            std::copy_n(l.state + r * static_cast<ptrdiff_t>(state_ld_), latent_, m.to[row]);
            float rest = 0.0f;
            if (next < steps_) {
                // A hard constraint at the end alone: the state need not stay.
                const float end = std::isinf(l.terminal[r]) ? l.stay[r] : l.terminal[r];
                const auto n = static_cast<size_t>(next), last = static_cast<size_t>(steps_ - 1);
                rest = (until_[last] - until_[n]) * l.stay[r] + discount_[last] * end;
            }
            const bool finite = std::isfinite(l.cost[r]) && std::isfinite(rest);
            m.cost[row] = finite ? l.cost[r] : std::numeric_limits<float>::infinity();
            m.rest[row] = finite ? rest : 0.0f;
        }
    }
}

bool NativeMoves::has_prior() const noexcept {
    return policy_ != nullptr && plan_dim_ == model_.spec().action_dim;
}

void NativeMoves::prior(const Situation& now, int e, int rows, const float* const* states,
                        float* const* out) noexcept {
    const float* goal = policy_->reads_goal() ? now.goals + static_cast<ptrdiff_t>(e) * latent_ : nullptr;
    pool_.run((rows + kTile - 1) / kTile, [&](int tile, int thread) noexcept {
        const Lane l = lane(thread);
        const int r0 = tile * kTile, count = std::min(kTile, rows - r0);
        for (int r = 0; r < count; ++r) {
            std::copy_n(states[r0 + r], latent_, l.state + r * static_cast<ptrdiff_t>(state_ld_));
        }
        policy_->prior(simd::kernels(), l.state, state_ld_, count, goal, l.action, plan_dim_, l.heads);
        for (int r = 0; r < count; ++r)
            std::copy_n(l.action + r * static_cast<ptrdiff_t>(plan_dim_), plan_dim_, out[r0 + r]);
    });
}

}  // namespace pyjepa
