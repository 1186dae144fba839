#include "model/dense.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace pyjepa {
namespace {

// Fills panels [ceil(in / group)][width][group]: calls put(position, output, input) for every weight there
// is.
template <class F>
void for_each_weight(int in, int out, int group, std::span<const int> order, F put) {
    const int groups = (in + group - 1) / group;
    size_t panel = 0;
    for (int c0 = 0; c0 < simd::padded(out); c0 += simd::kPanel) {
        const int width = std::min(simd::kPanel, simd::padded(out) - c0);
        for (int k = 0; k < in; ++k)
            for (int c = 0; c < std::min(width, out - c0); ++c)
                put(panel + static_cast<size_t>((k / group * width + c) * group + k % group), c0 + c,
                    order.empty() ? k : order[static_cast<size_t>(k)]);
        panel += static_cast<size_t>(groups) * static_cast<size_t>(width) * static_cast<size_t>(group);
    }
}

size_t panels_size(int in, int out, int group) {
    return static_cast<size_t>((in + group - 1) / group * group) * static_cast<size_t>(simd::padded(out));
}

AlignedFloats padded_copy(std::span<const float> from) {
    AlignedFloats to(static_cast<size_t>(simd::padded(static_cast<int>(from.size()))));
    std::copy(from.begin(), from.end(), to.data());
    return to;
}

uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);  // weights are finite
}

}  // namespace

PackedDense::PackedDense(std::span<const float> weight, std::span<const float> bias, int in, int out,
                         std::span<const int> order)
    : panels_(panels_size(in, out, 1)), bias_(padded_copy(bias)), in_(in), out_(out) {
    for_each_weight(in, out, 1, order, [&](size_t at, int o, int i) {
        panels_[at] = weight[static_cast<size_t>(o) * static_cast<size_t>(in) + static_cast<size_t>(i)];
    });
}

PackedDense PackedDense::transposed() const {
    std::vector<float> weight(static_cast<size_t>(in_) * static_cast<size_t>(out_));  // (in, out)
    for_each_weight(in_, out_, 1, {}, [&](size_t at, int o, int i) {
        weight[static_cast<size_t>(i) * static_cast<size_t>(out_) + static_cast<size_t>(o)] = panels_[at];
    });
    return {weight, std::vector<float>(static_cast<size_t>(in_)), out_, in_};
}

PackedDenseBf16::PackedDenseBf16(std::span<const float> weight, std::span<const float> bias, int in, int out,
                                 std::span<const int> order)
    : panels_(panels_size(in, out, 2)), bias_(padded_copy(bias)), in_(in), out_(out) {
    for_each_weight(in, out, 2, order, [&](size_t at, int o, int i) {
        panels_[at] =
            to_bf16(weight[static_cast<size_t>(o) * static_cast<size_t>(in) + static_cast<size_t>(i)]);
    });
}

PackedDenseInt8::PackedDenseInt8(std::span<const float> weight, std::span<const float> bias, int in, int out,
                                 std::span<const int> order)
    : panels_(panels_size(in, out, 4)),
      bias_(padded_copy(bias)),
      scale_(static_cast<size_t>(simd::padded(out))),
      zero_sum_(static_cast<size_t>(simd::padded(out))),
      in_(in),
      out_(out) {
    for (int o = 0; o < out; ++o) {
        float most = 0.0f;
        for (const float w :
             weight.subspan(static_cast<size_t>(o) * static_cast<size_t>(in), static_cast<size_t>(in)))
            most = std::max(most, std::abs(w));
        scale_[static_cast<size_t>(o)] = most > 0.0f ? most / 127.0f : 1.0f;
    }
    for_each_weight(in, out, 4, order, [&](size_t at, int o, int i) {
        const auto output = static_cast<size_t>(o);
        const float w = weight[output * static_cast<size_t>(in) + static_cast<size_t>(i)];
        panels_[at] = static_cast<int8_t>(std::lround(w / scale_[output]));
        zero_sum_[output] -= 128 * panels_[at];
    });
}

}  // namespace pyjepa
