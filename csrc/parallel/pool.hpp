// A fixed set of threads that run the tiles of one job at a time; the caller is one of them.
//
// A thread that the system takes off its processor in the middle of a tile holds up nobody: the caller
// computes that tile itself. What the straggler still reads is its job, which therefore is neither changed
// nor freed while a thread is inside (hazard pointers, Michael 2004): whoever plans keeps as many jobs as
// there are threads and takes one that is free.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

namespace pyjepa {

// Tiles 0 .. count - 1, each handed out once.
class Job {
  public:
    virtual ~Job() = default;

  private:
    friend class Pool;
    virtual void work(int tile, int thread) noexcept = 0;
    int claim() noexcept {
        const int tile = next_.fetch_add(1, std::memory_order_relaxed);
        return tile < count_ ? tile : -1;
    }

    int count_ = 0;
    alignas(64) std::atomic<int> next_{0};
};

// A job of pure tiles: what a tile comes to depends on the job alone, so that it may be computed twice.
class PureJob : public Job {
  public:
    explicit PureJob(int most_tiles) : done_(new std::atomic<bool>[static_cast<size_t>(most_tiles)]()) {}

  protected:
    // Computes a tile in memory of the thread's own and leaves the result in the job, with atomic stores:
    // another thread may be leaving the same. Returns false if it stopped because the job is over.
    virtual bool compute(int tile, int thread) noexcept = 0;
    // Whether to give the job up; asked before every tile, and while the caller (thread 0) waits for one.
    virtual bool over(int thread) noexcept = 0;

  private:
    friend class Pool;
    void begin(int count) noexcept;
    void work(int tile, int thread) noexcept final;
    bool done(int tile) const noexcept {
        return done_[static_cast<size_t>(tile)].load(std::memory_order_acquire);
    }
    bool give_up(int thread) noexcept;

    std::atomic<bool> given_up_{false};
    std::unique_ptr<std::atomic<bool>[]> done_;
};

class Pool {
  public:
    explicit Pool(int threads);  // threads >= 1, the caller included
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const noexcept { return threads_; }

    // Runs tiles 0 .. count - 1 of a job that no thread is inside, and waits for none that is preempted.
    // Returns false if the job was given up. Idle threads spin for a bounded time, then sleep on a futex;
    // nothing else enters the kernel, nothing allocates. One run at a time.
    bool run(PureJob& job, int count) noexcept;

    // Calls f(index, thread) for index 0 .. count - 1 once each, in any order, on any thread; returns when
    // all are done, which a preempted thread may delay.
    template <class F>
    void run(int count, const F& f) noexcept {
        struct Calls final : Job {
            explicit Calls(const F& function) : f(function) {}
            void work(int index, int thread) noexcept override { f(index, thread); }
            const F& f;
        } job(f);
        run_through(job, count);
    }

    // Whether a thread is inside a job, or looks for a moment as if it were.
    bool inside(const Job& job) const noexcept;
    // Waits until no thread is inside any.
    void quiesce() const noexcept;

    // A process forked from one with a pool has none of its threads: there the caller runs everything alone,
    // until this starts new ones.
    void revive();

  private:
    struct alignas(64) Thread {
        std::atomic<const Job*> inside{nullptr};
        std::thread handle;
    };
    void start();
    void join() noexcept;
    bool forked() const noexcept;
    void work(Thread& self, int thread) noexcept;
    void run_through(Job& job, int count) noexcept;
    void open(Job& job, int count) noexcept;
    void close(Job& job) noexcept;

    int threads_;
    unsigned born_ = 0;  // forks before the threads were started
    std::atomic<Job*> current_{nullptr};
    std::atomic<uint32_t> wake_{0};  // bumped for every job; threads sleep on it
    std::atomic<uint32_t> sleepers_{0};
    std::atomic<bool> stop_{false};
    std::unique_ptr<Thread[]> others_;  // all but the caller
};

}  // namespace pyjepa
