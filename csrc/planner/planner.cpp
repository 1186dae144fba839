#include "planner/planner.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace pyjepa {

Planner::Planner(const PlannerSettings& settings)
    : settings_(settings), knots_(settings.steps, settings.knots, settings.interpolation) {
    const auto dim = static_cast<size_t>(settings_.plan_dim), e = static_cast<size_t>(settings_.environments);
    knots_size_ = static_cast<size_t>(settings_.knots) * dim;
    mean_ = AlignedFloats(e * knots_size_);
    std_ = AlignedFloats(e * knots_size_);
    drawn_ = AlignedFloats(knots_size_);
    shifted_ = AlignedFloats(knots_size_);
    sample_noise_ = AlignedFloats(static_cast<size_t>(noise_row(static_cast<int>(knots_size_))));
    proposals_ = AlignedFloats(e * static_cast<size_t>(settings_.policy_candidates) * knots_size_);
    sum_.resize(knots_size_);
    square_sum_.resize(knots_size_);
    order_.resize(static_cast<size_t>(settings_.candidates));
    plans_.resize(e);
    keys_.resize(e);
    for (size_t d = 0; d < dim; ++d) {
        const float half_range = 0.5f * (settings_.high[d] - settings_.low[d]);
        first_std_.push_back(settings_.std * half_range);
        least_std_.push_back(settings_.min_std * half_range);
        most_std_.push_back(settings_.max_std * half_range);
    }
    for (int i = 0; i < settings_.environments; ++i) reset(i);
}

void Planner::reset(int e) noexcept {
    plans_[static_cast<size_t>(e)] = 0;
    float* mean = mean_.data() + offset(e);
    for (size_t i = 0; i < knots_size_; ++i) {
        const size_t d = i % static_cast<size_t>(settings_.plan_dim);
        mean[i] = settings_.count > 0 ? (d % static_cast<size_t>(settings_.count) == 0 ? 1.0f : 0.0f)
                                      : 0.5f * (settings_.low[d] + settings_.high[d]);
    }
}

void Planner::begin(int e, float shift) noexcept {
    ++plans_[static_cast<size_t>(e)];
    float* mean = mean_.data() + offset(e);
    if (shift > 0.0f) {
        knots_.shift(mean, settings_.plan_dim, shift, shifted_.data());
        std::copy_n(shifted_.data(), knots_size_, mean);
    }
    float* std = std_.data() + offset(e);
    for (size_t i = 0; i < knots_size_; ++i) std[i] = first_std_[i % static_cast<size_t>(settings_.plan_dim)];
}

void Planner::iterate(int iteration) noexcept {
    for (size_t e = 0; e < keys_.size(); ++e)
        keys_[e] = noise_key(settings_.seed, plans_[e], 0, static_cast<uint32_t>(iteration));
}

void Planner::draw_proposals() noexcept {
    constexpr uint32_t iteration = 0xffffffff;  // no iteration of a plan has this number
    const int count = static_cast<int>(knots_size_);
    float* to = proposals_.data();
    for (const uint64_t plan : plans_) {
        const NoiseKey key = noise_key(settings_.seed, plan, 0, iteration);
        for (int n = 0; n < settings_.policy_candidates; ++n, to += knots_size_) {
            gaussian(key, 0, n, n + 1, count, sample_noise_.data());
            std::copy_n(sample_noise_.data(), knots_size_, to);
        }
    }
}

// Knots (n1 - n0, K, D). Environments share their noise: a batch plans exactly as its members would alone,
// and what one environment draws never depends on who else is in the batch.
void Planner::draw(NoiseKey key, const float* mean, const float* std, const float* proposals, int n0, int n1,
                   float* knots, float* noise) const noexcept {
    const int count = static_cast<int>(knots_size_), row = noise_row(count);
    gaussian(key, 0, n0, n1, count, noise);
    for (int n = n0; n < n1; ++n, noise += row, knots += count) {
        if (n == 0) {
            std::copy_n(mean, count, knots);
            continue;
        }
        if (n <= settings_.policy_candidates) {
            std::copy_n(proposals + static_cast<size_t>(n - 1) * knots_size_, count, knots);
            continue;
        }
        for (int i = 0; i < count; ++i) knots[i] = mean[i] + std[i] * noise[i];
        clamp(knots, settings_.knots);
    }
}

void Planner::clamp(float* values, int rows) const noexcept {
    const auto dim = static_cast<size_t>(settings_.plan_dim);
    for (int r = 0; r < rows; ++r, values += dim)
        for (size_t d = 0; d < dim; ++d)
            values[d] = std::min(std::max(values[d], settings_.low[d]), settings_.high[d]);
}

void Planner::expand(const float* knots, float* plan) const noexcept {
    knots_.expand(knots, settings_.plan_dim, plan);
    clamp(plan, settings_.steps);  // cubic curves overshoot their knots
}

size_t Planner::scratch(int rows) const noexcept {
    return static_cast<size_t>(rows) *
           (knots_size_ + static_cast<size_t>(noise_row(static_cast<int>(knots_size_))));
}

size_t Planner::snapshot_size() const noexcept {
    return mean_.size() + std_.size() + proposals_.size() + keys_.size() * (sizeof(NoiseKey) / sizeof(float));
}

void Planner::snapshot(float* out) const noexcept {
    out = std::copy_n(mean_.data(), mean_.size(), out);
    out = std::copy_n(std_.data(), std_.size(), out);
    out = std::copy_n(proposals_.data(), proposals_.size(), out);
    std::memcpy(out, keys_.data(), keys_.size() * sizeof(NoiseKey));
}

void Planner::fill(const float* snapshot, int e, int n0, int n1, float* out, float* scratch) const noexcept {
    const float *mean = snapshot, *std = mean + mean_.size(), *proposals = std + std_.size(),
                *keys = proposals + proposals_.size();
    NoiseKey key;
    std::memcpy(&key, reinterpret_cast<const char*>(keys) + static_cast<size_t>(e) * sizeof key, sizeof key);
    float* knots = scratch;
    float* noise = scratch + static_cast<size_t>(n1 - n0) * knots_size_;
    draw(key, mean + offset(e), std + offset(e),
         proposals + offset(e) * static_cast<size_t>(settings_.policy_candidates), n0, n1, knots, noise);
    const ptrdiff_t plan = static_cast<ptrdiff_t>(settings_.steps) * settings_.plan_dim;
    for (int n = n0; n < n1; ++n, knots += knots_size_, out += plan) expand(knots, out);
}

void Planner::sample(int e, int n, float* knots) noexcept {
    draw(keys_[static_cast<size_t>(e)], mean(e), std_.data() + offset(e),
         proposals_.data() + offset(e) * static_cast<size_t>(settings_.policy_candidates), n, n + 1, knots,
         sample_noise_.data());
}

void Planner::set_mean(int e, const float* knots) noexcept {
    std::copy_n(knots, knots_size_, mean_.data() + offset(e));
}

int Planner::cheapest(const float* cost, int count) noexcept {
    std::iota(order_.begin(), order_.end(), 0);
    const auto cheaper = [cost](int a, int b) { return cost[a] < cost[b] || (cost[a] == cost[b] && a < b); };
    std::partial_sort(order_.begin(), order_.begin() + count, order_.end(), cheaper);
    while (count > 0 && !std::isfinite(cost[order_[static_cast<size_t>(count - 1)]])) --count;
    return count;
}

std::unique_ptr<Planner> make_planner(const PlannerSettings& settings) {
    switch (settings.algorithm) {
        case Algorithm::cem:
            return make_cem(settings);
        case Algorithm::mppi:
            return make_mppi(settings);
        case Algorithm::predictive_sampling:
            return make_predictive_sampling(settings);
        case Algorithm::categorical_cem:
            return make_categorical_cem(settings);
        case Algorithm::tree:
            return make_last_plan(settings);
    }
    return nullptr;
}

}  // namespace pyjepa
