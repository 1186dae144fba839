// An agent in a C++ program: it sees Two Rooms as pixels, plans in latent space and walks to the goal it was
// shown.
//
//     embed_cpp AGENT_FILE [episodes] [threads] [deadline in ms, 0: none] [seed]
//
// Prints how it went and the percentiles of its decisions' latencies.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <pyjepa/pyjepa.hpp>
#include <random>
#include <vector>

#include "two_rooms.hpp"

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
}

// The nearest-rank percentile.
double percentile(const std::vector<double>& sorted, double p) {
    const auto rank = static_cast<std::size_t>(std::ceil(p / 100.0 * static_cast<double>(sorted.size())));
    return sorted[std::max<std::size_t>(rank, 1) - 1];
}

void report(const char* name, std::vector<double> times) {
    std::sort(times.begin(), times.end());
    std::printf("%-10s p50 %8.3f ms   p99 %8.3f ms   p99.9 %8.3f ms   max %8.3f ms\n", name,
                percentile(times, 50), percentile(times, 99), percentile(times, 99.9), times.back());
}

struct Score {
    int played = 0, reached = 0;
    void count(bool success) { ++played, reached += success; }
};

void report(const char* name, const Score& score) {
    if (score.played > 0)
        std::printf("%-10s %d of %d reached the goal (%.1f %%)\n", name, score.reached, score.played,
                    100.0 * score.reached / score.played);
}

int play(const char* file, int episodes, int threads, double deadline_ms, unsigned seed) {
    std::optional<pyjepa::Seconds> deadline;
    if (deadline_ms > 0) deadline = std::chrono::duration<double, std::milli>(deadline_ms);
    std::mt19937_64 random(seed);
    two_rooms::Episode episode = two_rooms::draw(random, true);
    two_rooms::Observation goal, seen;
    two_rooms::render(episode.goal, episode.door, goal);
    two_rooms::render(episode.start, episode.door, seen);

    // From nothing to the first action.
    const auto started = Clock::now();
    const pyjepa::Model model(file);
    const auto loaded = Clock::now();
    pyjepa::Agent agent(model, threads);
    const auto configure = [&] {
        pyjepa::Task task;
        task.seed = seed;
        agent.configure(task.with_goal(goal));
    };
    configure();
    pyjepa::Plan plan = agent.make_plan();
    const auto configured = Clock::now();
    agent.observe(seen);
    agent.plan(plan, deadline);
    const auto acting = Clock::now();
    std::printf("pyjepa %s on %s\n", pyjepa::version().c_str(), pyjepa::isa().c_str());
    std::printf("cold start %.3f ms: load %.3f, configure %.3f, first plan %.3f\n",
                milliseconds(started, acting), milliseconds(started, loaded),
                milliseconds(loaded, configured), milliseconds(configured, acting));

    Score all, crossing, same;
    std::vector<double> perceiving, planning, deciding;
    const int block = model.dims().action_block;
    for (int i = 0; i < episodes; ++i) {
        if (i > 0) {
            episode = two_rooms::draw(random, i % 2 == 0);
            two_rooms::render(episode.goal, episode.door, goal);
        }
        configure();  // allocates; nothing below does
        two_rooms::Position at = episode.start;
        int steps = 0;
        const auto over = [&] {
            return steps >= two_rooms::max_steps ||
                   two_rooms::distance(at, episode.goal) <= two_rooms::goal_radius;
        };
        while (!over()) {
            two_rooms::render(at, episode.door, seen);
            const auto before = Clock::now();
            agent.observe(seen, block);
            const auto perceived = Clock::now();
            agent.plan(plan, deadline);
            const auto decided = Clock::now();
            perceiving.push_back(milliseconds(before, perceived));
            planning.push_back(milliseconds(perceived, decided));
            deciding.push_back(milliseconds(before, decided));
            for (int k = 0; k < block && !over(); ++k, ++steps)
                at = two_rooms::move(at, plan.actions[static_cast<std::size_t>(2 * k)],
                                     plan.actions[static_cast<std::size_t>(2 * k + 1)], episode.door);
        }
        const bool success = two_rooms::distance(at, episode.goal) <= two_rooms::goal_radius;
        all.count(success);
        (episode.cross_room() ? crossing : same).count(success);
    }
    report("all", all);
    report("cross-room", crossing);
    report("same-room", same);
    std::printf("%zu decisions on %d thread(s)\n", deciding.size(), threads);
    report("perceive", perceiving);
    report("plan", planning);
    report("decide", deciding);
    return 0;
}

}  // namespace

int main(int argc, char** argv) try {
    const auto number = [&](int i, double otherwise) { return argc > i ? std::atof(argv[i]) : otherwise; };
    const auto episodes = static_cast<int>(number(2, 100));
    if (argc < 2 || argc > 6 || episodes < 1) {
        std::fprintf(stderr, "usage: %s AGENT_FILE [episodes] [threads] [deadline in ms, 0: none] [seed]\n",
                     argv[0]);
        return 2;
    }
    return play(argv[1], episodes, static_cast<int>(number(3, 1)), number(4, 0),
                static_cast<unsigned>(number(5, 0)));
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
