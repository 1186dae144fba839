// Shapes through the networks of a spec: what each block makes of its input, which tensors it needs, and
// whether the modules fit each other.
#include "agent_file/shapes.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

#include "agent_file/agent_file.hpp"
#include "agent_file/json.hpp"
#include "agent_file/limits.hpp"

namespace pyjepa {
namespace {

using NamedShapes = std::vector<std::pair<std::string, std::vector<int>>>;

// Every factor is at most 2^20 and every shape was kept within limits::elements, so a running product cannot
// overflow.
std::int64_t checked_elements(const Shape& shape, const std::string& where) {
    std::int64_t elements = 1;
    for (const int size : shape) {
        elements *= size;
        if (elements > limits::elements) {
            invalid(where, "output " + shape_text(shape) + " has more than " +
                               std::to_string(limits::elements) + " elements");
        }
    }
    return elements;
}

void require_image(const Shape& input, const char* kind, const std::string& where) {
    if (input.size() != 3) {
        invalid(where,
                std::string("block '") + kind + "' needs an input (C, H, W), got " + shape_text(input));
    }
}

std::string numbered(const std::string& list, std::size_t index) {
    return list + "[" + std::to_string(index) + "]";
}

int vit_tokens(const VitSpec& vit, const Shape& input) {
    return (vit.pool == TokenPool::cls ? 1 : 0) + input[1] / vit.patch * (input[2] / vit.patch);
}

struct OutputShape {
    const Shape& input;
    const std::string& where;

    Shape operator()(const MlpSpec& mlp) const { return {mlp.layers.back().out}; }

    Shape operator()(const ConvSpec& conv) const {
        require_image(input, "conv", where);
        Shape shape = input;
        for (std::size_t i = 0; i < conv.layers.size(); ++i) {
            const ConvLayerSpec& layer = conv.layers[i];
            const std::string place = numbered(where + ".layers", i);
            for (const int axis : {1, 2}) {
                const int padded = shape[axis] + 2 * layer.padding;
                if (layer.kernel > padded) {
                    invalid(place, "kernel " + std::to_string(layer.kernel) + " is larger than its input " +
                                       shape_text(shape) + " with padding " + std::to_string(layer.padding));
                }
                shape[axis] = (padded - layer.kernel) / layer.stride + 1;
            }
            shape[0] = layer.out;
            checked_elements(shape, place);
        }
        return shape;
    }

    Shape operator()(const ImpalaSpec& impala) const {
        require_image(input, "impala", where);
        Shape shape = input;
        for (std::size_t i = 0; i < impala.channels.size(); ++i) {
            shape[0] = impala.channels[i];
            checked_elements(shape, numbered(where + ".channels", i));  // between convolution and pooling
            for (const int axis : {1, 2}) shape[axis] = (shape[axis] - 1) / 2 + 1;
        }
        return shape;
    }

    Shape operator()(const GruSpec& gru) const { return {gru.hidden}; }

    Shape operator()(const VitSpec& vit) const {
        require_image(input, "vit", where);
        if (input[1] % vit.patch != 0 || input[2] % vit.patch != 0) {
            invalid(where + ".patch",
                    std::to_string(vit.patch) + " does not divide its input " + shape_text(input));
        }
        const std::int64_t patches = std::int64_t{input[1] / vit.patch} * (input[2] / vit.patch);
        if (patches > limits::tokens) {
            invalid(where,
                    std::to_string(patches) + " patches are more than " + std::to_string(limits::tokens));
        }
        const int tokens = vit_tokens(vit, input);
        checked_elements({tokens, 3 * vit.width}, where);
        checked_elements({tokens, vit.hidden}, where + ".hidden");
        return {vit.width};
    }

    Shape operator()(const AdalnTransformerSpec& transformer) const { return {transformer.width}; }

    Shape operator()(const TwoHotSpec& two_hot) const {
        if (input != Shape{two_hot.bins}) {
            invalid(where, "block 'two_hot' has " + std::to_string(two_hot.bins) + " bins, its input is " +
                               shape_text(input));
        }
        return {1};
    }
};

struct BlockTensors {
    const std::string& prefix;  // "module.block."
    const Shape& input;
    int latent;
    NamedShapes& out;

    void add(const std::string& name, std::vector<int> weight, std::vector<int> bias) const {
        out.emplace_back(prefix + name + ".weight", std::move(weight));
        out.emplace_back(prefix + name + ".bias", std::move(bias));
    }

    void operator()(const MlpSpec& mlp) const {
        int in = 1;
        for (const int size : input) in *= size;
        for (std::size_t j = 0; j < mlp.layers.size(); ++j) {
            const LayerSpec& layer = mlp.layers[j];
            add("linear" + std::to_string(j), {layer.out, in}, {layer.out});
            if (layer.norm == Norm::layer || layer.norm == Norm::layer_simnorm) {
                add("norm" + std::to_string(j), {layer.out}, {layer.out});
            }
            in = layer.out;
        }
    }

    void operator()(const ConvSpec& conv) const {
        int in = input[0];
        for (std::size_t j = 0; j < conv.layers.size(); ++j) {
            const ConvLayerSpec& layer = conv.layers[j];
            add("conv" + std::to_string(j), {layer.out, in, layer.kernel, layer.kernel}, {layer.out});
            in = layer.out;
        }
    }

    void operator()(const ImpalaSpec& impala) const {
        int in = input[0];
        for (std::size_t s = 0; s < impala.channels.size(); ++s) {
            const int channels = impala.channels[s];
            const std::string stage = "stage" + std::to_string(s);
            add(stage + ".conv", {channels, in, 3, 3}, {channels});
            for (const char* conv : {".res0.conv0", ".res0.conv1", ".res1.conv0", ".res1.conv1"}) {
                add(stage + conv, {channels, channels, 3, 3}, {channels});
            }
            in = channels;
        }
    }

    void operator()(const GruSpec& gru) const {
        const int gates = 3 * gru.hidden, in = input[0] - gru.hidden;
        out.emplace_back(prefix + "weight_ih", std::vector<int>{gates, in});
        out.emplace_back(prefix + "weight_hh", std::vector<int>{gates, gru.hidden});
        out.emplace_back(prefix + "bias_ih", std::vector<int>{gates});
        out.emplace_back(prefix + "bias_hh", std::vector<int>{gates});
        if (gru.norm != CellNorm::none) add("norm", {gru.hidden}, {gru.hidden});
    }

    void operator()(const AdalnTransformerSpec& t) const {
        const int inner = t.heads * t.head_dim;
        out.emplace_back(prefix + "position", std::vector<int>{t.window, t.width});
        if (t.width != latent) add("input", {t.width, latent}, {t.width});
        add("action0", {t.embedding, input[0] - latent}, {t.embedding});
        add("action1", {t.width, t.embedding}, {t.width});
        for (int d = 0; d < t.depth; ++d) {
            const std::string layer = "layer" + std::to_string(d) + ".";
            add(layer + "modulation", {6 * t.width, t.width}, {6 * t.width});
            add(layer + "norm0", {t.width}, {t.width});
            out.emplace_back(prefix + layer + "qkv.weight", std::vector<int>{3 * inner, t.width});
            add(layer + "out", {t.width, inner}, {t.width});
            add(layer + "norm1", {t.width}, {t.width});
            add(layer + "linear0", {t.hidden, t.width}, {t.hidden});
            add(layer + "linear1", {t.width, t.hidden}, {t.width});
        }
        add("norm", {t.width}, {t.width});
    }

    void operator()(const VitSpec& vit) const {
        add("patch", {vit.width, input[0], vit.patch, vit.patch}, {vit.width});
        if (vit.pool == TokenPool::cls) out.emplace_back(prefix + "cls", std::vector<int>{vit.width});
        out.emplace_back(prefix + "position", std::vector<int>{vit_tokens(vit, input), vit.width});
        for (int d = 0; d < vit.depth; ++d) {
            const std::string layer = "layer" + std::to_string(d) + ".";
            add(layer + "norm0", {vit.width}, {vit.width});
            add(layer + "qkv", {3 * vit.width, vit.width}, {3 * vit.width});
            add(layer + "out", {vit.width, vit.width}, {vit.width});
            add(layer + "norm1", {vit.width}, {vit.width});
            add(layer + "linear0", {vit.hidden, vit.width}, {vit.hidden});
            add(layer + "linear1", {vit.width, vit.hidden}, {vit.width});
        }
        add("norm", {vit.width}, {vit.width});
    }

    void operator()(const TwoHotSpec&) const {}
};

bool reads(const ModuleSpec& module, Input input) {
    return std::find(module.inputs.begin(), module.inputs.end(), input) != module.inputs.end();
}

// One scale for all inputs of a layer or one for each. `shape` is the block's input, `next` the module's
// layer that it begins with.
void check_scales(const ModuleSpec& module, const BlockSpec& block, const Shape& shape, std::size_t& next,
                  const std::string& where) {
    const auto check = [&](std::int64_t inputs) {
        if (next < module.activations.size()) {
            const std::size_t scales = module.activations[next].scale.size();
            if (scales != 1 && scales != static_cast<std::size_t>(inputs)) {
                invalid(numbered(where + ".quantisation.activations", next) + ".scale",
                        "has " + std::to_string(scales) + " items, but the layer has " +
                            std::to_string(inputs) + " inputs");
            }
        }
        ++next;
    };
    if (const auto* gru = std::get_if<GruSpec>(&block)) check(gru->hidden);
    if (const auto* t = std::get_if<AdalnTransformerSpec>(&block)) {
        check(t->embedding);
        check(t->width);
        for (int d = 0; d < t->depth; ++d)
            for (const int inputs : {t->width, t->heads * t->head_dim, t->width, t->hidden}) check(inputs);
    }
    if (const auto* vit = std::get_if<VitSpec>(&block)) {
        check(std::int64_t{1} * shape[0] * vit->patch * vit->patch);
        for (int d = 0; d < vit->depth; ++d)
            for (const int inputs : {vit->width, vit->width, vit->width, vit->hidden}) check(inputs);
    }
    if (const auto* conv = std::get_if<ConvSpec>(&block)) {
        std::int64_t channels = shape[0];
        for (const ConvLayerSpec& layer : conv->layers) {
            check(channels * layer.kernel * layer.kernel);
            channels = layer.out;
        }
    }
    if (const auto* impala = std::get_if<ImpalaSpec>(&block)) {
        std::int64_t channels = shape[0];
        for (const int own : impala->channels) {
            check(9 * channels);
            for (int conv = 0; conv < 4; ++conv) check(std::int64_t{9} * own);
            channels = own;
        }
    }
    if (const auto* mlp = std::get_if<MlpSpec>(&block)) {
        std::int64_t in = checked_elements(shape, where);
        for (const LayerSpec& layer : mlp->layers) {
            check(in);
            in = layer.out;
        }
    }
}

// The flattened size of what a module puts out.
int output_size(const Spec& spec, const std::string& name) {
    const ModuleSpec& module = spec.modules.at(name);
    const std::string where = "spec.modules." + name;
    Shape shape = module_input_shape(spec, module);
    std::int64_t elements = checked_elements(shape, where + ".inputs");
    std::size_t layer = 0;
    for (std::size_t i = 0; i < module.blocks.size(); ++i) {
        const std::string place = numbered(where + ".blocks", i);
        const Shape input = std::exchange(shape, block_output_shape(module.blocks[i], shape, place));
        check_scales(module, module.blocks[i], input, layer, where);
        elements = checked_elements(shape, place);
    }
    return static_cast<int>(elements);
}

const ModuleSpec& referenced(const Spec& spec, const std::string& name, const std::string& where) {
    const auto found = spec.modules.find(name);
    if (found == spec.modules.end()) invalid(where, "there is no module " + printable(name));
    return found->second;
}

void resolve_encoder(Spec& spec) {
    spec.latent_dim = spec.observation_size;
    if (!spec.level.encoder) return;
    const std::string& name = *spec.level.encoder;
    const ModuleSpec& encoder = referenced(spec, name, "spec.levels[0].encoder");
    if (encoder.inputs != std::vector<Input>{Input::observation}) {
        invalid("spec.modules." + name + ".inputs", "an encoder reads exactly 'observation'");
    }
    if (encoder.residual) invalid("spec.modules." + name + ".residual", "an encoder has no state to add");
    spec.latent_dim = output_size(spec, name);
}

// The LayerNorm layer that ends a level's encoder: its tensors' prefix; none if it ends otherwise.
std::optional<std::string> encoder_norm(const Spec& spec) {
    if (!spec.level.encoder) return std::nullopt;
    const auto& blocks = spec.modules.at(*spec.level.encoder).blocks;
    const auto* mlp = std::get_if<MlpSpec>(&blocks.back());
    if (mlp == nullptr || mlp->layers.back().norm != Norm::layer) return std::nullopt;
    return *spec.level.encoder + "." + std::to_string(blocks.size() - 1) + ".norm" +
           std::to_string(mlp->layers.size() - 1);
}

void check_cells(const Spec& spec) {
    for (const auto& [name, module] : spec.modules) {
        const auto* gru = std::get_if<GruSpec>(&module.blocks.front());
        if (gru == nullptr) continue;
        const std::string where = "spec.modules." + name + ".blocks[0]";
        if (gru->hidden != spec.latent_dim) {
            invalid(where + ".hidden", std::to_string(gru->hidden) +
                                           ", but its hidden state is the state, of size " +
                                           std::to_string(spec.latent_dim));
        }
        if (gru->norm != CellNorm::tied) continue;
        if (name != spec.level.predictor)
            invalid(where + ".norm", "only the predictor's LayerNorm can be tied to the encoder's");
        if (module.ensemble > 1)
            invalid(where + ".norm", "those of an ensemble cannot be tied: each has a LayerNorm of its own");
        if (!encoder_norm(spec)) {
            invalid(where + ".norm",
                    "there is nothing to be tied to: no encoder that ends in an mlp layer with norm 'layer'");
        }
    }
}

void check_transformers(const Spec& spec) {
    for (const auto& [name, module] : spec.modules) {
        if (module.combine != Combine::adaln) continue;
        const std::string where = "spec.modules." + name;
        if (name != spec.level.predictor)
            invalid(where + ".combine", "only a predictor has the past that 'adaln' looks back on");
        if (module.ensemble > 1)
            unsupported(where + ".ensemble",
                        "module " + printable(name) + ": an ensemble with combine 'adaln' is not available");
    }
}

void check_predictor(const Spec& spec) {
    if (!spec.level.predictor) return;
    const std::string& name = *spec.level.predictor;
    const ModuleSpec& predictor = referenced(spec, name, "spec.levels[0].predictor");
    if (predictor.inputs.size() != 2 || !reads(predictor, Input::state) || !reads(predictor, Input::action)) {
        invalid("spec.modules." + name + ".inputs", "a predictor reads exactly 'state' and 'action'");
    }
    if (const int size = output_size(spec, name); size != spec.latent_dim) {
        invalid("spec.modules." + name, "a predictor puts out a state of size " +
                                            std::to_string(spec.latent_dim) + ", this one puts out " +
                                            std::to_string(size));
    }
}

void check_policy(const Spec& spec) {
    if (!spec.policy) return;
    const std::string& name = *spec.policy;
    const ModuleSpec& policy = referenced(spec, name, "spec.policy");
    if (reads(policy, Input::observation) || reads(policy, Input::action)) {
        invalid("spec.modules." + name + ".inputs", "a policy reads only 'state' and 'goal'");
    }
    if (spec.actions.discrete() != (spec.policy_head == PolicyHead::categorical)) {
        invalid("spec.policy_head", spec.actions.discrete()
                                        ? "a policy of discrete actions has the head 'categorical'"
                                        : "the head 'categorical' is for discrete actions");
    }
    const bool gaussian = spec.policy_head == PolicyHead::gaussian_tanh;
    const int size = output_size(spec, name);
    if (size != spec.action_dim * (gaussian ? 2 : 1)) {
        const char* what = spec.actions.discrete() ? " logits"
                           : gaussian              ? " means and as many log standard deviations"
                                                   : " actions";
        invalid("spec.modules." + name, "a policy puts out " + std::to_string(spec.action_dim) + what +
                                            ", this one puts out " + std::to_string(size));
    }
    if (policy.residual && (!reads(policy, Input::state) || size != spec.latent_dim)) {
        invalid("spec.modules." + name + ".residual",
                "needs 'state' among the inputs and an output of the state's size " +
                    std::to_string(spec.latent_dim));
    }
}

// A critic or a prediction head: what it may read, and how many numbers it puts out (0: any number).
// `scatters`: only how its members differ counts, which a state added to all of them does not change.
void check_head(const Spec& spec, const std::string& name, const std::string& what, bool takes_action,
                bool takes_goal, int outputs, bool scatters = false) {
    const ModuleSpec& head = spec.modules.at(name);
    if (reads(head, Input::observation) || (!takes_action && reads(head, Input::action)) ||
        (!takes_goal && reads(head, Input::goal))) {
        invalid("spec.modules." + name + ".inputs", what + " reads only 'state'" +
                                                        (takes_action ? ", 'action'" : "") +
                                                        (takes_goal ? ", 'goal'" : ""));
    }
    if (head.residual && !(scatters && spec.level.predictor == name)) {
        invalid("spec.modules." + name + ".residual", what + " puts out no state to add to");
    }
    if (const int size = output_size(spec, name); outputs != 0 && size != outputs) {
        invalid("spec.modules." + name, what + " puts out " + std::to_string(outputs) +
                                            " number, this one puts out " + std::to_string(size));
    }
}

void check_critic(const Spec& spec) {
    if (!spec.critic) return;
    const ModuleSpec& critic = referenced(spec, *spec.critic, "spec.critic");
    check_head(spec, *spec.critic, "a critic", true, true, 1);
    if (!reads(critic, Input::action)) return;
    if (!spec.policy) {
        invalid("spec.critic", "a critic of state and action needs a policy, whose action it judges");
    }
    if (spec.plan_dim != spec.action_dim) {
        invalid("spec.critic", "a critic of state and action needs a predictor that reads one action a step");
    }
}

void require_size(const std::vector<float>& given, int expected, const std::string& where) {
    if (static_cast<int>(given.size()) != expected) {
        invalid(where, "has " + std::to_string(given.size()) + " items, but there are " +
                           std::to_string(expected) + " numbers to judge");
    }
}

void check_cost(const Spec& spec) {
    for (std::size_t i = 0; i < spec.cost.size(); ++i) {
        const CostSpec& term = spec.cost[i];
        const std::string where = numbered("spec.cost", i);
        const auto head = [&](const char* what, bool takes_action, bool takes_goal, int outputs) {
            if (!term.module) invalid(where, "key 'module' is missing");
            referenced(spec, *term.module, where + ".module");
            check_head(spec, *term.module, what, takes_action, takes_goal, outputs,
                       term.kind == CostKind::disagreement);
        };
        std::optional<std::string> judge = term.module;
        switch (term.kind) {
            case CostKind::goal_distance:
                if (term.module) head("a prediction head of state and goal", false, false, 0);
                break;
            case CostKind::reward:
                head("a reward head", true, true, 1);
                break;
            case CostKind::hazard:
                head("a hazard head", false, true, 1);
                break;
            case CostKind::disagreement:
                head("a head that may disagree", true, true, 0);
                if (spec.modules.at(*term.module).ensemble < 2 || term.members == 1)
                    invalid(where + ".module", "one network alone cannot disagree: an ensemble is needed");
                break;
            case CostKind::box:
            case CostKind::half_space: {
                if (term.module) head("a prediction head", false, true, 0);
                const int size = term.module ? output_size(spec, *term.module) : spec.latent_dim;
                if (term.kind == CostKind::half_space) {
                    require_size(term.normal, size, where + ".normal");
                    break;
                }
                if (term.low.empty() && term.high.empty()) invalid(where, "a box needs 'low' or 'high'");
                if (!term.low.empty()) require_size(term.low, size, where + ".low");
                if (!term.high.empty()) require_size(term.high, size, where + ".high");
                for (std::size_t j = 0; j < std::min(term.low.size(), term.high.size()); ++j) {
                    if (!(term.low[j] <= term.high[j])) {
                        invalid(numbered(where + ".low", j), "the lower bound is above the upper one");
                    }
                }
                break;
            }
            case CostKind::critic:
                if (!spec.critic) invalid(where, "this agent has no critic (spec.critic)");
                if (term.module) invalid(where + ".module", "the critic's module is named by spec.critic");
                judge = spec.critic;
                break;
            case CostKind::action_size:
            case CostKind::action_change:
                if (term.module) invalid(where + ".module", "a term of this kind reads no module");
                break;
        }
        const int networks = judge ? spec.modules.at(*judge).ensemble : 1;
        if (term.kind == CostKind::goal_distance && term.members != 0) {
            invalid(where + ".members", "a goal distance takes all members");
        }
        if (term.members > networks) {
            invalid(where + ".members",
                    std::to_string(term.members) + " of an ensemble of " + std::to_string(networks));
        }
    }
}

void check_policy_candidates(const Spec& spec) {
    const std::string where = "spec.planner.policy_candidates";
    if (spec.planner.policy_candidates == 0) return;
    if (!spec.policy) invalid(where, "there is no policy");
    if (spec.actions.discrete()) invalid(where, "the policy proposes no discrete actions");
    if (spec.plan_dim != spec.action_dim) invalid(where, "the predictor reads several actions a step");
    if (spec.planner.knots != 0) invalid(where, "candidates of the policy have no knots");
}

void check_all_referenced(const Spec& spec) {
    for (const auto& [name, module] : spec.modules) {
        const std::optional<std::string> own = name;
        const bool judges = own == spec.critic || std::any_of(spec.cost.begin(), spec.cost.end(),
                                                              [&](const auto& t) { return t.module == own; });
        if (!judges && own != spec.level.encoder && own != spec.level.predictor && own != spec.policy) {
            invalid("spec.modules." + name, "no level, policy, critic or cost term refers to this module");
        }
        if (module.ensemble > 1 && (own == spec.level.encoder || own == spec.policy)) {
            unsupported("spec.modules." + name + ".ensemble",
                        "module " + printable(name) +
                            ": an ensemble is available for predictors, critics and prediction heads only");
        }
    }
}

}  // namespace

std::string shape_text(const Shape& shape) {
    std::string out = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + "]";
}

Shape module_input_shape(const Spec& spec, const ModuleSpec& module) {
    if (module.inputs == std::vector<Input>{Input::observation} && spec.observation.shape.size() == 3) {
        return spec.observation.shape;
    }
    int size = 0;  // four inputs of at most 2^24 each
    for (const Input input : module.inputs) {
        switch (input) {
            case Input::observation:
                size += spec.observation_size;
                break;
            case Input::state:
            case Input::goal:
                size += spec.latent_dim;
                break;
            case Input::action:
                size += spec.plan_dim;
                break;
        }
    }
    return {size};
}

Shape block_output_shape(const BlockSpec& block, const Shape& input, const std::string& where) {
    return std::visit(OutputShape{input, where}, block);
}

NamedShapes expected_tensors(const Spec& spec) {
    NamedShapes tensors;
    for (const auto& [name, module] : spec.modules) {
        Shape shape = module_input_shape(spec, module);
        for (std::size_t i = 0; i < module.blocks.size(); ++i) {
            const std::string prefix = name + "." + std::to_string(i) + ".";
            const std::size_t first = tensors.size();
            std::visit(BlockTensors{prefix, shape, spec.latent_dim, tensors}, module.blocks[i]);
            if (module.ensemble > 1) {
                for (std::size_t t = first; t < tensors.size(); ++t) {
                    std::vector<int>& dims = tensors[t].second;
                    dims.insert(dims.begin(), module.ensemble);
                }
            }
            shape = block_output_shape(module.blocks[i], shape, "spec.modules." + name);
        }
    }
    return tensors;
}

std::vector<std::pair<std::string, std::string>> tied_tensors(const Spec& spec) {
    if (!spec.level.predictor) return {};
    const auto* gru = std::get_if<GruSpec>(&spec.modules.at(*spec.level.predictor).blocks.front());
    if (gru == nullptr || gru->norm != CellNorm::tied) return {};
    const std::string own = *spec.level.predictor + ".0.norm", encoders = *encoder_norm(spec);
    return {{own + ".weight", encoders + ".weight"}, {own + ".bias", encoders + ".bias"}};
}

void resolve_spec(Spec& spec) {
    spec.observation_size = 1;
    for (const int size : spec.observation.shape) spec.observation_size *= size;
    spec.action_dim = static_cast<int>(spec.actions.low.size());
    spec.action_width = spec.actions.discrete() ? 1 : spec.action_dim;
    const std::int64_t plan_dim =
        std::int64_t{spec.action_dim} * (spec.level.hold ? 1 : spec.level.action_block);
    if (plan_dim > limits::dimension) {
        invalid("spec.levels[0].action_block",
                "the actions of a block are more than " + std::to_string(limits::dimension));
    }
    spec.plan_dim = static_cast<int>(plan_dim);
    const PlannerSpec& planner = spec.planner;
    if (std::int64_t{planner.candidates} * planner.horizon > limits::plan_elements / spec.action_dim) {
        invalid("spec.planner",
                "candidates * horizon * actions is more than " + std::to_string(limits::plan_elements));
    }
    if (const std::string mismatch = planner_mismatch(planner.algorithm, spec.actions); !mismatch.empty()) {
        invalid("spec.planner.algorithm", mismatch);
    }
    if (spec.actions.discrete() && planner.interpolation != Interpolation::zero) {
        invalid("spec.planner.interpolation", "between discrete actions there is only 'zero'");
    }
    resolve_encoder(spec);
    check_cells(spec);
    check_transformers(spec);
    check_predictor(spec);
    check_policy(spec);
    check_critic(spec);
    check_cost(spec);
    check_policy_candidates(spec);
    check_all_referenced(spec);
}

}  // namespace pyjepa
