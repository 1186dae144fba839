#include "model/dense.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace pyjepa {
namespace {

// Fills panels [groups][width][group]: calls put(position, output, input) for every weight there is. Input k
// lies at place(k).
template <class Place, class Put>
void for_each_weight(int in, int out, int groups, int group, std::span<const int> order, Place place,
                     Put put) {
    size_t panel = 0;
    for (int c0 = 0; c0 < simd::padded(out); c0 += simd::kPanel) {
        const int width = std::min(simd::kPanel, simd::padded(out) - c0);
        // A cache line of a row of weights at a time: rows a power of two apart would else evict each other.
        constexpr int line = 16;
        for (int k0 = 0; k0 < in; k0 += line) {
            const int inputs = std::min(line, in - k0), outputs = std::min(width, out - c0);
            size_t at[line];
            int from[line];
            for (int k = 0; k < inputs; ++k) {
                const int put_at = place(k0 + k);
                at[k] = panel + static_cast<size_t>(put_at / group * width * group + put_at % group);
                from[k] = order.empty() ? k0 + k : order[static_cast<size_t>(k0 + k)];
            }
            for (int c = 0; c < outputs; ++c)
                for (int k = 0; k < inputs; ++k) put(at[k] + static_cast<size_t>(c * group), c0 + c, from[k]);
        }
        panel += static_cast<size_t>(groups) * static_cast<size_t>(width) * static_cast<size_t>(group);
    }
}

size_t panels_size(int groups, int group, int out) {
    return static_cast<size_t>(groups * group) * static_cast<size_t>(simd::padded(out));
}

int in_place(int k) {
    return k;
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

std::span<const float> row(std::span<const float> weight, int o, int in) {
    return weight.subspan(static_cast<size_t>(o) * static_cast<size_t>(in), static_cast<size_t>(in));
}

float largest(std::span<const float> values) {
    float most = 0.0f;
    for (const float v : values) most = std::max(most, std::abs(v));
    return most;
}

// std::lround, which would not vectorise: the sum is exact wherever it decides.
int8_t to_int8(float x) {
    const double exact = static_cast<double>(x);
    return static_cast<int8_t>(std::clamp(static_cast<int>(exact + std::copysign(0.5, exact)), -127, 127));
}

void put_bytes(const std::vector<int8_t>& weight, int in, int out, std::span<const int> order,
               AlignedBuffer<int8_t>& panels) {
    for_each_weight(
        in, out, simd::byte_quads(in), 4, order, [in](int k) { return simd::byte_place(k, in); },
        [&](size_t at, int o, int i) {
            panels[at] = weight[static_cast<size_t>(o) * static_cast<size_t>(in) + static_cast<size_t>(i)];
        });
}

}  // namespace

PackedDense::PackedDense(std::span<const float> weight, std::span<const float> bias, int in, int out,
                         std::span<const int> order)
    : panels_(panels_size(in, 1, out)), bias_(padded_copy(bias)), in_(in), out_(out) {
    for_each_weight(in, out, in, 1, order, in_place, [&](size_t at, int o, int i) {
        panels_[at] = weight[static_cast<size_t>(o) * static_cast<size_t>(in) + static_cast<size_t>(i)];
    });
}

PackedDense PackedDense::transposed() const {
    std::vector<float> weight(static_cast<size_t>(in_) * static_cast<size_t>(out_));  // (in, out)
    for_each_weight(in_, out_, in_, 1, {}, in_place, [&](size_t at, int o, int i) {
        weight[static_cast<size_t>(i) * static_cast<size_t>(out_) + static_cast<size_t>(o)] = panels_[at];
    });
    return {weight, std::vector<float>(static_cast<size_t>(in_)), out_, in_};
}

PackedDenseBf16::PackedDenseBf16(std::span<const float> weight, std::span<const float> bias, int in, int out,
                                 std::span<const int> order)
    : panels_(panels_size((in + 1) / 2, 2, out)), bias_(padded_copy(bias)), in_(in), out_(out) {
    for_each_weight(in, out, (in + 1) / 2, 2, order, in_place, [&](size_t at, int o, int i) {
        panels_[at] =
            to_bf16(weight[static_cast<size_t>(o) * static_cast<size_t>(in) + static_cast<size_t>(i)]);
    });
}

PackedDenseInt8::PackedDenseInt8(std::span<const float> weight, std::span<const float> bias, int in, int out,
                                 std::span<const int> order)
    : panels_(panels_size(simd::byte_quads(in), 4, out)),
      bias_(padded_copy(bias)),
      scale_(static_cast<size_t>(simd::padded(out))),
      zero_sum_(static_cast<size_t>(simd::padded(out))),
      in_(in),
      out_(out) {
    const auto inputs = static_cast<size_t>(in);
    std::vector<int8_t> rounded(inputs * static_cast<size_t>(out));
    for (int o = 0; o < out; ++o) {
        const std::span<const float> weights = row(weight, o, in);
        const float most = largest(weights);
        const float scale = most > 0.0f ? std::max(most / 127.0f, std::numeric_limits<float>::min()) : 1.0f;
        int8_t* const to = rounded.data() + static_cast<size_t>(o) * inputs;
        int32_t sum = 0;
        for (size_t i = 0; i < inputs; ++i) sum += to[i] = to_int8(weights[i] / scale);
        scale_[static_cast<size_t>(o)] = scale;
        zero_sum_[static_cast<size_t>(o)] = -128 * sum;
    }
    put_bytes(rounded, in, out, order, panels_);
}

PackedDenseInt8Static::PackedDenseInt8Static(std::span<const float> weight, std::span<const float> bias,
                                             int in, int out, std::span<const int> order,
                                             const ActivationScale& input, const ActivationScale& next)
    : panels_(panels_size(simd::byte_quads(in), 4, out)),
      start_(static_cast<size_t>(simd::padded(out))),
      scale_(static_cast<size_t>(simd::padded(out))),
      rescale_(static_cast<size_t>(simd::padded(out))),
      inverse_(static_cast<size_t>(simd::padded(in))),
      zero_(input.zero),
      next_zero_(static_cast<uint8_t>(next.zero)),
      in_(in),
      out_(out) {
    // Weight times input counts in units of these, per output. The bias starts the sum, so it must fit too.
    constexpr double most_start = 1 << 29;
    std::vector<double> unit;
    for (size_t k = 0; k < static_cast<size_t>(in); ++k)
        inverse_[k] = 1.0f / input.at(order.empty() ? k : static_cast<size_t>(order[k]));
    for (int o = 0; o < out; ++o) {
        double most = 0.0;
        for (size_t k = 0; k < static_cast<size_t>(in); ++k)
            most = std::max(most, std::abs(static_cast<double>(row(weight, o, in)[k])) * input.at(k) / 127.0);
        const double start = std::abs(static_cast<double>(bias[static_cast<size_t>(o)])) / most_start;
        unit.push_back(std::max({most, start, 1e-300}));
    }
    const auto inputs = static_cast<size_t>(in);
    std::vector<int8_t> rounded(inputs * static_cast<size_t>(out));
    for (size_t o = 0; o < static_cast<size_t>(out); ++o) {
        const std::span<const float> weights = row(weight, static_cast<int>(o), in);
        int8_t* const to = rounded.data() + o * inputs;
        int32_t sum = 0, size = 0;
        for (size_t i = 0; i < inputs; ++i) {
            to[i] = to_int8(static_cast<float>(static_cast<double>(weights[i]) * input.at(i) / unit[o]));
            sum += to[i];
            size += std::abs(to[i]);
        }
        const double reach = 255.0 * size;  // of the sum, whatever the input
        const double start = std::round(static_cast<double>(bias[o]) / unit[o]);
        start_[o] = static_cast<int32_t>(start) - input.zero * sum;
        scale_[o] = static_cast<float>(unit[o]);
        // Kept from leaving int32: only where all but a few sums saturate anyway.
        rescale_[o] = static_cast<float>(
            std::min(unit[o] / static_cast<double>(next.at(o)), 0x1p30 / (reach + std::abs(start) + 1.0)));
    }
    put_bytes(rounded, in, out, order, panels_);
}

}  // namespace pyjepa
