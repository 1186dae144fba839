#include "rollout/native.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace pyjepa {
namespace {

// Rows per tile: a multiple of every register tile's height (6, 8 and 12 rows), small enough that the
// activations of a tile stay in L1; smaller still where that would leave threads without work. On W0s, W0,
// W0L (Zen 5, AVX-512, GFLOP/s): 48 rows 195, 209, 219; 66 rows 175, 207, 218; 96 rows 172, 204, 210.
int choose_block(const RolloutLimits& limits, int threads) {
    constexpr int preferred = 48, smallest = 12;
    for (int block = preferred; block > smallest; block -= 12)
        if (static_cast<long>(limits.environments) * ((limits.candidates + block - 1) / block) >=
            2L * threads)
            return block;
    return threads == 1 ? preferred : smallest;
}

size_t round_up(size_t n) {
    return (n + 15) / 16 * 16;
}

}  // namespace

NativeRollout::NativeRollout(const Model& model, const Cost& cost, Pool& pool, const RolloutLimits& limits)
    : model_(model),
      predictor_(*model.predictor()),
      cost_(cost),
      pool_(pool),
      steps_(limits.steps),
      latent_(model.spec().latent_dim),
      plan_dim_(model.spec().plan_dim),
      state_ld_(simd::padded(latent_ + plan_dim_)),
      block_(std::min(choose_block(limits, pool.threads()), std::max(1, limits.candidates))) {
    const auto rows = static_cast<size_t>(block_);
    proposal_scratch_ = round_up(limits.proposal_scratch_per_row * rows);
    network_work_ = round_up(predictor_.workspace(block_));
    lane_size_ = round_up(rows * static_cast<size_t>(steps_) * static_cast<size_t>(plan_dim_)) +
                 round_up(rows * static_cast<size_t>(state_ld_)) + 2 * round_up(rows) + proposal_scratch_ +
                 network_work_;
    memory_ = AlignedFloats(lane_size_ * static_cast<size_t>(pool.threads()));
    if (limits.descending > 0) gradient_ = std::make_unique<NativeGradient>(model, cost, pool, limits);
}

NativeRollout::Lane NativeRollout::lane(int thread) noexcept {
    const auto rows = static_cast<size_t>(block_);
    Lane l{};
    float* at = memory_.data() + lane_size_ * static_cast<size_t>(thread);
    const auto take = [&at](size_t count) {
        float* here = at;
        at += round_up(count);
        return here;
    };
    l.actions = take(rows * static_cast<size_t>(steps_) * static_cast<size_t>(plan_dim_));
    l.state = take(rows * static_cast<size_t>(state_ld_));
    l.cost = take(rows);
    l.scratch = take(rows);
    l.proposal = take(proposal_scratch_);
    l.network = take(network_work_);
    return l;
}

bool NativeRollout::evaluate(const Situation& now, const Proposal& proposal, int candidates, float* cost,
                             const Deadline& deadline) {
    // The environment count is the situation's; tiles never cross environments.
    const int per_environment = (candidates + block_ - 1) / block_;
    const int tiles = now.environments * per_environment;
    std::atomic<bool> expired{false};
    pool_.run(tiles, [&](int tile, int thread) noexcept {
        if (expired.load(std::memory_order_relaxed)) return;
        if (deadline.expired()) {
            expired.store(true, std::memory_order_relaxed);
            return;
        }
        const int e = tile / per_environment, n0 = tile % per_environment * block_;
        const int rows = std::min(block_, candidates - n0);
        const Lane l = lane(thread);
        proposal.fill(e, n0, n0 + rows, l.actions, l.proposal);
        roll(now, e, rows, l, nullptr, nullptr);
        float* out = cost + static_cast<ptrdiff_t>(e) * candidates + n0;
        for (int r = 0; r < rows; ++r)
            out[r] = std::isfinite(l.cost[r]) ? l.cost[r] : std::numeric_limits<float>::infinity();
    });
    return !expired.load(std::memory_order_relaxed);
}

bool NativeRollout::trace(const Situation& now, int e, const float* plan, float* states,
                          float* terms) noexcept {
    const Lane l = lane(0);
    std::copy_n(plan, static_cast<ptrdiff_t>(steps_) * plan_dim_, l.actions);
    roll(now, e, 1, l, states, terms);
    return true;
}

void NativeRollout::roll(const Situation& now, int e, int rows, const Lane& l, float* states,
                         float* terms) noexcept {
    const simd::Kernels& kernels = simd::kernels();
    const ActionSpec& box = model_.spec().actions;
    const int action_dim = model_.spec().action_dim;
    const ptrdiff_t sequence = static_cast<ptrdiff_t>(steps_) * plan_dim_;

    float* action = l.actions;
    for (ptrdiff_t i = rows * sequence / action_dim; i > 0; --i, action += action_dim)
        for (int a = 0; a < action_dim; ++a) {
            const auto j = static_cast<size_t>(a);
            action[a] = (action[a] - box.center[j]) / box.scale[j];
        }
    const float* start = now.states + static_cast<ptrdiff_t>(e) * latent_;
    for (int r = 0; r < rows; ++r)
        std::copy_n(start, latent_, l.state + static_cast<ptrdiff_t>(r) * state_ld_);
    std::fill_n(l.cost, rows, 0.0f);
    if (states != nullptr) std::copy_n(start, latent_, states);

    const float* goal = now.goals == nullptr ? nullptr : now.goals + static_cast<ptrdiff_t>(e) * latent_;
    for (int t = 0; t < steps_; ++t) {
        const float* actions = l.actions + static_cast<ptrdiff_t>(t) * plan_dim_;
        for (int r = 0; r < rows; ++r)
            std::copy_n(actions + r * sequence, plan_dim_,
                        l.state + static_cast<ptrdiff_t>(r) * state_ld_ + latent_);
        predictor_.forward(kernels, l.state, state_ld_, rows, l.state, state_ld_, predictor_.residual(),
                           l.network);

        StepView step{kernels, rows,    l.state,  state_ld_, latent_,  goal,
                      actions, nullptr, sequence, sequence,  plan_dim_};
        if (t > 0) {
            step.previous = actions - plan_dim_;
        } else if (now.has_previous[e]) {
            step.previous = now.previous + static_cast<ptrdiff_t>(e) * plan_dim_;
            step.previous_ld = 0;
        }
        float each[kMaxCostTerms];
        cost_.add(step, t + 1 == steps_, l.cost, terms == nullptr ? nullptr : each, l.scratch);
        if (states != nullptr)
            std::copy_n(l.state, latent_, states + static_cast<ptrdiff_t>(t + 1) * latent_);
        if (terms != nullptr)
            for (int i = 0; i < cost_.terms(); ++i) terms[static_cast<ptrdiff_t>(i) * steps_ + t] = each[i];
    }
}

}  // namespace pyjepa
