// Cross-entropy method (Rubinstein and Kroese 2004): refit a diagonal Gaussian to the elites.
#pragma once

#include "planner/planner.hpp"

namespace pyjepa {

class Cem : public Planner {
  public:
    using Planner::Planner;
    int keeps() const noexcept override { return settings_.elites; }
    void refit(int e, const float* cost) noexcept override;
};

}  // namespace pyjepa
