// The spec in C++: what an agent file says about its agent. Mirrors pyjepa/spec.py, field for field.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace pyjepa {

enum class DType { float32, uint8 };
enum class Norm { none, layer, simnorm, layer_simnorm };
enum class Activation { none, relu, gelu, silu, mish, tanh };
enum class Input { observation, state, action, goal };
enum class Combine { concat, cell, adaln };
// One less than in pyjepa.h, where 0 is the file's.
enum class Algorithm { cem, mppi, predictive_sampling, icem, gradient, hybrid, categorical_cem, tree };
enum class Interpolation { zero, linear, cubic };
enum class Sampling { gaussian, sobol };
enum class CostKind {
    goal_distance,
    action_size,
    action_change,
    reward,
    hazard,
    box,
    half_space,
    critic,
    disagreement
};
enum class Metric { l2, squared_l2, l1, cosine };
enum class Reduce { mean, min, max, variance };  // no file asks for variance by name: disagreement does
enum class Estimates { reward, cost };
enum class PolicyHead { deterministic, gaussian_tanh, categorical };
enum class TemperatureScale { std, absolute };

struct ObservationSpec {
    std::vector<int> shape;
    DType dtype = DType::float32;
    float scale = 1.0f;
    float offset = 0.0f;
};

// A discrete action is one-hot wherever modules, rollouts and planners meet it: the corners of a box from 0
// to 1 that needs no normalisation.
struct ActionSpec {
    std::vector<float> low, high, center, scale;  // (A,); one-hot: (count,)
    int count = 0;                                // of discrete actions; 0: a box
    bool discrete() const noexcept { return count > 0; }
};

struct LayerSpec {
    int out = 0;
    Norm norm = Norm::none;
    Activation activation = Activation::none;
};

struct MlpSpec {
    std::vector<LayerSpec> layers;
    int simnorm_group = 8;
};

struct ConvLayerSpec {
    int out = 0;
    int kernel = 1;
    int stride = 1;
    int padding = 0;
    Activation activation = Activation::none;
};

struct ConvSpec {
    std::vector<ConvLayerSpec> layers;
};

struct ImpalaSpec {
    std::vector<int> channels;
    bool preactivation = true;  // else residual blocks end with their last ReLU: EB-JEPA's
};

// A GRU cell. Tied: its LayerNorm's parameters are those of the one that ends the encoder.
enum class CellNorm { none, layer, tied };

struct GruSpec {
    int hidden = 0;
    CellNorm norm = CellNorm::none;
};

struct TwoHotSpec {
    int bins = 2;
    float low = 0.0f, high = 0.0f;  // of the first and the last bin, in symlog space
};

// A causal transformer over the last `window` states, each modulated by the action taken in it (AdaLN-zero).
struct AdalnTransformerSpec {
    int window = 0;
    int depth = 0;
    int width = 0;
    int heads = 0, head_dim = 0;
    int hidden = 0;     // of each layer's MLP
    int embedding = 0;  // hidden units of the action's MLP
};

// A vision transformer on square patches: what it puts out of its tokens.
enum class TokenPool { cls, mean };

struct VitSpec {
    int patch = 0;
    int width = 0;
    int depth = 0;
    int heads = 0;
    int hidden = 0;  // of each layer's MLP
    TokenPool pool = TokenPool::cls;
    float norm_eps = 1e-5f;
};

using BlockSpec =
    std::variant<MlpSpec, ConvSpec, ImpalaSpec, TwoHotSpec, GruSpec, AdalnTransformerSpec, VitSpec>;

// How unsigned bytes stand for the inputs of a dense layer: x = scale * (byte - zero), with one scale for all
// inputs or one for each.
struct ActivationScale {
    std::vector<float> scale = {1.0f};
    int zero = 0;
    float at(size_t input) const { return scale.size() == 1 ? scale[0] : scale[input]; }
};

// What a layer's weights and inputs are rounded to at most, in the order of simd::Precision.
enum class LayerPrecision { fp32, bf16, int8 };

struct ModuleSpec {
    std::vector<Input> inputs;
    std::vector<BlockSpec> blocks;
    // cell: the first block is one, its hidden state is the state; adaln: it is a transformer of that kind
    Combine combine = Combine::concat;
    bool residual = false;
    int ensemble = 1;
    // For int8: one per layer of an mlp, one for a gru's hidden state; or none: chosen as it runs.
    std::vector<ActivationScale> activations;
    // The same layers' precisions, where they are loaded in a lower one; or none: no limit, but for an
    // encoder fp32.
    std::vector<LayerPrecision> precisions;
};

// How many layers of a block run in a lower precision: `activations` and `precisions` have an entry for each.
size_t quantised_layers(const BlockSpec& block);

struct LevelSpec {
    std::optional<std::string> encoder;
    std::optional<std::string> predictor;
    int action_block = 1;
    bool hold = false;
};

struct CostSpec {
    CostKind kind = CostKind::goal_distance;
    float stage = 1.0f;
    float terminal = 1.0f;
    Metric metric = Metric::l2;
    float reach = 0.0f;  // 0: none
    std::optional<std::string> module;
    bool seek = false;  // disagreement: pay for agreement instead
    bool sigmoid = false;
    std::vector<float> low, high, normal;
    float offset = 0.0f;
    bool hard = false;
    Estimates estimates = Estimates::reward;
    int members = 0;  // of an ensemble, drawn for each plan; 0: all
    Reduce reduce = Reduce::mean;
};

struct PlannerSpec {
    Algorithm algorithm = Algorithm::cem;
    int horizon = 10;  // environment steps
    int candidates = 256;
    int iterations = 5;
    int elites = 32;
    int knots = 0;  // 0: one per predictor step
    Interpolation interpolation = Interpolation::zero;
    float std = 0.5f;  // fraction of half the action range
    float min_std = 0.05f;
    float momentum = 0.0f;
    float temperature = 0.5f;
    TemperatureScale temperature_scale = TemperatureScale::std;
    bool elite_refit = false;
    float max_std = 10.0f;
    int policy_candidates = 0;
    Sampling sampling = Sampling::gaussian;
    std::optional<float> noise_beta;  // none: the algorithm's own
    float keep_elites = 0.3f;
    float decay = 1.25f;
    float learning_rate = 0.2f;
    int restarts = 8;
    int polish = 10;
    float exploration = 0.05f;  // share of each categorical distribution that stays uniform
    int branching = 8;          // actions per node of a tree, where it samples them
};

struct Spec {
    std::string name;
    ObservationSpec observation;
    ActionSpec actions;
    std::map<std::string, ModuleSpec> modules;
    LevelSpec level;
    std::optional<std::string> policy;
    PolicyHead policy_head = PolicyHead::deterministic;
    std::optional<std::string> critic;
    float discount = 1.0f;
    std::vector<CostSpec> cost;
    PlannerSpec planner;
    std::string json;  // the text it was read from

    // Sizes that follow from the above; the reader fills them in after checking that everything fits
    // together.
    int observation_size = 0;  // product of observation.shape
    int action_dim = 0;        // A: numbers of an action as modules read it (one-hot where it is discrete)
    int action_width = 0;      // numbers of an action at the API: A, or 1, an index
    int latent_dim = 0;        // L: what the encoder puts out (without encoder: observation_size)
    int plan_dim = 0;          // what the predictor reads per step: A, or action_block * A without hold
};

const char* algorithm_name(Algorithm algorithm);
// What is wrong with planning these actions by this algorithm; "" if nothing is.
std::string planner_mismatch(Algorithm algorithm, const ActionSpec& actions);

// The shape of a module's input and of what each of its blocks puts out; (size,) or (C, H, W).
using Shape = std::vector<int>;

}  // namespace pyjepa
