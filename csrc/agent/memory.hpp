// Short-term memory (paper section 3): the states the agent has perceived, when, and their intrinsic cost. A
// ring: where it is full, the newest takes the oldest one's place. The critic and the policy train from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pyjepa/pyjepa.h"

namespace pyjepa {

class Memory {
  public:
    // Records of `latent` numbers each; throws std::bad_alloc.
    Memory(size_t capacity, int latent);

    struct Record {
        int64_t
            episode;   // no two episodes of an agent share a number, those of different environments included
        int64_t step;  // tau: environment steps since the episode began
        int32_t environment;
        float cost;          // IC(s)
        const float* state;  // (L,)
        const float* goal;   // (L,), or nullptr: NaN is kept
    };
    // Real-time safe.
    void record(const Record& what) noexcept;
    void clear() noexcept { size_ = next_ = 0; }

    size_t size() const noexcept { return size_; }
    size_t capacity() const noexcept { return meta_.size(); }
    // The oldest `count` records, oldest first; count <= size(). Arrays that are NULL are left out.
    void read(const pyjepa_memory_out& out, size_t count) const noexcept;

  private:
    struct Meta {
        int64_t episode, step;
        int32_t environment;
        float cost;
    };
    size_t latent_, size_ = 0, next_ = 0;
    std::vector<Meta> meta_;
    std::vector<float> states_, goals_;  // (capacity, L)
};

}  // namespace pyjepa
