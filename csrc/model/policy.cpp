#include "model/policy.hpp"

#include <algorithm>
#include <cmath>

namespace pyjepa {

Policy::Policy(const Model& model, const Network& network, std::span<const float> low,
               std::span<const float> high)
    : network_(network),
      head_(model.spec().policy_head),
      reads_state_(model.reads(*model.spec().policy, Input::state)),
      reads_goal_(model.policy_reads_goal()),
      latent_(model.spec().latent_dim),
      actions_(model.spec().action_dim),
      input_ld_(simd::padded(network.in())),
      output_ld_(simd::padded(network.out())) {
    for (size_t a = 0; a < static_cast<size_t>(actions_); ++a) {
        middle_.push_back(0.5f * (low[a] + high[a]));
        half_.push_back(0.5f * (high[a] - low[a]));
    }
}

size_t Policy::workspace(int rows) const noexcept {
    const auto row = static_cast<size_t>(output_ld_ + (reads_goal_ ? input_ld_ : 0));
    return network_.workspace(rows) + row * static_cast<size_t>(rows);
}

float* Policy::forward(const simd::Kernels& kernels, const float* states, ptrdiff_t ld, int rows,
                       const float* goal, float* work) const noexcept {
    float* const output = work;
    work += output_ld_ * rows;
    const float* input = states;
    ptrdiff_t input_ld = ld;
    if (reads_goal_) {
        input = work;
        input_ld = input_ld_;
        for (int r = 0; r < rows; ++r, work += input_ld_) {
            if (reads_state_) std::copy_n(states + r * ld, latent_, work);
            std::copy_n(goal, latent_, work + (reads_state_ ? latent_ : 0));
        }
    }
    if (network_.residual())
        for (int r = 0; r < rows; ++r) std::copy_n(states + r * ld, latent_, output + r * output_ld_);
    network_.forward(kernels, input, input_ld, rows, output, output_ld_, network_.residual(), work);
    return output;
}

void Policy::prior(const simd::Kernels& kernels, const float* states, ptrdiff_t ld, int rows,
                   const float* goal, float* out, ptrdiff_t out_ld, float* work) const noexcept {
    float* const output = forward(kernels, states, ld, rows, goal, work);
    if (head_ != PolicyHead::categorical)
        kernels.activate(output, output_ld_, rows, actions_, simd::Act::tanh);
    for (int r = 0; r < rows; ++r) std::copy_n(output + r * output_ld_, actions_, out + r * out_ld);
}

void Policy::act(const simd::Kernels& kernels, const float* states, ptrdiff_t ld, int rows, const float* goal,
                 const float* noise, ptrdiff_t noise_ld, float* actions, ptrdiff_t action_ld,
                 float* work) const noexcept {
    float* const output = forward(kernels, states, ld, rows, goal, work);
    if (head_ == PolicyHead::categorical) {
        for (int r = 0; r < rows; ++r) {
            float* logits = output + r * output_ld_;
            if (noise != nullptr)  // the largest is then drawn by their softmax
                for (int a = 0; a < actions_; ++a) logits[a] += noise[r * noise_ld + a];
            std::fill_n(actions + r * action_ld, actions_, 0.0f);
            actions[r * action_ld + (std::max_element(logits, logits + actions_) - logits)] = 1.0f;
        }
        return;
    }
    if (noise != nullptr && samples())
        for (int r = 0; r < rows; ++r) {
            float* u = output + r * output_ld_;
            for (int a = 0; a < actions_; ++a) {  // TD-MPC2's bounds of the log standard deviation
                const float log_std = -10.0f + 6.0f * (std::tanh(u[actions_ + a]) + 1.0f);
                u[a] += noise[r * noise_ld + a] * std::exp(log_std);
            }
        }
    kernels.activate(output, output_ld_, rows, actions_, simd::Act::tanh);
    for (int r = 0; r < rows; ++r)
        for (int a = 0; a < actions_; ++a) {
            const auto i = static_cast<size_t>(a);
            actions[r * action_ld + a] = middle_[i] + half_[i] * output[r * output_ld_ + a];
        }
}

}  // namespace pyjepa
