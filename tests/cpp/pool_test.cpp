#include "parallel/pool.hpp"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

namespace pyjepa {
namespace {

using namespace std::chrono_literals;

TEST(PoolTest, RunsEveryTileOnceWhateverTheThreads) {
    for (const int threads : {1, 2, 3, 8}) {
        Pool pool(threads);
        EXPECT_EQ(pool.threads(), threads);
        for (int count = 0; count < 300; count += 7) {
            std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
            std::atomic<bool> sound{true};
            pool.run(count, [&](int i, int thread) noexcept {
                if (thread < 0 || thread >= threads) sound = false;
                ++hits[static_cast<size_t>(i)];
            });
            for (const auto& h : hits) ASSERT_EQ(h.load(), 1);
            EXPECT_TRUE(sound.load());
        }
    }
}

TEST(PoolTest, ManyShortRunsWithSleepsBetween) {
    Pool pool(3);
    for (int run = 0; run < 3000; ++run) {
        std::atomic<int> total{0};
        pool.run(run % 5, [&](int i, int) noexcept { total += i + 1; });
        const int n = run % 5;
        ASSERT_EQ(total.load(), n * (n + 1) / 2);
        if (run % 500 == 0) std::this_thread::sleep_for(5ms);  // workers fall asleep
    }
}

// Squares of what it was given, and as many stragglers as the test wants: workers that enter a tile while
// `stuck` threads may still get stuck stay there until they are let go.
struct Gate {
    std::atomic<int> stuck{0};      // workers that may still enter and stay
    std::atomic<int> inside{0};     // that have
    std::atomic<bool> open{false};  // all go on
};

class Squares final : public PureJob {
  public:
    Squares(int most, Gate* gate)
        : PureJob(most), values(static_cast<size_t>(most)), results(static_cast<size_t>(most)), gate_(gate) {}
    void prepare(int count, int first) {
        for (int i = 0; i < count; ++i) values[static_cast<size_t>(i)] = first + i;
        for (auto& r : results) r.store(-1, std::memory_order_relaxed);
    }
    std::vector<int> values;
    std::vector<std::atomic<int>> results;
    std::atomic<int> computed{0};
    std::atomic<bool> enough{false};

  private:
    bool compute(int tile, int thread) noexcept override {
        const int before = values[static_cast<size_t>(tile)];
        if (thread == 0) {
            // Leaves the workers time to take a tile each.
            for (int i = 0; gate_->stuck.load() > 0 && i < 1000; ++i) std::this_thread::sleep_for(1ms);
        } else if (gate_->stuck.fetch_sub(1) > 0) {
            ++gate_->inside;
            while (!gate_->open.load()) std::this_thread::sleep_for(1ms);
            --gate_->inside;
        } else {
            gate_->stuck.store(0);
        }
        const int value = values[static_cast<size_t>(tile)];
        results[static_cast<size_t>(tile)].store(value == before ? value * value : -2,
                                                 std::memory_order_relaxed);
        ++computed;
        return true;
    }
    bool over(int) noexcept override { return enough.load(std::memory_order_relaxed); }

    Gate* gate_;
};

void expect_squares(const Squares& job, int count, int first) {
    for (int i = 0; i < count; ++i)
        ASSERT_EQ(job.results[static_cast<size_t>(i)].load(), (first + i) * (first + i)) << i;
}

TEST(PoolTest, PureTilesAreAllComputed) {
    for (const int threads : {1, 2, 5}) {
        Pool pool(threads);
        Gate gate;
        Squares job(100, &gate);
        for (int run = 0; run < 500; ++run) {
            while (pool.inside(job)) std::this_thread::yield();
            const int count = run % 101;
            job.prepare(count, run);
            ASSERT_TRUE(pool.run(job, count));
            expect_squares(job, count, run);
        }
    }
}

TEST(PoolTest, StragglersHoldUpNobodyAndSpoilNothing) {
    constexpr int threads = 4, count = 12;
    Pool pool(threads);
    Gate gate;
    std::vector<std::unique_ptr<Squares>> jobs;
    for (int i = 0; i < threads; ++i) jobs.push_back(std::make_unique<Squares>(count, &gate));
    const auto free_job = [&]() -> Squares& {
        for (;;)
            for (const auto& job : jobs)
                if (!pool.inside(*job)) return *job;
    };
    std::vector<Squares*> held;
    for (int stragglers = 1; stragglers < threads; ++stragglers) {
        // One more worker gets stuck in a tile; the run ends all the same, and correctly.
        gate.stuck = 1;
        Squares& job = free_job();
        job.prepare(count, 100 * stragglers);
        ASSERT_TRUE(pool.run(job, count));
        expect_squares(job, count, 100 * stragglers);
        ASSERT_EQ(gate.inside.load(), stragglers);
        ASSERT_TRUE(pool.inside(job));
        held.push_back(&job);
        // And so do those that follow while it is stuck, in jobs that nobody is inside.
        for (int run = 0; run < 20; ++run) {
            Squares& next = free_job();
            for (const Squares* h : held) ASSERT_NE(&next, h);
            next.prepare(count, run);
            ASSERT_TRUE(pool.run(next, count));
            expect_squares(next, count, run);
        }
    }
    std::thread later([&] {
        std::this_thread::sleep_for(20ms);
        gate.open = true;
    });
    pool.quiesce();
    EXPECT_TRUE(gate.open.load());
    EXPECT_EQ(gate.inside.load(), 0);
    for (const auto& job : jobs) EXPECT_FALSE(pool.inside(*job));
    // They computed the tile from what it was asked of, long after the others were through.
    for (size_t i = 0; i < held.size(); ++i) expect_squares(*held[i], count, 100 * (static_cast<int>(i) + 1));
    later.join();
}

TEST(PoolTest, AJobThatIsGivenUpEndsWithoutItsStragglers) {
    Pool pool(2);
    Gate gate;
    gate.stuck = 1;
    Squares job(8, &gate), next(8, &gate);
    job.prepare(8, 1);
    std::thread later([&] {
        while (gate.inside.load() == 0) std::this_thread::sleep_for(1ms);
        job.enough = true;
    });
    // The caller's first tile lasts until the other thread is stuck; then there may be more, or the end.
    const bool complete = pool.run(job, 8);
    later.join();
    if (complete) expect_squares(job, 8, 1);
    EXPECT_TRUE(pool.inside(job));
    next.prepare(8, 1);
    next.enough = true;
    EXPECT_FALSE(pool.run(next, 8));
    EXPECT_EQ(next.computed.load(), 0);
    next.enough = false;
    EXPECT_TRUE(pool.run(next, 8));
    gate.open = true;
    pool.quiesce();
    EXPECT_FALSE(pool.inside(job));
}

TEST(PoolTest, NoMoreIsComputedTwiceThanTheOtherThreadsHeld) {
    class Busy final : public PureJob {
      public:
        Busy() : PureJob(16) {}
        std::atomic<long> computed{0};

      private:
        bool compute(int, int) noexcept override {
            const auto until = std::chrono::steady_clock::now() + 50us;
            while (std::chrono::steady_clock::now() < until) {
            }
            ++computed;
            return true;
        }
        bool over(int) noexcept override { return false; }
    };
    Pool pool(2);
    Busy jobs[2];
    for (int run = 0; run < 200; ++run) {
        Busy& job = pool.inside(jobs[0]) ? jobs[1] : jobs[0];
        ASSERT_TRUE(pool.run(job, 16));
    }
    pool.quiesce();
    const long computed = jobs[0].computed + jobs[1].computed;
    EXPECT_GE(computed, 200 * 16);
    EXPECT_LE(computed, 200 * 17);
}

}  // namespace
}  // namespace pyjepa
