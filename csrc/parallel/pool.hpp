// A fixed set of threads that run the tiles of one job at a time; the caller is one of them.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace pyjepa {

class Pool {
  public:
    explicit Pool(int threads);  // threads >= 1, the caller included
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const noexcept { return static_cast<int>(workers_.size()) + 1; }

    // Calls f(index, thread) for index 0 .. count - 1, in any order, on any thread; returns when all are
    // done. Idle threads spin for a bounded time, then sleep on a futex; nothing else enters the kernel,
    // nothing allocates. One run at a time.
    template <class F>
    void run(int count, const F& f) noexcept {
        run_erased(
            count,
            [](const void* context, int index, int thread) noexcept {
                (*static_cast<const F*>(context))(index, thread);
            },
            &f);
    }
    static constexpr int kMaxTiles = (1 << 24) - 1;

  private:
    using Task = void (*)(const void* context, int index, int thread) noexcept;
    void run_erased(int count, Task task, const void* context) noexcept;
    void work(int thread) noexcept;
    void join() noexcept;
    bool run_one(int thread) noexcept;

    // The job word: epoch (16 bits), tile count (24), next tile (24). A thread owns a tile once it has moved
    // `next` past it, and only then reads task_ and context_, which stay as they are until every owned tile
    // is finished.
    std::atomic<uint64_t> job_{0};
    Task task_ = nullptr;
    const void* context_ = nullptr;
    std::atomic<uint32_t> unfinished_{0};
    std::atomic<uint32_t> caller_sleeps_{0};
    std::atomic<uint32_t> wake_{0};  // bumped for every job; workers sleep on it
    std::atomic<uint32_t> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::vector<std::thread> workers_;
};

}  // namespace pyjepa
