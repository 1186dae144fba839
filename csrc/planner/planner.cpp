#include "planner/planner.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "planner/colour.hpp"

namespace pyjepa {

Planner::Planner(const PlannerSettings& settings)
    : settings_(settings), knots_(settings.steps, settings.knots, settings.interpolation) {
    const auto dim = static_cast<size_t>(settings_.plan_dim), e = static_cast<size_t>(settings_.environments);
    knots_size_ = static_cast<size_t>(settings_.knots) * dim;
    mean_ = AlignedFloats(e * knots_size_);
    std_ = AlignedFloats(e * knots_size_);
    shifted_ = AlignedFloats(knots_size_);
    proposals_ = AlignedFloats(e * static_cast<size_t>(settings_.policy_candidates) * knots_size_);
    sum_.resize(knots_size_);
    square_sum_.resize(knots_size_);
    order_.resize(static_cast<size_t>(std::max(settings_.candidates, settings_.restarts)));
    ranked_.resize(order_.size());
    spare_.resize(order_.size());
    plans_.resize(e);
    keys_.resize(e);
    diagnosis_.resize(e);
    if (settings_.sampling == Sampling::sobol)
        sobol_ = std::make_unique<Sobol>(static_cast<int>(knots_size_));
    if (settings_.noise_beta > 0.0f && settings_.knots > 1) {
        const std::vector<float> matrix = colour_matrix(settings_.knots, settings_.noise_beta);
        const auto k = static_cast<size_t>(settings_.knots);
        colour_.resize(k * k);
        for (size_t i = 0; i < k; ++i)
            for (size_t j = 0; j < k; ++j) colour_[j * k + i] = matrix[i * k + j];
    }
    redrawn_ = AlignedFloats(static_cast<size_t>(kRedrawn) * knots_size_);
    sample_noise_ = AlignedFloats(scratch(kRedrawn));
    for (int i = 0; i < std::max(settings_.knots, settings_.steps); ++i) {
        low_.insert(low_.end(), settings_.low.begin(), settings_.low.end());
        high_.insert(high_.end(), settings_.high.begin(), settings_.high.end());
    }
    for (size_t d = 0; d < dim; ++d) {
        const float half_range = 0.5f * (settings_.high[d] - settings_.low[d]);
        first_std_.push_back(settings_.std * half_range);
        least_std_.push_back(settings_.min_std * half_range);
        most_std_.push_back(settings_.max_std * half_range);
    }
    for (int i = 0; i < settings_.environments; ++i) Planner::reset(i);
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
    diagnosis_[static_cast<size_t>(e)] = {};
    shift_knots(mean_.data() + offset(e), shift);
    float* std = std_.data() + offset(e);
    for (size_t i = 0; i < knots_size_; ++i) std[i] = first_std_[i % static_cast<size_t>(settings_.plan_dim)];
}

void Planner::shift_knots(float* values, float shift) noexcept {
    if (!(shift > 0.0f)) return;
    knots_.shift(values, settings_.plan_dim, shift, shifted_.data());
    bound(1, shifted_.data());  // cubics overshoot
    std::copy_n(shifted_.data(), knots_size_, values);
}

void Planner::bound(int rows, float* knots) const noexcept {
    simd::kernels().clamp(low_.data(), high_.data(), rows, static_cast<int>(knots_size_), knots);
}

void Planner::bound_proposals() noexcept {
    bound(settings_.environments * settings_.policy_candidates, proposals_.data());
}

void Planner::iterate(int iteration) noexcept {
    count_ = count(iteration);
    for (size_t e = 0; e < keys_.size(); ++e)
        keys_[e] = noise_key(settings_.seed, plans_[e], 0, static_cast<uint32_t>(iteration));
}

int Planner::count(int) const noexcept {
    return settings_.candidates;
}

bool Planner::descends(int) const noexcept {
    return false;
}

int Planner::descending() const noexcept {
    int most = 0;
    for (int i = 0; i < settings_.iterations; ++i)
        if (descends(i)) most = std::max(most, count(i));
    return most;
}

void Planner::descend(int, const float*, const float*) noexcept {}

void Planner::reserve_own(size_t size) {
    own_size_ = size;
    own_ = AlignedFloats(static_cast<size_t>(settings_.environments) * size);
}

void Planner::draw_proposals() noexcept {
    constexpr uint32_t iteration = 0xffffffff;  // no iteration of a plan has this number
    const int count = static_cast<int>(knots_size_);
    float* to = proposals_.data();
    for (const uint64_t plan : plans_) {
        const NoiseKey key = noise_key(settings_.seed, plan, 0, iteration);
        for (int n = 0; n < settings_.policy_candidates; ++n, to += knots_size_) {
            gaussian(key, 0, {n, 1}, count, sample_noise_.data());
            std::copy_n(sample_noise_.data(), knots_size_, to);
        }
    }
}

// Environments share their noise: a batch plans exactly as its members would alone, and what one environment
// draws never depends on who else is in the batch.
void Planner::white(NoiseKey key, const Picks& picks, float* noise) const noexcept {
    const int count = static_cast<int>(knots_size_);
    if (sobol_ != nullptr)
        sobol_->normals(key, picks, noise_row(count), noise);
    else
        gaussian(key, 0, picks, count, noise);
}

// Reads the white noise dimension by dimension: (D, K), so that the sum runs over whole rows of the matrix.
// The first numbers, which Sobol points cover best, carry the lowest frequencies.
void Planner::colour(float* noise, float* coloured) const noexcept {
    const int dim = settings_.plan_dim, knots = settings_.knots;
    for (int d = 0; d < dim; ++d) {
        std::fill_n(coloured, knots, 0.0f);
        for (int j = 0; j < knots; ++j) {
            const float w = noise[j * dim + d];
            const float* column = colour_.data() + static_cast<ptrdiff_t>(j) * knots;
            for (int k = 0; k < knots; ++k) coloured[k] += column[k] * w;
        }
        for (int k = 0; k < knots; ++k) noise[k * dim + d] = coloured[k];
    }
}

void Planner::draw(const Source& from, const Picks& picks, float* knots, float* noise) const noexcept {
    const int count = static_cast<int>(knots_size_), row = noise_row(count);
    white(from.key, picks, noise);
    if (!colour_.empty()) {
        float* const coloured = noise + static_cast<ptrdiff_t>(picks.count) * row;
        for (int i = 0; i < picks.count; ++i) colour(noise + static_cast<ptrdiff_t>(i) * row, coloured);
    }
    simd::kernels().perturb(from.mean, from.std, low_.data(), high_.data(), noise, row, picks.count, count,
                            knots);
    for (int i = 0; i < picks.count; ++i) {
        const int n = picks[i];
        if (n <= settings_.policy_candidates)
            std::copy_n(n == 0 ? from.mean : from.proposals + static_cast<size_t>(n - 1) * knots_size_, count,
                        knots + static_cast<ptrdiff_t>(i) * count);
    }
}

void Planner::expand(const float* knots, float* plan) const noexcept {
    const int dim = settings_.plan_dim;
    knots_.expand(knots, dim, plan);
    simd::kernels().clamp(low_.data(), high_.data(), 1, settings_.steps * dim, plan);  // cubics overshoot
}

size_t Planner::scratch(int rows) const noexcept {
    return static_cast<size_t>(rows) *
           (knots_size_ + static_cast<size_t>(noise_row(static_cast<int>(knots_size_))) +
            (colour_.empty() ? 0 : static_cast<size_t>(settings_.knots)));
}

size_t Planner::snapshot_size() const noexcept {
    return mean_.size() + std_.size() + proposals_.size() + own_.size() +
           keys_.size() * (sizeof(NoiseKey) / sizeof(float));
}

void Planner::snapshot(float* out) const noexcept {
    for (const AlignedFloats* part : {&mean_, &std_, &proposals_, &own_})
        out = std::copy_n(part->data(), part->size(), out);
    std::memcpy(out, keys_.data(), keys_.size() * sizeof(NoiseKey));
}

void Planner::fill(const float* snapshot, int e, int n0, int n1, float* out, float* scratch) const noexcept {
    const float *means = snapshot, *stds = means + mean_.size(), *proposals = stds + std_.size(),
                *owns = proposals + proposals_.size(), *keys = owns + own_.size();
    const auto i = static_cast<size_t>(e);
    Source from{{},
                means + offset(e),
                stds + offset(e),
                proposals + offset(e) * static_cast<size_t>(settings_.policy_candidates),
                owns + i * own_size_};
    std::memcpy(&from.key, reinterpret_cast<const char*>(keys) + i * sizeof from.key, sizeof from.key);
    const int plan = settings_.steps * settings_.plan_dim;
    float* knots = knots_.identity() ? out : scratch;
    draw(from, {n0, n1 - n0}, knots, scratch + static_cast<size_t>(n1 - n0) * knots_size_);
    if (knots_.identity()) return;
    for (int n = 0; n < n1 - n0; ++n)
        knots_.expand(knots + static_cast<size_t>(n) * knots_size_, settings_.plan_dim,
                      out + static_cast<ptrdiff_t>(n) * plan);
    simd::kernels().clamp(low_.data(), high_.data(), n1 - n0, plan, out);  // cubics overshoot
}

Planner::Source Planner::source(int e) const noexcept {
    return {keys_[static_cast<size_t>(e)], mean(e), std_.data() + offset(e),
            proposals_.data() + offset(e) * static_cast<size_t>(settings_.policy_candidates), own(e)};
}

void Planner::sample(int e, int n, float* knots) noexcept {
    draw(source(e), {n, 1}, knots, sample_noise_.data());
}

void Planner::set_mean(int e, const float* knots) noexcept {
    std::copy_n(knots, knots_size_, mean_.data() + offset(e));
}

namespace {

// Moves the `count` smallest of some different keys to the front; spare: room for as many. Which of two is
// the smaller nobody can foretell, and a wrong guess takes longer than to move keys that need not move: of
// 64, 256, 512 keys 8, 32, 64 are found and sorted in 0.15, 1.1, 2.4 us, with nth_element alone in 0.49, 2.1,
// 4.7 (Zen 5).
void smallest_first(uint64_t* keys, ptrdiff_t size, ptrdiff_t count, uint64_t* spare) noexcept {
    for (int rounds = 64; rounds > 0 && size > 16 && 0 < count && count < size; --rounds) {
        const uint64_t a = keys[0], b = keys[size / 2], c = keys[size - 1];
        const uint64_t pivot = std::max(std::min(a, b), std::min(std::max(a, b), c));
        ptrdiff_t low = 0, high = 0;
        for (ptrdiff_t i = 0; i < size; ++i) {
            const uint64_t key = keys[i];
            keys[low] = spare[high] = key;
            low += key <= pivot ? 1 : 0;
            high += key <= pivot ? 0 : 1;
        }
        std::copy_n(spare, high, keys + low);
        if (low > count) {
            size = low;
        } else {
            keys += low;
            size -= low;
            count -= low;
        }
    }
    if (0 < count && count < size) std::nth_element(keys, keys + count - 1, keys + size);
}

}  // namespace

int Planner::cheapest(const float* cost, int count) noexcept {
    // One integer each that sorts as (cost, index) do: comparing those is half the time.
    int finite = 0;
    for (int n = 0; n < count_; ++n) {
        if (!std::isfinite(cost[n])) continue;
        const float c = cost[n] + 0.0f;  // one zero
        uint32_t bits;
        std::memcpy(&bits, &c, sizeof bits);
        bits ^= (bits >> 31) != 0 ? 0xffffffffu : 0x80000000u;
        ranked_[static_cast<size_t>(finite++)] = static_cast<uint64_t>(bits) << 32 | static_cast<uint32_t>(n);
    }
    count = std::min(count, finite);
    smallest_first(ranked_.data(), finite, count, spare_.data());
    std::sort(ranked_.begin(), ranked_.begin() + count);
    for (size_t i = 0; i < static_cast<size_t>(count); ++i)
        order_[i] = static_cast<int32_t>(ranked_[i] & 0xffffffffu);
    return count;
}

void Planner::diagnose(int e, double weights, double squared_weights,
                       const std::vector<double>& variance) noexcept {
    double total = 0.0;
    for (size_t j = 0; j < knots_size_; ++j) {
        const size_t d = j % static_cast<size_t>(settings_.plan_dim);
        const double half_range =
            0.5 * (static_cast<double>(settings_.high[d]) - static_cast<double>(settings_.low[d]));
        total += std::max(0.0, variance[j]) / (half_range * half_range);
    }
    diagnosis_[static_cast<size_t>(e)] = {
        static_cast<float>(weights * weights / squared_weights),
        static_cast<float>(std::sqrt(total / static_cast<double>(knots_size_)))};
}

std::unique_ptr<Planner> make_planner(const PlannerSettings& settings) {
    switch (settings.algorithm) {
        case Algorithm::cem:
            return make_cem(settings);
        case Algorithm::mppi:
            return make_mppi(settings);
        case Algorithm::predictive_sampling:
            return make_predictive_sampling(settings);
        case Algorithm::icem:
            return make_icem(settings);
        case Algorithm::gradient:
            return make_gradient(settings);
        case Algorithm::hybrid:
            return make_hybrid(settings);
        case Algorithm::categorical_cem:
            return make_categorical_cem(settings);
        case Algorithm::tree:
            return make_last_plan(settings);
    }
    return nullptr;
}

}  // namespace pyjepa
