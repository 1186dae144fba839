// Adam (Kingma and Ba 2015) on the knots of several plans at once, each step projected to the bounds.
#pragma once

#include <vector>

#include "planner/planner.hpp"

namespace pyjepa {

class Descent {
  public:
    // settings and knots outlive it. `steps`: how many a descent takes.
    Descent(const PlannerSettings& settings, const Knots& knots, int steps);

    // Forgets the moments: what comes next is the first step.
    void start(int e) noexcept;
    // One step of each of the first `count` points (count, K, D) of environment e whose cost is finite;
    // gradient (count, S, D).
    void step(int e, int count, float* points, const float* cost, const float* gradient) noexcept;
    // Goes on with the points (count,) of these indices, rising, alone: they become the first.
    void keep(int e, float* points, const int* indices, int count) noexcept;

  private:
    size_t at(int e, int i) const noexcept {
        return (static_cast<size_t>(e) * static_cast<size_t>(settings_.restarts) + static_cast<size_t>(i)) *
               size_;
    }

    const PlannerSettings& settings_;
    const Knots& knots_;
    int steps_;
    size_t size_;                       // K * D
    AlignedFloats momentum_, squares_;  // (E, restarts, K, D)
    AlignedFloats slope_;               // (K, D)
    AlignedFloats plan_, masked_;       // (S, D)
    std::vector<int> taken_;            // (E,): steps
    std::vector<double> rate_, first_,
        second_;  // (steps,): learning rate and corrections of the moments' bias
};

}  // namespace pyjepa
