// An agent: a shared model, threads, and the task at hand.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "agent/memory.hpp"
#include "agent/task.hpp"

namespace pyjepa {

class Agent {
  public:
    Agent(std::shared_ptr<const Model> model, int threads);

    const Model& model() const noexcept { return *model_; }
    int threads() const noexcept { return pool_.threads(); }
    std::unique_ptr<Agent> clone() const;

    void configure(const pyjepa_task& task);
    // taken: `count` numbers, the actions of every environment since the last observation; nullptr: unknown.
    void observe(const void* observation, size_t bytes, int steps, const float* taken = nullptr,
                 size_t count = 0);
    // explore: drawn from the policy's distribution.
    void act(float* actions, size_t count, bool explore);
    bool plan(double deadline, Interrupt& interrupt, pyjepa_plan_out& out);  // as Task::plan
    void evaluate(const float* plans, size_t count, float* cost, float* gradient);
    void reset(int environment);
    void states(float* out, size_t count) const;
    // Keeps the newest `capacity` states it observes from now on; 0: none. Throws std::bad_alloc.
    void remember(size_t capacity);
    const Memory& memory() const noexcept { return memory_; }
    // The task at hand; throws Error(PYJEPA_NOT_READY) before configure.
    const Task& task() const;

    // One thread at a time: every call of the C ABI holds this while it is inside.
    class Hold {
      public:
        explicit Hold(const Agent& agent);  // throws Error(PYJEPA_BUSY)
        ~Hold() { agent_.busy_.clear(std::memory_order_release); }
        Hold(const Hold&) = delete;
        Hold& operator=(const Hold&) = delete;

      private:
        const Agent& agent_;
    };

  private:
    Task& observed_task();
    void take(std::unique_ptr<Task> task);
    void begin_episode(int environment) noexcept;
    const float* checked_taken(const float* taken, size_t count, int steps);

    std::shared_ptr<const Model> model_;
    Pool pool_;
    std::unique_ptr<Task> task_;
    Memory memory_;
    struct Episode {
        int64_t number, steps;
        bool observed;
    };
    std::vector<Episode> episodes_;  // (E,): those that run
    AlignedFloats taken_;            // (E, D): discrete actions, one-hot
    int64_t next_episode_ = 0;
    mutable std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

}  // namespace pyjepa
