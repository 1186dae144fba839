#include "rollout/head.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

#include "agent_file/limits.hpp"

namespace pyjepa {

Head::Head(const Model& model, const std::string& module, int members, Reduce reduce)
    : networks_(model.members(module)),
      members_(members == 0 ? static_cast<int>(networks_.size()) : members),
      reduce_(reduce),
      reads_state_(model.reads(module, Input::state)),
      reads_action_(model.reads(module, Input::action)),
      reads_goal_(model.reads(module, Input::goal)),
      latent_(model.spec().latent_dim),
      plan_dim_(model.spec().plan_dim),
      out_(networks_.front().out()) {}

size_t Head::workspace(int rows) const noexcept {
    const Network& first = networks_.front();
    const auto row = static_cast<size_t>((reads_goal_ ? simd::padded(first.in()) : 0) +
                                         simd::padded(out_) * (reduce_ == Reduce::variance ? 2 : 1));
    return first.workspace(rows) + row * static_cast<size_t>(rows);
}

double Head::flops() const noexcept {
    return networks_.front().flops() * members_;
}

void Head::choose(uint64_t draw, int n, int count, int* chosen) noexcept {
    int all[limits::ensemble];
    std::iota(all, all + n, 0);
    for (int i = 0; i < count; ++i) {
        if (count < n) {  // splitmix64 (Steele et al. 2014) shuffles as far as needed
            uint64_t z = draw += 0x9e3779b97f4a7c15u;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            z ^= z >> 31;
            std::swap(all[i], all[i + static_cast<int>((z >> 32) * static_cast<uint64_t>(n - i) >> 32)]);
        }
        chosen[i] = all[i];
    }
}

const float* Head::gather(const float* inputs, ptrdiff_t& ld, int rows, const float* goal,
                          float* to) const noexcept {
    const float* x = reads_state_ ? inputs : inputs + latent_;
    if (!reads_goal_) return x;
    const int in = networks_.front().in(), before = in - latent_;  // of state and action
    const ptrdiff_t width = simd::padded(in);
    for (int r = 0; r < rows; ++r) {
        if (reads_state_ || reads_action_) std::copy_n(x + r * ld, before, to + r * width);
        std::copy_n(goal, latent_, to + r * width + before);
    }
    ld = width;
    return to;
}

void Head::forward(const simd::Kernels& kernels, const float* inputs, ptrdiff_t ld, int rows,
                   const float* goal, uint64_t draw, float* out, float* work) const noexcept {
    const float* x = gather(inputs, ld, rows, goal, work);
    if (reads_goal_) work += ld * rows;
    int chosen[limits::ensemble];
    choose(draw, static_cast<int>(networks_.size()), members_, chosen);
    float* const other = work;
    work += static_cast<ptrdiff_t>(simd::padded(out_)) * rows;
    float* const squares = work;  // about the mean so far (Welford 1962), for variances
    if (reduce_ == Reduce::variance) {
        work += static_cast<ptrdiff_t>(simd::padded(out_)) * rows;
        std::fill_n(squares, static_cast<ptrdiff_t>(rows) * out_, 0.0f);
    }
    const ptrdiff_t size = static_cast<ptrdiff_t>(rows) * out_;
    for (int k = 0; k < members_; ++k) {
        const Network& network = networks_[static_cast<size_t>(chosen[k])];
        network.forward(kernels, x, ld, rows, k == 0 ? out : other, out_, false, work);
        if (k == 0) continue;
        if (reduce_ == Reduce::variance) {
            for (ptrdiff_t i = 0; i < size; ++i) {
                const float off = other[i] - out[i];
                out[i] += off / static_cast<float>(k + 1);
                squares[i] += off * (other[i] - out[i]);
            }
            continue;
        }
        for (ptrdiff_t i = 0; i < size; ++i)
            out[i] = reduce_ == Reduce::mean  ? out[i] + other[i]
                     : reduce_ == Reduce::min ? std::min(out[i], other[i])
                                              : std::max(out[i], other[i]);
    }
    if (reduce_ == Reduce::mean && members_ > 1)
        for (ptrdiff_t i = 0; i < size; ++i) out[i] /= static_cast<float>(members_);
    if (reduce_ == Reduce::variance)
        for (ptrdiff_t i = 0; i < size; ++i) out[i] = squares[i] / static_cast<float>(members_);
}

bool Head::differentiate() {
    if (networks_.size() == 1 && gradient_ == nullptr) gradient_ = networks_.front().differentiate();
    return gradient_ != nullptr;
}

size_t Head::gradient_workspace(int rows) const noexcept {
    if (gradient_ == nullptr) return 0;
    return static_cast<size_t>(rows) * static_cast<size_t>(simd::padded(networks_.front().in())) +
           gradient_->tape(rows) + gradient_->workspace(rows);
}

// work: rows of inputs, later of their derivatives; the tape; the networks' scratch.
void Head::record(const simd::Kernels& kernels, const float* inputs, ptrdiff_t ld, int rows,
                  const float* goal, float* out, float* work) const noexcept {
    const float* x = gather(inputs, ld, rows, goal, work);
    float* const tape = work + static_cast<ptrdiff_t>(rows) * simd::padded(networks_.front().in());
    gradient_->forward(kernels, x, ld, rows, out, out_, false, tape, tape + gradient_->tape(rows));
}

void Head::pull_back(const simd::Kernels& kernels, float* dy, int rows, float* states, ptrdiff_t state_ld,
                     float* actions, ptrdiff_t action_ld, float* work) const noexcept {
    const ptrdiff_t width = simd::padded(networks_.front().in());
    float* const tape = work + width * rows;
    gradient_->backward(kernels, tape, dy, out_, rows, work, width, tape + gradient_->tape(rows));
    const int before = reads_state_ ? latent_ : 0;
    for (int r = 0; r < rows; ++r) {
        const float* dx = work + r * width;
        for (int j = 0; j < before; ++j) states[r * state_ld + j] += dx[j];
        if (!reads_action_) continue;
        for (int d = 0; d < plan_dim_; ++d) actions[r * action_ld + d] += dx[before + d];
    }
}

}  // namespace pyjepa
