#include "agent/memory.hpp"

#include <algorithm>
#include <limits>

namespace pyjepa {

Memory::Memory(size_t capacity, int latent)
    : latent_(static_cast<size_t>(latent)),
      meta_(capacity),
      states_(capacity * latent_),
      goals_(capacity * latent_) {}

void Memory::record(const Record& what) noexcept {
    if (meta_.empty()) return;
    meta_[next_] = {what.episode, what.step, what.environment, what.cost};
    std::copy_n(what.state, latent_, states_.data() + next_ * latent_);
    float* goal = goals_.data() + next_ * latent_;
    if (what.goal != nullptr)
        std::copy_n(what.goal, latent_, goal);
    else
        std::fill_n(goal, latent_, std::numeric_limits<float>::quiet_NaN());
    next_ = (next_ + 1) % meta_.size();
    size_ = std::min(size_ + 1, meta_.size());
}

void Memory::read(const pyjepa_memory_out& out, size_t count) const noexcept {
    for (size_t i = 0; i < count; ++i) {
        const size_t at = (next_ + meta_.size() - size_ + i) % meta_.size();
        if (out.episodes != nullptr) out.episodes[i] = meta_[at].episode;
        if (out.steps != nullptr) out.steps[i] = meta_[at].step;
        if (out.environments != nullptr) out.environments[i] = meta_[at].environment;
        if (out.costs != nullptr) out.costs[i] = meta_[at].cost;
        if (out.states != nullptr)
            std::copy_n(states_.data() + at * latent_, latent_, out.states + i * latent_);
        if (out.goals != nullptr) std::copy_n(goals_.data() + at * latent_, latent_, out.goals + i * latent_);
    }
}

}  // namespace pyjepa
