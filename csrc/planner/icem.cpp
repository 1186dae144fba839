// iCEM (Pinneri et al. 2020): CEM with coloured noise (the base class draws it), elites kept from iteration
// to iteration and, shifted, from plan to plan, and fewer candidates as the spread narrows. That paper adds
// the mean in the last iteration; here it is a candidate in every one, as for all planners.
#include <algorithm>

#include "planner/cem.hpp"

namespace pyjepa {
namespace {

class Icem final : public Cem {
  public:
    explicit Icem(const PlannerSettings& settings)
        : Cem(settings), most_(static_cast<int>(settings.keep_elites * static_cast<float>(settings.elites))) {
        const auto e = static_cast<size_t>(settings.environments);
        kept_ = AlignedFloats(e * static_cast<size_t>(most_) * knots_size_);
        chosen_ = AlignedFloats(static_cast<size_t>(most_) * knots_size_);
        kept_count_.resize(e);
    }

    void reset(int e) noexcept override {
        Cem::reset(e);
        kept_count_[static_cast<size_t>(e)] = 0;
    }

    void begin(int e, float shift) noexcept override {
        Cem::begin(e, shift);
        for (int i = 0; i < kept_count_[static_cast<size_t>(e)]; ++i) shift_knots(kept(e, i), shift);
    }

    int count(int iteration) const noexcept override {
        double n = settings_.candidates;
        const double least = std::min(settings_.candidates, 2 * settings_.elites);
        for (int i = 0; i < iteration && n > least; ++i) n /= static_cast<double>(settings_.decay);
        return static_cast<int>(std::max(n, least));
    }

    void refit(int e, const float* cost) noexcept override {
        const int chosen = cheapest(cost, std::min(most_, settings_.elites));
        for (int i = 0; i < chosen; ++i)
            sample(e, order_[static_cast<size_t>(i)], chosen_.data() + static_cast<size_t>(i) * knots_size_);
        Cem::refit(e, cost);  // draws elites again, so those kept so far stay until it is done
        if (chosen == 0) return;
        std::copy_n(chosen_.data(), static_cast<size_t>(chosen) * knots_size_, kept(e, 0));
        kept_count_[static_cast<size_t>(e)] = chosen;
    }

  protected:
    void draw(int e, int n0, int n1, float* knots, float* noise) const noexcept override {
        Cem::draw(e, n0, n1, knots, noise);
        const int last = std::min(kept_count_[static_cast<size_t>(e)], count_ - 1);
        for (int n = std::max(n0, 1); n < n1 && n <= last; ++n)
            std::copy_n(kept_.data() + (static_cast<size_t>(e) * static_cast<size_t>(most_) +
                                        static_cast<size_t>(n - 1)) *
                                           knots_size_,
                        knots_size_, knots + static_cast<size_t>(n - n0) * knots_size_);
    }

  private:
    float* kept(int e, int i) noexcept {
        return kept_.data() +
               (static_cast<size_t>(e) * static_cast<size_t>(most_) + static_cast<size_t>(i)) * knots_size_;
    }

    int most_;                     // elites that are kept
    AlignedFloats kept_, chosen_;  // (E, most, K, D), (most, K, D)
    std::vector<int> kept_count_;  // (E,)
};

}  // namespace

std::unique_ptr<Planner> make_icem(const PlannerSettings& settings) {
    return std::make_unique<Icem>(settings);
}

}  // namespace pyjepa
