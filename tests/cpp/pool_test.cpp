#include "parallel/pool.hpp"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace pyjepa {
namespace {

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
        if (run % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // workers fall asleep
    }
}

}  // namespace
}  // namespace pyjepa
