// Sobol points with Owen scrambling, as normals: a low-discrepancy alternative to gaussian().
#pragma once

#include <cstdint>
#include <vector>

#include "planner/sampling.hpp"

namespace pyjepa {

class Sobol {
  public:
    static constexpr int kMostDimensions = 64;
    explicit Sobol(int dimensions);  // 1 .. kMostDimensions

    // As gaussian(): out[i, j] for every candidate i of `picks` and j < dimensions, row length `row`. The key
    // scrambles the points anew, keeping how evenly any 2^m in a row lie (hash-based, Burley 2020).
    void normals(NoiseKey key, const Picks& picks, int row, float* out) const noexcept;
    // Coordinate j of point n, unscrambled, as a fraction of 2^32. Points are in Gray code order.
    uint32_t point(int n, int j) const noexcept;

  private:
    int dimensions_;
    std::vector<uint32_t> reversed_;  // (32, dimensions): direction numbers with their bits in reverse
};

}  // namespace pyjepa
