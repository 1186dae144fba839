// Action knots: a plan as a few values along the horizon, interpolated (zero-order, linear, cubic Hermite).
#pragma once

#include <vector>

#include "model/spec.hpp"

namespace pyjepa {

class Knots {
  public:
    // knots values over `steps` predictor steps. zero: each is held for its share of the steps; linear and
    // cubic: the first lies on the first step, the last on the last.
    Knots(int steps, int knots, Interpolation interpolation);

    int count() const noexcept { return knots_; }
    int steps() const noexcept { return steps_; }
    // Whether a plan is its knots.
    bool identity() const noexcept { return identity_; }
    // knots (K, D) -> out (S, D).
    void expand(const float* knots, int dim, float* out) const noexcept;
    // The transpose of expand: derivatives with respect to a plan (S, D) -> to its knots (K, D).
    void pull_back(const float* plan, int dim, float* knots) const noexcept;
    // The knots of the same curve seen `by` steps later; past its end it stays at its last value. out must
    // not be knots.
    void shift(const float* knots, int dim, float by, float* out) const noexcept;

  private:
    struct Stencil {  // a value of the curve: four knots and their weights
        int at[4];
        float weight[4];
    };
    Stencil at_step(float step) const noexcept;
    static void apply(const Stencil& s, const float* knots, int dim, float* out) noexcept;

    int steps_, knots_;
    Interpolation interpolation_;
    bool identity_;
    std::vector<Stencil> expand_;
};

}  // namespace pyjepa
