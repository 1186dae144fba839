#include "model/dense.hpp"

#include <algorithm>

namespace pyjepa {

PackedDense::PackedDense(std::span<const float> weight, std::span<const float> bias, int in, int out,
                         std::span<const int> order)
    : panels_(static_cast<size_t>(in) * static_cast<size_t>(simd::padded(out))),
      bias_(static_cast<size_t>(simd::padded(out))),
      in_(in),
      out_(out) {
    std::copy(bias.begin(), bias.end(), bias_.data());
    float* to = panels_.data();
    for (int c0 = 0; c0 < simd::padded(out); c0 += simd::kPanel) {
        const int width = std::min(simd::kPanel, simd::padded(out) - c0);
        for (int k = 0; k < in; ++k, to += width) {
            const int from = order.empty() ? k : order[static_cast<size_t>(k)];
            for (int c = 0; c < std::min(width, out - c0); ++c)
                to[c] =
                    weight[static_cast<size_t>(c0 + c) * static_cast<size_t>(in) + static_cast<size_t>(from)];
        }
    }
}

}  // namespace pyjepa
