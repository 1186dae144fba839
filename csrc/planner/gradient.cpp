// Gradient descent through the world model. gradient: the mean and restarts drawn around it, followed by
// Adam; after every quarter of the steps the cheaper half goes on (successive halving, Jamieson and Talwalkar
// 2016): to equal cost, half the time. hybrid: CEM finds the valley, Adam goes down it from the best elites
// (Bharadhwaj et al. 2020 take turns; here all sampling comes first, so that what is polished is worth it).
#include <algorithm>
#include <cmath>

#include "planner/cem.hpp"
#include "planner/descent.hpp"

namespace pyjepa {
namespace {

constexpr int kLeast =
    2;  // restarts that go on to the end; their distance tells whether there are more minima

class Gradient final : public Cem {
  public:
    // sampling: iterations before the descent.
    Gradient(const PlannerSettings& settings, int sampling)
        : Cem(settings), sampling_(sampling), descent_(settings_, knots_, settings.iterations - sampling) {
        best_.resize(static_cast<size_t>(settings.environments));
        reserve_own(points_size() + 1);
    }

    int count(int iteration) const noexcept override {
        if (!descends(iteration)) return settings_.candidates;
        const int quarter = 4 * (iteration - sampling_) / (settings_.iterations - sampling_);
        return std::max(settings_.restarts >> quarter, std::min(settings_.restarts, kLeast));
    }
    bool descends(int iteration) const noexcept override { return iteration >= sampling_; }
    int keeps() const noexcept override { return std::max(settings_.elites, settings_.restarts); }

    void iterate(int iteration) noexcept override {
        Cem::iterate(iteration);
        iteration_ = iteration;
        for (int e = 0; e < settings_.environments; ++e) {
            float& descending = own(e)[points_size()];
            if (iteration == 0) {
                descending = 0.0f;
                best_[static_cast<size_t>(e)] = INFINITY;
                descent_.start(e);
                for (int n = 0; n < settings_.restarts; ++n) sample(e, n, point(e, n));
            }
            descending = descends(iteration) ? 1.0f : 0.0f;
        }
    }

    // Where to descend from: the cheapest candidate of all iterations, and other elites of the last.
    void refit(int e, const float* cost) noexcept override {
        const int chosen = cheapest(cost, settings_.restarts);
        float& best = best_[static_cast<size_t>(e)];
        int from = 0;
        if (chosen > 0 && cost[order_[0]] < best) {
            best = cost[order_[0]];
            sample(e, order_[0], point(e, 0));
            from = 1;
        }
        for (int n = 1; n < settings_.restarts && from < chosen; ++n, ++from)
            sample(e, order_[static_cast<size_t>(from)], point(e, n));
        Cem::refit(e, cost);
    }

    void descend(int e, const float* cost, const float* gradient) noexcept override {
        const int finite = cheapest(cost, count_);
        if (finite == 0) return;
        std::fill(sum_.begin(), sum_.end(), 0.0);
        std::fill(square_sum_.begin(), square_sum_.end(), 0.0);
        const float* middle = point(e, order_[0]);
        for (int i = 0; i < finite; ++i) {
            const float* other = point(e, order_[static_cast<size_t>(i)]);
            for (size_t j = 0; j < knots_size_; ++j) {
                const double d = static_cast<double>(other[j]) - static_cast<double>(middle[j]);
                sum_[j] += d;
                square_sum_[j] += d * d;
            }
        }
        for (size_t j = 0; j < knots_size_; ++j)
            square_sum_[j] = square_sum_[j] / finite - sum_[j] / finite * (sum_[j] / finite);
        diagnose(e, 1.0, 1.0, square_sum_);  // the best alone counts
        descent_.step(e, count_, own(e), cost, gradient);
        set_mean(e, middle);  // by now a step further
        if (iteration_ + 1 == settings_.iterations) return;
        const int next = count(iteration_ + 1);
        if (next == count_) return;
        cheapest(cost, next);
        std::sort(order_.begin(), order_.begin() + next);
        descent_.keep(e, own(e), order_.data(), next);
    }

  protected:
    void draw(const Source& from, const Picks& picks, float* knots, float* noise) const noexcept override {
        if (from.own[points_size()] == 0.0f) return Cem::draw(from, picks, knots, noise);
        for (int i = 0; i < picks.count; ++i)
            std::copy_n(from.own + static_cast<size_t>(picks[i]) * knots_size_, knots_size_,
                        knots + static_cast<size_t>(i) * knots_size_);
    }

  private:
    // own(e): the points (restarts, K, D), and behind them whether candidates are those, 1, or drawn, 0.
    size_t points_size() const noexcept { return static_cast<size_t>(settings_.restarts) * knots_size_; }
    float* point(int e, int i) noexcept { return own(e) + static_cast<size_t>(i) * knots_size_; }

    int sampling_, iteration_ = 0;
    Descent descent_;
    std::vector<float> best_;  // (E,): the least cost sampled
};

}  // namespace

std::unique_ptr<Planner> make_gradient(const PlannerSettings& settings) {
    return std::make_unique<Gradient>(settings, 0);
}

std::unique_ptr<Planner> make_hybrid(const PlannerSettings& settings) {
    return std::make_unique<Gradient>(settings, settings.iterations - settings.polish);
}

}  // namespace pyjepa
