#include "parallel/pool.hpp"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pyjepa {
namespace {

constexpr uint64_t kMask = Pool::kMaxTiles;
constexpr int kSpins = 2000;  // some tens of microseconds, then sleep: a neighbour may need the core

inline void pause() noexcept {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

#if defined(__linux__)
void sleep_on(std::atomic<uint32_t>& word, uint32_t value) noexcept {
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}
void wake_all(std::atomic<uint32_t>& word) noexcept {
    syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 0x7fffffff, nullptr, nullptr, 0);
}
#else
void sleep_on(std::atomic<uint32_t>& word, uint32_t value) noexcept {
    word.wait(value);
}
void wake_all(std::atomic<uint32_t>& word) noexcept {
    word.notify_all();
}
#endif

bool has_tile(uint64_t job) noexcept {
    return (job & kMask) < ((job >> 24) & kMask);
}

}  // namespace

Pool::Pool(int threads) {
    workers_.reserve(static_cast<size_t>(threads - 1));
    try {
        for (int t = 1; t < threads; ++t) workers_.emplace_back([this, t] { work(t); });
    } catch (...) {  // the system has no more threads: let go of those we have
        join();
        throw;
    }
}

Pool::~Pool() {
    join();
}

void Pool::join() noexcept {
    stop_.store(true);
    wake_.fetch_add(1);
    wake_all(wake_);
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
}

bool Pool::run_one(int thread) noexcept {
    uint64_t job = job_.load(std::memory_order_acquire);
    do {
        if (!has_tile(job)) return false;
    } while (!job_.compare_exchange_weak(job, job + 1, std::memory_order_acq_rel, std::memory_order_acquire));
    task_(context_, static_cast<int>(job & kMask), thread);
    if (unfinished_.fetch_sub(1) == 1 && caller_sleeps_.load() != 0) wake_all(unfinished_);
    return true;
}

void Pool::work(int thread) noexcept {
    int spins = 0;
    for (;;) {
        const uint32_t seen = wake_.load();
        if (stop_.load()) return;
        if (run_one(thread)) {
            spins = 0;
        } else if (++spins < kSpins) {
            pause();
        } else {
            sleepers_.fetch_add(1);
            // A job published after `seen` was read has changed wake_, and the futex returns at once.
            if (!has_tile(job_.load()) && !stop_.load()) sleep_on(wake_, seen);
            sleepers_.fetch_sub(1);
            spins = 0;
        }
    }
}

void Pool::run_erased(int count, Task task, const void* context) noexcept {
    if (workers_.empty() || count <= 1) {
        for (int i = 0; i < count; ++i) task(context, i, 0);
        return;
    }
    task_ = task;
    context_ = context;
    unfinished_.store(static_cast<uint32_t>(count));
    const uint64_t epoch = (job_.load() >> 48) + 1;
    job_.store(epoch << 48 | static_cast<uint64_t>(count) << 24);
    wake_.fetch_add(1);
    if (sleepers_.load() != 0) wake_all(wake_);
    while (run_one(0)) {
    }
    for (int spins = 0;;) {
        const uint32_t left = unfinished_.load();
        if (left == 0) return;
        if (++spins < kSpins) {
            pause();
            continue;
        }
        caller_sleeps_.store(1);
        if (unfinished_.load() == left) sleep_on(unfinished_, left);
        caller_sleeps_.store(0);
        spins = 0;
    }
}

}  // namespace pyjepa
