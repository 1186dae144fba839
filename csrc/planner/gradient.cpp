// Gradient descent through the world model. gradient: the mean and restarts drawn around it, each followed by
// Adam. hybrid: CEM finds the valley, Adam goes down it from the best elites (Bharadhwaj et al. 2020 take
// turns; here all sampling comes first, so that what is polished is worth it).
#include <algorithm>
#include <cmath>

#include "planner/cem.hpp"
#include "planner/descent.hpp"

namespace pyjepa {
namespace {

class Gradient final : public Cem {
  public:
    // sampling: iterations before the descent.
    Gradient(const PlannerSettings& settings, int sampling)
        : Cem(settings), sampling_(sampling), descent_(settings_, knots_, settings.iterations - sampling) {
        best_.resize(static_cast<size_t>(settings.environments));
    }

    int count(int iteration) const noexcept override {
        return descends(iteration) ? settings_.restarts : settings_.candidates;
    }
    bool descends(int iteration) const noexcept override { return iteration >= sampling_; }

    void iterate(int iteration) noexcept override {
        Cem::iterate(iteration);
        if (iteration == 0) {
            descending_ = false;
            for (int e = 0; e < settings_.environments; ++e) {
                best_[static_cast<size_t>(e)] = INFINITY;
                descent_.start(e);
                for (int n = 0; n < settings_.restarts; ++n) sample(e, n, descent_.point(e, n));
            }
        }
        descending_ = descends(iteration);
    }

    // Where to descend from: the cheapest candidate of all iterations, and other elites of the last.
    void refit(int e, const float* cost) noexcept override {
        const int chosen = cheapest(cost, settings_.restarts);
        float& best = best_[static_cast<size_t>(e)];
        int from = 0;
        if (chosen > 0 && cost[order_[0]] < best) {
            best = cost[order_[0]];
            sample(e, order_[0], descent_.point(e, 0));
            from = 1;
        }
        for (int n = 1; n < settings_.restarts && from < chosen; ++n, ++from)
            sample(e, order_[static_cast<size_t>(from)], descent_.point(e, n));
        Cem::refit(e, cost);
    }

    void descend(int e, const float* cost, const float* gradient) noexcept override {
        const int finite = cheapest(cost, settings_.restarts);
        if (finite == 0) return;
        std::fill(sum_.begin(), sum_.end(), 0.0);
        std::fill(square_sum_.begin(), square_sum_.end(), 0.0);
        const float* middle = descent_.point(e, order_[0]);
        for (int i = 0; i < finite; ++i) {
            const float* point = descent_.point(e, order_[static_cast<size_t>(i)]);
            for (size_t j = 0; j < knots_size_; ++j) {
                const double d = static_cast<double>(point[j]) - static_cast<double>(middle[j]);
                sum_[j] += d;
                square_sum_[j] += d * d;
            }
        }
        for (size_t j = 0; j < knots_size_; ++j)
            square_sum_[j] = square_sum_[j] / finite - sum_[j] / finite * (sum_[j] / finite);
        diagnose(e, 1.0, 1.0, square_sum_);  // the best alone counts
        descent_.step(e, cost, gradient);
        set_mean(e, middle);  // by now a step further
    }

  protected:
    void draw(int e, int n0, int n1, float* knots, float* noise) const noexcept override {
        if (!descending_)
            Cem::draw(e, n0, n1, knots, noise);
        else
            std::copy_n(descent_.point(e, n0), static_cast<size_t>(n1 - n0) * knots_size_, knots);
    }

  private:
    int sampling_;
    Descent descent_;
    std::vector<float> best_;  // (E,): the least cost sampled
    bool descending_ = false;
};

}  // namespace

std::unique_ptr<Planner> make_gradient(const PlannerSettings& settings) {
    return std::make_unique<Gradient>(settings, 0);
}

std::unique_ptr<Planner> make_hybrid(const PlannerSettings& settings) {
    return std::make_unique<Gradient>(settings, settings.iterations - settings.polish);
}

}  // namespace pyjepa
