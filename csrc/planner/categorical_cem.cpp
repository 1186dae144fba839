// Categorical cross-entropy method (Rubinstein and Kroese 2004): every action of a plan has a categorical
// distribution, independent of the others and refit to the elites.
//
// The mean of the base class is the mode here, a plan of one-hot actions; its spread the probabilities.
#include <algorithm>

#include "planner/planner.hpp"

namespace pyjepa {
namespace {

class CategoricalCem final : public Planner {
  public:
    using Planner::Planner;

    int keeps() const noexcept override { return settings_.elites; }

    void begin(int e, float shift) noexcept override {
        Planner::begin(e, shift);
        const float* mode = mean(e);
        float* p = std_.data() + offset(e);
        const float spread = 1.0f - kWarm;
        for (size_t i = 0; i < knots_size_; ++i) p[i] = kWarm * mode[i] + spread * uniform_share();
    }

    void refit(int e, const float* cost) noexcept override {
        const int elites = cheapest(cost, settings_.elites);
        if (elites == 0) return;
        std::fill(sum_.begin(), sum_.end(), 0.0);
        for_each_drawn(e, order_.data(), elites, [&](int, const float* knots) {
            for (size_t j = 0; j < knots_size_; ++j) sum_[j] += static_cast<double>(knots[j]);
        });
        float* p = std_.data() + offset(e);
        const double keep = settings_.momentum, explore = settings_.exploration;
        for (size_t j = 0; j < knots_size_; ++j) {
            const double share = sum_[j] / elites;
            square_sum_[j] = share * (1.0 - share);
            const double smooth = keep * static_cast<double>(p[j]) + (1.0 - keep) * share;
            p[j] = static_cast<float>((1.0 - explore) * smooth + explore / settings_.count);
        }
        diagnose(e, elites, elites, square_sum_);
        float* mode = mean_.data() + offset(e);
        std::fill_n(mode, knots_size_, 0.0f);
        const auto count = static_cast<size_t>(settings_.count);
        for (size_t at = 0; at < knots_size_; at += count)
            mode[static_cast<size_t>(std::max_element(p + at, p + at + count) - p)] = 1.0f;
    }

  private:
    // How much of a new plan's first distribution is the last plan, shifted; the rest is uniform.
    static constexpr float kWarm = 0.5f;

    float uniform_share() const noexcept { return 1.0f / static_cast<float>(settings_.count); }

    // By inversion: one uniform number for every action.
    void draw(const Source& from, const Picks& picks, float* knots, float* noise) const noexcept override {
        const size_t count = static_cast<size_t>(settings_.count), actions = knots_size_ / count;
        const auto row = static_cast<size_t>(noise_row(static_cast<int>(actions)));
        uniform(from.key, 0, picks, static_cast<int>(actions), noise);
        for (int i = 0; i < picks.count; ++i, noise += row, knots += knots_size_) {
            if (picks[i] == 0) {
                std::copy_n(from.mean, knots_size_, knots);
                continue;
            }
            std::fill_n(knots, knots_size_, 0.0f);
            for (size_t a = 0; a < actions; ++a) {
                const float* q = from.std + a * count;
                size_t chosen = 0;
                // Sums of floats may end just below 1: then the last action is it.
                for (float below = q[0]; chosen + 1 < count && noise[a] >= below; below += q[chosen])
                    ++chosen;
                knots[a * count + chosen] = 1.0f;
            }
        }
    }
};

}  // namespace

std::unique_ptr<Planner> make_categorical_cem(const PlannerSettings& settings) {
    return std::make_unique<CategoricalCem>(settings);
}

}  // namespace pyjepa
