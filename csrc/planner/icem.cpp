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
        chosen_ = AlignedFloats(static_cast<size_t>(most_) * knots_size_);
        reserve_own(chosen_.size() + 1);
        for (int e = 0; e < settings.environments; ++e) kept_count(e) = 0.0f;
    }

    void reset(int e) noexcept override {
        Cem::reset(e);
        kept_count(e) = 0.0f;
    }

    void begin(int e, float shift) noexcept override {
        Cem::begin(e, shift);
        for (int i = 0; i < static_cast<int>(kept_count(e)); ++i)
            shift_knots(own(e) + static_cast<size_t>(i) * knots_size_, shift);
    }

    int count(int iteration) const noexcept override {
        double n = settings_.candidates;
        const double least =
            std::min<double>(settings_.candidates, 2.0 * settings_.elites + settings_.policy_candidates);
        for (int i = 0; i < iteration && n > least; ++i) n /= static_cast<double>(settings_.decay);
        return static_cast<int>(std::max(n, least));
    }

    void refit(int e, const float* cost) noexcept override {
        const int chosen = cheapest(cost, std::min(most_, settings_.elites));
        for_each_drawn(e, order_.data(), chosen, [&](int i, const float* knots) {
            std::copy_n(knots, knots_size_, chosen_.data() + static_cast<size_t>(i) * knots_size_);
        });
        Cem::refit(e, cost);  // draws elites again, so those kept so far stay until it is done
        if (chosen == 0) return;
        std::copy_n(chosen_.data(), static_cast<size_t>(chosen) * knots_size_, own(e));
        kept_count(e) = static_cast<float>(chosen);
    }

  protected:
    // The elites kept come after the policy's proposals.
    void draw(const Source& from, const Picks& picks, float* knots, float* noise) const noexcept override {
        Cem::draw(from, picks, knots, noise);
        const int first = 1 + settings_.policy_candidates;
        const int end = first + static_cast<int>(from.own[chosen_.size()]);
        for (int i = 0; i < picks.count; ++i)
            if (const int n = picks[i]; n >= first && n < end)
                std::copy_n(from.own + static_cast<size_t>(n - first) * knots_size_, knots_size_,
                            knots + static_cast<size_t>(i) * knots_size_);
    }

  private:
    // own(e): the elites kept (most, K, D), and behind them how many there are.
    float& kept_count(int e) noexcept { return own(e)[chosen_.size()]; }

    int most_;              // elites that are kept
    AlignedFloats chosen_;  // (most, K, D)
};

}  // namespace

std::unique_ptr<Planner> make_icem(const PlannerSettings& settings) {
    return std::make_unique<Icem>(settings);
}

}  // namespace pyjepa
