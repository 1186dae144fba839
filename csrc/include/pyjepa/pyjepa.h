/* pyjepa: load an agent file, perceive, act and plan. C ABI, append-only: functions and struct members are
 * only ever added (at the end), never changed or removed.
 *
 * Every call returns a status; on failure pyjepa_last_error() says what was wrong, in the calling thread,
 * until its next failing call. Handles are opaque and freed by their pyjepa_*_free. Buffers belong to the
 * caller. All arrays are row-major (C order), without gaps.
 *
 * Threads: a model is immutable and may be shared. An agent is used by one thread at a time; a second call
 * while one runs returns PYJEPA_BUSY. After pyjepa_configure, pyjepa_observe, pyjepa_act and pyjepa_plan
 * allocate nothing.
 *
 * A forked child has none of an agent's threads: there the agent works on the caller's alone, until
 * pyjepa_configure starts new ones. An agent that was inside a call when another thread forked stays busy
 * there.
 *
 * Discrete actions cross this interface as one float each (A = 1), their index.
 *
 * Symbols: E environments, A action dimension, L latent dimension, H horizon in environment steps, S = H /
 * action_block predictor steps, N candidates, T cost terms.
 */
#ifndef PYJEPA_H
#define PYJEPA_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define PYJEPA_API __declspec(dllexport)
#else
#define PYJEPA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pyjepa_model pyjepa_model;
typedef struct pyjepa_agent pyjepa_agent;

typedef enum pyjepa_status {
    PYJEPA_OK = 0,
    PYJEPA_INVALID_ARGUMENT = 1, /* a value, shape or size that cannot be */
    PYJEPA_INVALID_FILE = 2,     /* the agent file is damaged or contradicts itself */
    PYJEPA_IO = 3,               /* the file cannot be opened or read */
    PYJEPA_UNSUPPORTED = 4,      /* well-formed, but this engine lacks it */
    PYJEPA_NOT_READY = 5,        /* called before configure or observe */
    PYJEPA_BUSY = 6,             /* another thread is inside this agent */
    PYJEPA_CALLBACK = 7,         /* the rollout callback failed or returned non-finite costs */
    PYJEPA_OUT_OF_MEMORY = 8,
    PYJEPA_INTERNAL = 9,
    PYJEPA_CANCELLED = 10 /* pyjepa_plan_cancellable was asked to stop */
} pyjepa_status;

typedef enum pyjepa_dtype { PYJEPA_FLOAT32 = 0, PYJEPA_UINT8 = 1 } pyjepa_dtype;

typedef enum pyjepa_algorithm {
    PYJEPA_ALGORITHM_DEFAULT = 0, /* the agent file's */
    PYJEPA_CEM = 1,
    PYJEPA_MPPI = 2,
    PYJEPA_PREDICTIVE_SAMPLING = 3,
    PYJEPA_ICEM = 4,
    PYJEPA_GRADIENT = 5, /* needs the model's own rollouts, in fp32, through mlp blocks; so does hybrid */
    PYJEPA_HYBRID = 6,
    PYJEPA_CATEGORICAL_CEM = 7, /* discrete actions only */
    PYJEPA_TREE = 8
} pyjepa_algorithm;

typedef enum pyjepa_interpolation {
    PYJEPA_INTERPOLATION_DEFAULT = 0,
    PYJEPA_ZERO = 1,
    PYJEPA_LINEAR = 2,
    PYJEPA_CUBIC = 3
} pyjepa_interpolation;

/* What a temperature is measured in. */
typedef enum pyjepa_temperature_scale {
    PYJEPA_TEMPERATURE_SCALE_DEFAULT = 0,
    PYJEPA_TEMPERATURE_STD = 1,     /* standard deviations of the candidates' costs */
    PYJEPA_TEMPERATURE_ABSOLUTE = 2 /* units of cost */
} pyjepa_temperature_scale;

/* Where the planner's normals come from. */
typedef enum pyjepa_sampling {
    PYJEPA_SAMPLING_DEFAULT = 0,
    PYJEPA_GAUSSIAN = 1, /* independent of each other */
    PYJEPA_SOBOL = 2     /* scrambled Sobol points: evenly spread; knots * numbers per step <= 64 */
} pyjepa_sampling;

/* Of the weights of predictor, heads, critic and planning policy; sums are fp32 (bf16) or int32 (int8),
 * everything else fp32. */
typedef enum pyjepa_precision { PYJEPA_FP32 = 0, PYJEPA_BF16 = 1, PYJEPA_INT8 = 2 } pyjepa_precision;

/* The library's version, "major.minor.patch". Never NULL. */
PYJEPA_API const char* pyjepa_version(void);

/* The instruction set the kernels run with: "baseline", "avx2" or "avx512". PYJEPA_ISA overrides the choice.
 */
PYJEPA_API const char* pyjepa_isa(void);

/* What went wrong in this thread's last failing call; "" if nothing did. Valid until the thread's next
 * failing call. */
PYJEPA_API const char* pyjepa_last_error(void);

/* ---- model
 * --------------------------------------------------------------------------------------------------- */

typedef struct pyjepa_model_dims {
    size_t size;               /* sizeof(pyjepa_model_dims), set by the caller */
    int32_t observation_size;  /* elements of one observation */
    int32_t observation_dtype; /* pyjepa_dtype */
    int32_t action_dim;        /* A */
    int32_t latent_dim;        /* L */
    int32_t action_block;      /* environment steps per predictor step */
    int32_t cost_terms;        /* T */
    int32_t has_encoder;
    int32_t has_predictor;
    int32_t has_policy;
    int32_t precision;    /* pyjepa_precision of the predictor, as it runs */
    int32_t action_count; /* of discrete actions; 0: a box */
} pyjepa_model_dims;

PYJEPA_API pyjepa_status pyjepa_model_load(const char* path, pyjepa_model** out);
PYJEPA_API pyjepa_status pyjepa_model_parse(const void* bytes, size_t size, pyjepa_model** out);
PYJEPA_API void pyjepa_model_free(pyjepa_model* model);
PYJEPA_API pyjepa_status pyjepa_model_get_dims(const pyjepa_model* model, pyjepa_model_dims* out);

/* The spec as JSON; belongs to the model. */
PYJEPA_API const char* pyjepa_model_spec(const pyjepa_model* model);

/* Runs one module on `batch` inputs, each the module's inputs concatenated as they enter the network
 * (observations already scaled, actions already normalised): input (batch, in), output (batch, out). For
 * parity tests and tools; it allocates. `in_size`/`out_size` are checked. */
PYJEPA_API pyjepa_status pyjepa_model_forward(const pyjepa_model* model, const char* module,
                                              const float* input, size_t batch, size_t in_size, float* output,
                                              size_t out_size);
PYJEPA_API pyjepa_status pyjepa_model_module_sizes(const pyjepa_model* model, const char* module,
                                                   size_t* in_size, size_t* out_size);

/* ---- agent
 * --------------------------------------------------------------------------------------------------- */

/* threads >= 1 includes the caller's. */
PYJEPA_API pyjepa_status pyjepa_agent_create(const pyjepa_model* model, int32_t threads, pyjepa_agent** out);

/* A new agent with the same model, thread count and task, and none of the history. */
PYJEPA_API pyjepa_status pyjepa_agent_clone(const pyjepa_agent* agent, pyjepa_agent** out);
PYJEPA_API void pyjepa_agent_free(pyjepa_agent* agent);

/* A rollout of the caller's: states and goals (E, L) (goals NULL if there is none), actions (E, N, H, A),
 * cost out (E, N). Return 0, or anything else to stop the plan with PYJEPA_CALLBACK. Called from the planning
 * thread. N differs between calls: the planner also asks for single candidates. */
typedef int (*pyjepa_rollout_fn)(void* user, const float* states, const float* goals, const float* actions,
                                 size_t e, size_t n, size_t h, size_t a, size_t l, float* cost);

/* A rollout of the caller's that stands in for the model's own, on a GPU, say: plans as the predictor reads
 * them, D numbers per predictor step (A where the level holds its action, else action_block * A; discrete
 * actions one-hot), and all that the cost depends on. Fill `cost`, infinity for a plan whose prediction is
 * not finite, and `gradient` where it is asked for. The arrays last for the call. */
typedef struct pyjepa_rollout_call {
    size_t size;                                                  /* sizeof(pyjepa_rollout_call) */
    size_t environments, candidates, steps, plan_dim, latent_dim; /* E, N, S, D, L */
    const float* states;                                          /* (E, L) */
    const float* goals;                                           /* (E, L) or NULL */
    const float* plans;                                           /* (E, N, S, D) */
    const float* previous; /* (E, D): what was executed last; NaN where nothing was */
    const uint64_t* draws; /* (E,): random bits of this plan, for what is drawn once a plan */
    float* cost;           /* (E, N) */
    float* gradient;       /* (E, N, S, D): of each cost with respect to its plan; NULL: not asked for */
} pyjepa_rollout_call;

/* Return 0, or anything else to stop the plan with PYJEPA_CALLBACK. Called from the planning thread. N
 * differs between calls. */
typedef int (*pyjepa_rollout_call_fn)(void* user, const pyjepa_rollout_call* call);

/* What to do and how to plan it: pyjepa_task_init sets every member to its default, then set what differs. */
typedef struct pyjepa_task {
    size_t size;          /* sizeof(pyjepa_task) */
    int32_t environments; /* E >= 1 */
    int32_t algorithm;    /* pyjepa_algorithm */
    int32_t horizon;      /* environment steps, a multiple of action_block; -1: default */
    int32_t candidates;   /* -1: default, and so on below */
    int32_t iterations;
    int32_t elites;
    int32_t knots;         /* 0: one per predictor step; -1: default */
    int32_t interpolation; /* pyjepa_interpolation */
    float std, min_std;    /* fractions of half the action range; default: NaN */
    float momentum;        /* default: NaN */
    float temperature;     /* default: NaN */
    uint64_t seed;
    const void* goal; /* observations (E, ...) in the model's dtype, or NULL if no cost term needs one */
    size_t goal_bytes;
    const float* action_low; /* (A,) or NULL: the agent file's */
    const float* action_high;
    const float* weights; /* (T,) multiplies each cost term's weights (the u_i of the paper); NULL: all 1 */
    pyjepa_rollout_fn rollout; /* NULL: the model's own */
    void* rollout_user;
    int32_t temperature_scale; /* pyjepa_temperature_scale */
    int32_t elite_refit;       /* mppi refits mean and spread to the elites; 0, 1, -1: default */
    int32_t policy_candidates; /* candidates that are rollouts of the policy; -1: default */
    float max_std;             /* most spread that such a refit widens to; default: NaN */
    int32_t sampling;          /* pyjepa_sampling */
    float noise_beta;          /* the noise's power along the knots falls as 1 / f^beta; default: NaN */
    float keep_elites;   /* icem: share of the elites kept for the next iteration and plan; default: NaN */
    float decay;         /* icem: candidates shrink by this factor every iteration, >= 1; default: NaN */
    float learning_rate; /* gradient, hybrid: in halves of the action range; default: NaN */
    int32_t restarts;    /* gradient, hybrid: plans that descend side by side; -1: default */
    int32_t polish;      /* hybrid: iterations, the last ones, that descend; -1: default */
    int32_t prune; /* give up candidates as soon as they cannot be among those the planner keeps; 0: do not;
                      the plan is the same. -1: default (do) */
    float exploration; /* categorical-cem: share of each distribution that stays uniform; default: NaN */
    int32_t branching; /* tree: actions per node where it samples them; default: -1 */
    float discount;    /* of costs, per predictor step, in (0, 1]; default: NaN */
    pyjepa_rollout_call_fn
        rollout_call; /* NULL, or what stands in for the model's own rollouts: not with `rollout` */
    void* rollout_call_user;
    int32_t rollout_gradient; /* whether it fills in gradients; 0: planners that need them are refused */
} pyjepa_task;

/* The defaults, in as much of `task` as `size` = sizeof(pyjepa_task) says that the caller knows. */
PYJEPA_API void pyjepa_task_init(pyjepa_task* task, size_t size);

/* Sets the task and allocates everything that observing, acting and planning need. On failure the agent keeps
 * its previous task. */
PYJEPA_API pyjepa_status pyjepa_configure(pyjepa_agent* agent, const pyjepa_task* task);

/* Encodes observations (E, ...) of the model's dtype. `steps`: environment steps since the previous call, by
 * which the next plan shifts its warm start; -1: action_block. */
PYJEPA_API pyjepa_status pyjepa_observe(pyjepa_agent* agent, const void* observation, size_t bytes,
                                        int32_t steps);

/* The current latent states (E, L). */
PYJEPA_API pyjepa_status pyjepa_state(const pyjepa_agent* agent, float* states, size_t count);

/* Mode-1: the policy's actions (E, A) for the last observation. */
PYJEPA_API pyjepa_status pyjepa_act(pyjepa_agent* agent, float* actions, size_t count);

/* Where a plan goes. Any pointer may be NULL. */
typedef struct pyjepa_plan_out {
    size_t size;        /* sizeof(pyjepa_plan_out) */
    float* actions;     /* (E, H, A) */
    float* states;      /* (E, S + 1, L), the first the current one; not written by callback rollouts */
    float* cost;        /* (E,) */
    float* cost_terms;  /* (E, T, S); not written by callback rollouts */
    int32_t iterations; /* completed */
    double elapsed;     /* seconds */
    /* Diagnostics; I iterations as configured. */
    float* best_cost;   /* (E, I + 1): the best cost so far, from the start and after every iteration;
                           beyond `iterations` the last one again */
    int32_t* converged; /* (E,): first iteration after which it was within 1 % of the final one */
    float*
        effective_samples; /* (E,): (sum w)^2 / sum w^2 of the weights of the last iteration's candidates */
    float* elite_spread;   /* (E,): their standard deviation, in halves of the action range */
} pyjepa_plan_out;

/* Mode-2: plans from the last observation. `deadline` in seconds from the call, <= 0: none. When it passes,
 * the unfinished iteration is dropped and the best evaluated plan returned. */
PYJEPA_API pyjepa_status pyjepa_plan(pyjepa_agent* agent, double deadline, pyjepa_plan_out* out);

/* A new episode for one environment (-1: all): forgets state, warm start and plan count. */
PYJEPA_API pyjepa_status pyjepa_reset(pyjepa_agent* agent, int32_t environment);

/* The settings in force after configure, defaults resolved. */
typedef struct pyjepa_settings {
    size_t size;
    int32_t environments, algorithm, horizon, candidates, iterations, elites, knots, interpolation, threads;
    float std, min_std, momentum, temperature;
    double flops; /* multiply-adds * 2 of one plan's rollouts, 0 for callbacks */
    int32_t tile; /* candidates that a thread rolls out together at most, 0 for callbacks: all */
    int32_t temperature_scale, elite_refit, policy_candidates;
    float max_std;
    int32_t sampling, restarts, polish; /* 0 where the algorithm has none, as all that follow */
    float noise_beta, keep_elites, decay, learning_rate;
    float exploration;
    int32_t branching;
    float discount;
} pyjepa_settings;

PYJEPA_API pyjepa_status pyjepa_get_settings(const pyjepa_agent* agent, pyjepa_settings* out);

/* Mode-1 as pyjepa_act, but drawn from the policy's distribution: by the task's seed, the environment's
 * number and how often it explored since its reset. PYJEPA_UNSUPPORTED where the policy's head is
 * deterministic. */
PYJEPA_API pyjepa_status pyjepa_explore(pyjepa_agent* agent, float* actions, size_t count);

/* ---- measurement
 * --------------------------------------------------------------------------------------------- */

/* What one thread of this machine can multiply and add at most in a precision, in 10^9 operations per second
 * (two per multiply-add): a loop within registers, for `seconds` (at most 10), its best moment. It ignores
 * PYJEPA_ISA. PYJEPA_UNSUPPORTED where the machine has no instructions for the precision. */
PYJEPA_API pyjepa_status pyjepa_measure_peak(int32_t precision, double seconds, double* gflops);

/* pyjepa_model_load and pyjepa_model_parse with what planning runs in another precision, and the layers of
 * the encoder for which the file has precisions. Where the machine lacks the instructions it is fp32 all the
 * same: pyjepa_model_get_dims tells. */
PYJEPA_API pyjepa_status pyjepa_model_load_as(const char* path, int32_t precision, pyjepa_model** out);
PYJEPA_API pyjepa_status pyjepa_model_parse_as(const void* bytes, size_t size, int32_t precision,
                                               pyjepa_model** out);

/* ---- memory
 * ----------------------------------------------------------------------------------------------------- */

/* From now on every pyjepa_observe records its states with time and intrinsic cost (the task's cost terms of
 * states, weighted as at a stage; 0 where a callback rolls out), the newest `capacity` of them; 0: no more,
 * and what was recorded is forgotten. Configuring another task keeps the memory. Memory comes with neither
 * clone() nor file. */
PYJEPA_API pyjepa_status pyjepa_remember(pyjepa_agent* agent, size_t capacity);

/* How many states are recorded: M. */
PYJEPA_API pyjepa_status pyjepa_memory_size(const pyjepa_agent* agent, size_t* size);

/* Where records go, M of each, oldest first. Any pointer may be NULL. */
typedef struct pyjepa_memory_out {
    size_t size;           /* sizeof(pyjepa_memory_out) */
    int64_t* episodes;     /* (M,): no two episodes share a number */
    int64_t* steps;        /* (M,): environment steps since the episode began */
    int32_t* environments; /* (M,) */
    float* states;         /* (M, L) */
    float* goals;          /* (M, L); NaN where the task had none */
    float* costs;          /* (M,) */
} pyjepa_memory_out;

/* The oldest `count` records; PYJEPA_INVALID_ARGUMENT where there are fewer. */
PYJEPA_API pyjepa_status pyjepa_memory_read(const pyjepa_agent* agent, const pyjepa_memory_out* out,
                                            size_t count);

/* pyjepa_plan that may be stopped: `cancel` is called in the planning thread, for the first time after 20 ms
 * and then every 20 ms or so, between two tiles of candidates (pyjepa_settings: tile) or before a rollout of
 * the caller's. Once it returns anything but 0 the plan ends as if its deadline had passed: `out` is filled,
 * and the status is PYJEPA_CANCELLED. */
typedef int (*pyjepa_cancel_fn)(void* user);
PYJEPA_API pyjepa_status pyjepa_plan_cancellable(pyjepa_agent* agent, double deadline, pyjepa_plan_out* out,
                                                 pyjepa_cancel_fn cancel, void* user);

/* The instruction set that predictors of a precision run with; "" where there is none, and such a predictor
 * is fp32. PYJEPA_ISA may name them too: "avx512_vnni" leaves out bf16, "avx512" both. */
PYJEPA_API const char* pyjepa_precision_isa(int32_t precision);

/* What `n` plans for every environment cost from the last observation, with the task's cost: plans (E, n, S,
 * D) within the bounds, D numbers per predictor step (A where the level holds its action, else action_block *
 * A; of discrete actions A is 1, an index); cost (E, n), infinity where the prediction is not finite.
 * gradient (E, n, S, D): of each cost with respect to its plan; NULL, or PYJEPA_UNSUPPORTED where the model
 * has none. For tools and tests: it allocates. */
PYJEPA_API pyjepa_status pyjepa_evaluate(pyjepa_agent* agent, const float* plans, size_t n, float* cost,
                                         float* gradient);

/* pyjepa_observe, told what was done since the previous call: taken (E, D), `count` numbers as
 * pyjepa_evaluate has them of one predictor step, so that `steps` is action_block (or -1). A predictor that
 * looks back sees up to window - 1 states before this one, each with its action, the oldest forgotten first;
 * after pyjepa_observe, which does not say what was done, it sees the present one alone, and so it does in an
 * environment just reset, whatever is said of that. What was taken is also what the next plan's first action
 * is compared with. PYJEPA_UNSUPPORTED where a rollout_call stands in for a predictor that looks back. */
PYJEPA_API pyjepa_status pyjepa_observe_taken(pyjepa_agent* agent, const void* observation, size_t bytes,
                                              int32_t steps, const float* taken, size_t count);

#ifdef __cplusplus
}
#endif
#endif
