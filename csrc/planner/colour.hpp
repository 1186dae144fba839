// Coloured noise: knots of one action dimension that hang together, as Pinneri et al. 2020 draw them for
// iCEM.
#pragma once

#include <vector>

namespace pyjepa {

// C (K, K), row-major: C w has a power spectrum proportional to 1 / f^beta over the K knots for white w, and
// unit variance at every knot. The constant part has the power of the lowest frequency, as in the package
// colorednoise. Column j carries one sine or cosine, low frequencies first. Elementary functions of our own:
// the same bits on every machine.
std::vector<float> colour_matrix(int knots, float beta);

}  // namespace pyjepa
