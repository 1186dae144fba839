#include "parallel/pool.hpp"

#include <algorithm>
#include <chrono>
#include <latch>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace pyjepa {
namespace {

using Clock = std::chrono::steady_clock;

// A tenth of a millisecond, then sleep: a neighbour may need the core. W0 at 200 Hz on two threads, medians
// of runs: 2.0 to 2.9 ms with 2000, 1.8 with 4000, 1.7 with 8000; W0s beside a process that spins, over one
// thread: 1.0, 1.1, 1.2 times.
constexpr int kSpins = 4000;
constexpr auto kPatience = std::chrono::microseconds(20);
constexpr auto kNap = std::chrono::microseconds(50);

// Has the system back the part of this thread's stack that tiles use, so that none of them waits for a page.
void touch_stack() noexcept {
    constexpr size_t kUsed = 64 * 1024, kPage = 4096;
    [[maybe_unused]] volatile char stack[kUsed];
    for (size_t i = 0; i < kUsed; i += kPage) stack[i] = 0;
}

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

// Where a preempted thread must be waited for, it gets the core.
template <class F>
void wait_until(const F& holds) noexcept {
    for (int spins = 0; !holds(); ++spins)
        if (spins < kSpins)
            pause();
        else
            std::this_thread::sleep_for(kNap);
}

// How often this process is a fork of one that had a pool.
std::atomic<unsigned> forks{0};

void count_forks() {
#if defined(__unix__) || defined(__APPLE__)
    static const int registered =
        pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1, std::memory_order_relaxed); });
    (void)registered;
#endif
}

}  // namespace

void PureJob::begin(int count) noexcept {
    given_up_.store(false, std::memory_order_relaxed);
    for (int i = 0; i < count; ++i) done_[static_cast<size_t>(i)].store(false, std::memory_order_relaxed);
}

bool PureJob::give_up(int thread) noexcept {
    if (given_up_.load(std::memory_order_relaxed)) return true;
    if (!over(thread)) return false;
    given_up_.store(true, std::memory_order_relaxed);
    return true;
}

void PureJob::work(int tile, int thread) noexcept {
    if (give_up(thread)) return;
    if (compute(tile, thread)) done_[static_cast<size_t>(tile)].store(true, std::memory_order_release);
}

Pool::Pool(int threads) : threads_(threads) {
    count_forks();
    start();
}

Pool::~Pool() {
    join();
}

void Pool::start() {
    born_ = forks.load(std::memory_order_relaxed);
    current_.store(nullptr);
    sleepers_.store(0);
    others_ = std::make_unique<Thread[]>(static_cast<size_t>(threads_ - 1));
    std::latch started(threads_ - 1);
    try {
        for (int t = 1; t < threads_; ++t) {
            Thread& self = others_[static_cast<size_t>(t - 1)];
            self.handle = std::thread([this, &self, &started, t] {
                touch_stack();
                started.count_down();
                work(self, t);
            });
        }
        started.wait();
    } catch (...) {  // the system has no more threads: let go of those we have
        join();
        throw;
    }
}

void Pool::join() noexcept {
    if (forked()) {
        // The handles mean threads of another process: they can be neither joined nor detached here.
        (void)others_.release();
        return;
    }
    stop_.store(true);
    wake_.fetch_add(1);
    wake_all(wake_);
    for (int t = 1; t < threads_; ++t) {
        std::thread& handle = others_[static_cast<size_t>(t - 1)].handle;
        if (handle.joinable()) handle.join();
    }
}

bool Pool::forked() const noexcept {
    return born_ != forks.load(std::memory_order_relaxed);
}

void Pool::revive() {
    if (!forked()) return;
    join();
    start();
}

bool Pool::inside(const Job& job) const noexcept {
    if (forked()) return false;
    return std::any_of(others_.get(), others_.get() + threads_ - 1,
                       [&job](const Thread& other) { return other.inside.load() == &job; });
}

void Pool::quiesce() const noexcept {
    if (forked()) return;
    for (int t = 1; t < threads_; ++t)
        wait_until([&] { return others_[static_cast<size_t>(t - 1)].inside.load() == nullptr; });
}

void Pool::work(Thread& self, int thread) noexcept {
    uint32_t seen = wake_.load();
    for (;;) {
        if (stop_.load()) return;
        if (Job* job = current_.load(); job != nullptr) {
            // Either the caller sees us inside before it takes the job again, or we see that it has moved on.
            self.inside.store(job);
            if (current_.load() == job)
                for (int tile; (tile = job->claim()) >= 0;) job->work(tile, thread);
            self.inside.store(nullptr);
        }
        // Until the next job there is nothing to do.
        for (int spins = 0; wake_.load() == seen && spins < kSpins; ++spins) pause();
        if (wake_.load() == seen) {
            sleepers_.fetch_add(1);
            sleep_on(wake_, seen);  // returns at once if a job was opened after we looked
            sleepers_.fetch_sub(1);
        }
        seen = wake_.load();
    }
}

void Pool::open(Job& job, int count) noexcept {
    job.count_ = count;
    job.next_.store(0, std::memory_order_relaxed);
    current_.store(&job);
    wake_.fetch_add(1);
    if (sleepers_.load() != 0) wake_all(wake_);
}

void Pool::close(Job& job) noexcept {
    current_.store(nullptr);
    job.next_.store(job.count_, std::memory_order_relaxed);  // whoever is inside finds no more
}

void Pool::run_through(Job& job, int count) noexcept {
    if (threads_ == 1 || count <= 1 || forked()) {
        for (int i = 0; i < count; ++i) job.work(i, 0);
        return;
    }
    open(job, count);
    for (int tile; (tile = job.claim()) >= 0;) job.work(tile, 0);
    close(job);
    wait_until([&] { return !inside(job); });
}

bool Pool::run(PureJob& job, int count) noexcept {
    job.begin(count);
    if (threads_ == 1 || count <= 1 || forked()) {
        for (int i = 0; i < count; ++i) {
            job.work(i, 0);
            if (!job.done(i)) return false;
        }
        return true;
    }
    open(job, count);
    Clock::time_point now = Clock::now();
    Clock::duration longest = kPatience;
    for (int tile; (tile = job.claim()) >= 0;) {
        job.work(tile, 0);
        if (!job.done(tile)) break;
        const Clock::time_point then = now;
        now = Clock::now();
        longest = std::max(longest, now - then);
    }
    // Whoever still computes began before we were through: on a processor of its own it is done within the
    // time that a tile takes. After that its tile is ours too.
    const Clock::time_point patience = now + longest;
    bool all = true;
    for (int tile = 0; tile < count && all; ++tile) {
        while (!job.done(tile) && !job.give_up(0) && Clock::now() < patience) pause();
        if (!job.done(tile)) job.work(tile, 0);
        all = job.done(tile);
    }
    close(job);
    return all;
}

}  // namespace pyjepa
