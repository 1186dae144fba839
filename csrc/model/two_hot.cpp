// two_hot: the number behind logits over bins, TD-MPC2's two-hot inverse (Hansen et al. 2024).
#include "model/block.hpp"

namespace pyjepa {
namespace {

class TwoHot final : public Block {
  public:
    explicit TwoHot(const TwoHotSpec& spec)
        : bins_(spec.bins),
          low_(spec.low),
          step_((spec.high - spec.low) / static_cast<float>(spec.bins - 1)) {}

    size_t workspace(int) const noexcept override { return 0; }
    void forward(const simd::Kernels& kernels, const float* x, ptrdiff_t ldx, int rows, float* y,
                 ptrdiff_t ldy, bool accumulate, float*) const noexcept override {
        kernels.two_hot(x, ldx, rows, bins_, low_, step_, y, ldy, accumulate);
    }
    bool in_place() const noexcept override { return true; }
    double flops() const noexcept override { return 0.0; }

  private:
    int bins_;
    float low_, step_;
};

}  // namespace

std::unique_ptr<Block> make_two_hot(const TwoHotSpec& spec) {
    return std::make_unique<TwoHot>(spec);
}

}  // namespace pyjepa
