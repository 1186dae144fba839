#include "model/linear.hpp"

#include <algorithm>
#include <cstring>

namespace pyjepa {
namespace {

using simd::Precision;

// Rows that are activated and narrowed together: they stay in L1 between the two.
constexpr int kNarrowed = 4;

decltype(auto) pack(std::span<const float> weight, std::span<const float> bias, int in, int out,
                    Precision precision, std::span<const ActivationScale> activation,
                    std::span<const int> order) {
    using Packed = std::variant<PackedDense, PackedDenseBf16, PackedDenseInt8, PackedDenseInt8Static>;
    if (precision == Precision::bf16) return Packed(PackedDenseBf16(weight, bias, in, out, order));
    if (precision == Precision::int8 && !activation.empty())
        return Packed(
            PackedDenseInt8Static(weight, bias, in, out, order, activation.front(), ActivationScale{}));
    if (precision == Precision::int8) return Packed(PackedDenseInt8(weight, bias, in, out, order));
    return Packed(PackedDense(weight, bias, in, out, order));
}

}  // namespace

Linear::Linear(std::span<const float> weight, std::span<const float> bias, int in, int out,
               Precision precision, std::span<const ActivationScale> activation, std::span<const int> order)
    : in_(in),
      out_(out),
      precision_(precision == Precision::int8 && in > simd::kMaxInt8Inputs ? Precision::fp32 : precision),
      dense_(pack(weight, bias, in, out, precision_, activation, order)) {}

size_t Linear::scratch(int rows) const noexcept {
    const auto count = static_cast<size_t>(simd::padded(rows)), row = static_cast<size_t>(ld());
    switch (precision_) {
        case Precision::fp32:
            return 0;
        case Precision::bf16:
            return count * row / 2;
        case Precision::int8:
            return count * (row / 4 + 2);
    }
    return 0;
}

Linear::Rows Linear::read(const simd::Kernels& kernels, float* x, ptrdiff_t ldx, int rows, simd::Act act,
                          float* scratch) const noexcept {
    const bool bf16 = precision_ == Precision::bf16, int8 = precision_ == Precision::int8;
    float* const scale = scratch + simd::padded(rows) * ld() / 4;
    Rows to{x,
            ldx,
            reinterpret_cast<unsigned char*>(scratch),
            bf16 ? 2 * ld() : ld(),
            scale,
            reinterpret_cast<int32_t*>(scale + simd::padded(rows))};
    const auto* known = std::get_if<PackedDenseInt8Static>(&dense_);
    for (int r = 0; r < rows; r += kNarrowed) {
        const int count = std::min(kNarrowed, rows - r);
        float* const from = x + r * ldx;
        unsigned char* const bytes = to.narrow + r * to.ld;
        if (act != simd::Act::none) kernels.activate(from, ldx, count, in_, act);
        if (bf16)
            simd::bf16_kernels()->convert(from, ldx, count, in_, reinterpret_cast<uint16_t*>(bytes), ld());
        else if (known != nullptr)
            simd::int8_kernels()->quantise_static(from, ldx, count, in_, known->inverse(), known->zero(),
                                                  bytes, to.ld);
        else if (int8)
            simd::int8_kernels()->quantise(from, ldx, count, in_, bytes, to.ld, to.scale + r, to.zero + r);
    }
    return to;
}

Linear::Rows Linear::room(int rows, float* scratch) const noexcept {
    auto* const bytes = reinterpret_cast<unsigned char*>(scratch);
    if (in_ % 2 != 0)  // inputs are read in pairs
        for (int r = 0; r < rows; ++r) std::memset(bytes + 2 * (r * ld() + in_), 0, 2);
    return {nullptr, 0, bytes, 2 * ld(), nullptr, nullptr};
}

void Linear::multiply(const simd::Kernels& kernels, const Rows& x, int rows, float* y, ptrdiff_t ldy,
                      simd::Act act, bool accumulate) const noexcept {
    if (const auto* fp32 = std::get_if<PackedDense>(&dense_))
        return kernels.dense(fp32->view(), x.x, x.ldx, rows, y, ldy, act, accumulate);
    // Kernels of lower precision know ReLU only.
    const simd::Act own = act == simd::Act::relu ? act : simd::Act::none;
    if (const auto* bf16 = std::get_if<PackedDenseBf16>(&dense_))
        simd::bf16_kernels()->dense(bf16->view(), reinterpret_cast<const uint16_t*>(x.narrow), ld(), rows, y,
                                    ldy, nullptr, 0, own, accumulate);
    else if (const auto* known = std::get_if<PackedDenseInt8Static>(&dense_))
        simd::int8_kernels()->dense_static(known->view(), x.narrow, x.ld, rows, y, ldy, nullptr, 0, own,
                                           accumulate);
    else
        simd::int8_kernels()->dense(std::get<PackedDenseInt8>(dense_).view(), x.narrow, x.ld, x.scale, x.zero,
                                    rows, y, ldy, own, accumulate, nullptr);
    if (act != own) kernels.activate(y, ldy, rows, out_, act);
}

}  // namespace pyjepa
