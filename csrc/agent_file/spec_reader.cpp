// The spec from JSON: every field with its type and range. How the fields fit together is shapes.cpp's
// business.
#include <algorithm>
#include <limits>
#include <set>

#include "agent_file/agent_file.hpp"
#include "agent_file/json.hpp"
#include "agent_file/limits.hpp"
#include "agent_file/shapes.hpp"

namespace pyjepa {
namespace {

constexpr int spec_version = 1;

std::string item(const std::string& list, std::size_t index) {
    return list + "[" + std::to_string(index) + "]";
}

[[noreturn]] void not_in_engine(const std::string& where, const std::string& feature) {
    unsupported(where, feature + " is not available in the C++ engine");
}

// ---- observation and actions
// ------------------------------------------------------------------------------------

ObservationSpec read_observation(const Json& value) {
    const JsonObject object(value, "spec.observation", {"shape", "dtype", "scale", "offset"});
    ObservationSpec observation;
    const std::string where = object.where("shape");
    const Json& shape = as_list(object.at("shape"), where, 1, limits::observation_rank);
    std::int64_t elements = 1;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        observation.shape.push_back(
            static_cast<int>(as_integer(shape[i], item(where, i), 1, limits::dimension)));
        elements *= observation.shape.back();
        if (elements > limits::elements) {
            invalid(where, "more than " + std::to_string(limits::elements) + " elements");
        }
    }
    observation.dtype = object.choice<DType>("dtype", observation.dtype,
                                             {{"float32", DType::float32}, {"uint8", DType::uint8}});
    observation.scale = object.number("scale", observation.scale);
    observation.offset = object.number("offset", observation.offset);
    return observation;
}

std::vector<double> read_numbers(const JsonObject& object, std::string_view key) {
    const Json* list = object.find(key);
    if (!list) return {};
    const std::string where = object.where(key);
    std::vector<double> numbers;
    for (const Json& number : as_list(*list, where, 0, limits::dimension)) {
        numbers.push_back(as_number(number, item(where, numbers.size())));
    }
    return numbers;
}

void require_length(const JsonObject& object, std::string_view key, std::size_t length,
                    std::size_t expected) {
    if (length != expected) {
        invalid(object.where(key), "has " + std::to_string(length) + " items, but there are " +
                                       std::to_string(expected) + " actions");
    }
}

// A scale must survive being divided by, in float32.
void require_scale(const std::string& where, double scale) {
    if (!(static_cast<float>(scale) >= std::numeric_limits<float>::min())) {
        invalid(where, "must be positive (at least 1.2e-38)");
    }
}

ActionSpec read_actions(const Json& value) {
    const JsonObject object(value, "spec.actions", {"kind", "low", "high", "center", "scale", "count"});
    enum class Kind { box, discrete };
    const auto kind =
        object.choice<Kind>("kind", Kind::box, {{"box", Kind::box}, {"discrete", Kind::discrete}});
    const int count = object.integer("count", 0, 0, limits::dimension);
    if (kind == Kind::discrete) {
        for (const char* key : {"low", "high", "center", "scale"}) {
            if (!read_numbers(object, key).empty()) {
                invalid(object.where(key), "discrete actions have a count, no bounds and no scale");
            }
        }
        if (count == 0) invalid(object.where("count"), "discrete actions need their count, at least 1");
        const auto size = static_cast<std::size_t>(count);
        const std::vector<float> zeros(size, 0.0f), ones(size, 1.0f);
        return {zeros, ones, zeros, ones, count};
    }
    if (count != 0) invalid(object.where("count"), "only discrete actions have a count");

    const std::vector<double> low = read_numbers(object, "low"), high = read_numbers(object, "high");
    std::vector<double> center = read_numbers(object, "center"), scale = read_numbers(object, "scale");
    const std::size_t size = low.size();
    if (size == 0) invalid(object.where("low"), "a box needs its lower bounds, one per action");
    require_length(object, "high", high.size(), size);
    if (!center.empty()) require_length(object, "center", center.size(), size);
    if (!scale.empty()) require_length(object, "scale", scale.size(), size);
    const bool own_center = !center.empty(), own_scale = !scale.empty();
    for (std::size_t i = 0; i < size; ++i) {
        if (!(static_cast<float>(low[i]) < static_cast<float>(high[i]))) {
            invalid(item(object.where("low"), i), "the lower bound is not below the upper one in float32");
        }
        if (!(high[i] - low[i] <= double{std::numeric_limits<float>::max()})) {
            invalid(item(object.where("high"), i), "the range of the action does not fit in float32");
        }
        if (!own_center) center.push_back((low[i] + high[i]) / 2);
        if (!own_scale) scale.push_back((high[i] - low[i]) / 2);
        require_scale(item(object.where("scale"), i), scale[i]);
    }

    const auto floats = [](const std::vector<double>& v) { return std::vector<float>(v.begin(), v.end()); };
    return {floats(low), floats(high), floats(center), floats(scale), 0};
}

// ---- modules
// ----------------------------------------------------------------------------------------------------

Activation read_activation(const JsonObject& layer) {
    return layer.choice<Activation>("activation", Activation::none,
                                    {{"none", Activation::none},
                                     {"relu", Activation::relu},
                                     {"gelu", Activation::gelu},
                                     {"silu", Activation::silu},
                                     {"mish", Activation::mish},
                                     {"tanh", Activation::tanh}});
}

MlpSpec read_mlp(const Json& value, const std::string& where) {
    const JsonObject object(value, where, {"kind", "layers", "simnorm_group"});
    MlpSpec mlp;
    mlp.simnorm_group = object.integer("simnorm_group", mlp.simnorm_group, 1, limits::dimension);
    const std::string list = object.where("layers");
    for (const Json& entry : as_list(object.at("layers"), list, 1, limits::layers)) {
        const JsonObject layer(entry, item(list, mlp.layers.size()), {"out", "norm", "activation"});
        const int out = layer.integer("out", 1, limits::dimension);
        const auto norm = layer.choice<Norm>("norm", Norm::none,
                                             {{"none", Norm::none},
                                              {"layer", Norm::layer},
                                              {"simnorm", Norm::simnorm},
                                              {"layer+simnorm", Norm::layer_simnorm}});
        if ((norm == Norm::simnorm || norm == Norm::layer_simnorm) && out % mlp.simnorm_group != 0) {
            invalid(layer.where("out"), std::to_string(out) + " is not divisible by simnorm_group " +
                                            std::to_string(mlp.simnorm_group));
        }
        mlp.layers.push_back({out, norm, read_activation(layer)});
    }
    return mlp;
}

ConvSpec read_conv(const Json& value, const std::string& where) {
    const JsonObject object(value, where, {"kind", "layers"});
    ConvSpec conv;
    const std::string list = object.where("layers");
    for (const Json& entry : as_list(object.at("layers"), list, 1, limits::layers)) {
        const JsonObject layer(entry, item(list, conv.layers.size()),
                               {"out", "kernel", "stride", "padding", "activation"});
        ConvLayerSpec read;
        read.out = layer.integer("out", 1, limits::dimension);
        read.kernel = layer.integer("kernel", 1, limits::kernel);
        read.stride = layer.integer("stride", read.stride, 1, limits::stride);
        read.padding = layer.integer("padding", read.padding, 0, read.kernel - 1);
        read.activation = read_activation(layer);
        conv.layers.push_back(read);
    }
    return conv;
}

ImpalaSpec read_impala(const Json& value, const std::string& where) {
    const JsonObject object(value, where, {"kind", "channels", "preactivation"});
    ImpalaSpec impala;
    impala.preactivation = object.flag("preactivation", impala.preactivation);
    const std::string list = object.where("channels");
    for (const Json& channels : as_list(object.at("channels"), list, 1, limits::layers)) {
        const std::string place = item(list, impala.channels.size());
        impala.channels.push_back(static_cast<int>(as_integer(channels, place, 1, limits::dimension)));
    }
    return impala;
}

GruSpec read_gru(const Json& value, const std::string& where) {
    const JsonObject object(value, where, {"kind", "hidden", "norm"});
    GruSpec gru;
    gru.hidden = object.integer("hidden", 1, limits::dimension);
    gru.norm = object.choice<CellNorm>(
        "norm", gru.norm, {{"none", CellNorm::none}, {"layer", CellNorm::layer}, {"tied", CellNorm::tied}});
    return gru;
}

VitSpec read_vit(const Json& value, const std::string& where) {
    const JsonObject object(value, where,
                            {"kind", "patch", "width", "depth", "heads", "hidden", "pool", "norm_eps"});
    VitSpec vit;
    vit.patch = object.integer("patch", 1, limits::kernel);
    vit.width = object.integer("width", 1, limits::dimension / 3);
    vit.depth = object.integer("depth", 1, static_cast<int>(limits::layers));
    vit.heads = object.integer("heads", 1, limits::dimension);
    vit.hidden = object.integer("hidden", 1, limits::dimension);
    vit.pool =
        object.choice<TokenPool>("pool", vit.pool, {{"cls", TokenPool::cls}, {"mean", TokenPool::mean}});
    vit.norm_eps = object.number("norm_eps", vit.norm_eps);
    if (vit.width % vit.heads != 0) {
        invalid(object.where("heads"),
                std::to_string(vit.heads) + " do not divide the width " + std::to_string(vit.width));
    }
    if (!(vit.norm_eps >= 1e-12f && vit.norm_eps <= 1.0f))
        invalid(object.where("norm_eps"), "is not in [1e-12, 1]");
    return vit;
}

TwoHotSpec read_two_hot(const Json& value, const std::string& where) {
    const JsonObject object(value, where, {"kind", "bins", "low", "high"});
    TwoHotSpec two_hot;
    two_hot.bins = object.integer("bins", 2, limits::dimension);
    two_hot.low = static_cast<float>(as_number(object.at("low"), object.where("low")));
    two_hot.high = static_cast<float>(as_number(object.at("high"), object.where("high")));
    if (!(two_hot.low >= -limits::symlog && two_hot.low < two_hot.high && two_hot.high <= limits::symlog)) {
        invalid(object.where("low"), "bins must lie between -80 <= low < high <= 80 (in symlog space)");
    }
    return two_hot;
}

AdalnTransformerSpec read_adaln_transformer(const Json& value, const std::string& where) {
    const JsonObject object(value, where,
                            {"kind", "window", "depth", "width", "heads", "head_dim", "hidden", "embedding"});
    AdalnTransformerSpec read;
    read.window = object.integer("window", 1, limits::window);
    read.depth = object.integer("depth", 1, static_cast<int>(limits::layers));
    read.width = object.integer("width", 1, limits::dimension);
    read.heads = object.integer("heads", 1, limits::dimension);
    read.head_dim = object.integer("head_dim", 1, limits::dimension);
    read.hidden = object.integer("hidden", 1, limits::dimension);
    read.embedding = object.integer("embedding", 1, limits::dimension);
    if (6 * std::int64_t{read.width} > limits::dimension) {
        invalid(object.where("width"), "6 * width is more than " + std::to_string(limits::dimension));
    }
    if (const std::int64_t inner = std::int64_t{read.heads} * read.head_dim; 3 * inner > limits::dimension) {
        invalid(object.where("heads"),
                "3 * heads * head_dim is more than " + std::to_string(limits::dimension));
    }
    // What a candidate of a plan carries along: modulations, keys and values of every layer and token.
    const std::int64_t kept = 6 * std::int64_t{read.width} + 2 * std::int64_t{read.heads} * read.head_dim;
    if (kept * read.depth * read.window > limits::elements) {
        invalid(where, "window * depth * (6 * width + 2 * heads * head_dim) is more than " +
                           std::to_string(limits::elements));
    }
    return read;
}

BlockSpec read_block(const Json& value, const std::string& where) {
    if (!value.is_object()) invalid(where, std::string("expected an object, got ") + value.type_name());
    const auto found = value.find("kind");
    if (found == value.end()) invalid(where, "key 'kind' is missing");
    enum class Kind { mlp, conv, impala, two_hot, gru, vit, adaln_transformer };
    switch (one_of<Kind>(*found, where + ".kind",
                         {{"mlp", Kind::mlp},
                          {"conv", Kind::conv},
                          {"impala", Kind::impala},
                          {"two_hot", Kind::two_hot},
                          {"gru", Kind::gru},
                          {"vit", Kind::vit},
                          {"adaln_transformer", Kind::adaln_transformer}})) {
        case Kind::mlp:
            return read_mlp(value, where);
        case Kind::conv:
            return read_conv(value, where);
        case Kind::impala:
            return read_impala(value, where);
        case Kind::two_hot:
            return read_two_hot(value, where);
        case Kind::gru:
            return read_gru(value, where);
        case Kind::vit:
            return read_vit(value, where);
        case Kind::adaln_transformer:
            break;
    }
    return read_adaln_transformer(value, where);
}

// Reserved keys of a module: well-formed they must be, but only their defaults run.
void refuse_reserved(const JsonObject& object, const std::string& module) {
    const auto refuse = [&](std::string_view key, const std::string& feature) {
        not_in_engine(object.where(key), "module " + printable(module) + ": " + feature);
    };
    if (const Json* latent = object.find("latent"); latent && !latent->is_null()) {
        const JsonObject fields(*latent, object.where("latent"), {"kind", "size"});
        one_of<int>(fields.at("kind"), fields.where("kind"),
                    {{"discrete", 0}, {"gaussian", 1}, {"sparse", 2}});
        fields.integer("size", 1, limits::dimension);
        refuse("latent", "a latent variable");
    }
}

std::vector<LayerPrecision> read_precisions(const JsonObject& fields) {
    const Json* stored = fields.find("precisions");
    if (!stored) return {};
    const std::string list = fields.where("precisions");
    std::vector<LayerPrecision> precisions;
    for (const Json& entry : as_list(*stored, list, 0, limits::blocks * limits::layers)) {
        precisions.push_back(one_of<LayerPrecision>(entry, item(list, precisions.size()),
                                                    {{"fp32", LayerPrecision::fp32},
                                                     {"bf16", LayerPrecision::bf16},
                                                     {"int8", LayerPrecision::int8}}));
    }
    return precisions;
}

// How a module's layers run in lower precisions. The counts are checked once its blocks are known.
void read_quantisation(const JsonObject& object, const std::string& name, ModuleSpec& module) {
    const Json* stored = object.find("quantisation");
    if (!stored || stored->is_null()) return;
    const JsonObject fields(*stored, object.where("quantisation"), {"weights", "activations", "precisions"});
    enum class Weights { bf16, int8 };
    const auto weights =
        fields.choice<Weights>("weights", std::nullopt, {{"bf16", Weights::bf16}, {"int8", Weights::int8}});
    if (weights == Weights::bf16)
        not_in_engine(fields.where("weights"), "module " + printable(name) + ": stored bf16");
    module.precisions = read_precisions(fields);
    // With neither of the two it would say nothing.
    const size_t least = module.precisions.empty() ? 1 : 0;
    if (least == 0 && !fields.find("activations")) return;
    const std::string list = fields.where("activations");
    for (const Json& entry :
         as_list(fields.at("activations"), list, least, limits::blocks * limits::layers)) {
        const JsonObject layer(entry, item(list, module.activations.size()), {"scale", "zero"});
        ActivationScale read{{}, layer.integer("zero", 0, 0, 255)};
        const std::string scales = layer.where("scale");
        for (const Json& number : as_list(layer.at("scale"), scales, 1, limits::dimension)) {
            const std::string place = item(scales, read.scale.size());
            const double scale = as_number(number, place);
            require_scale(place, scale);
            read.scale.push_back(static_cast<float>(scale));
        }
        module.activations.push_back(std::move(read));
    }
}

void check_quantised_layers(const ModuleSpec& module, const std::string& where) {
    std::size_t layers = 0;
    for (const BlockSpec& block : module.blocks) layers += quantised_layers(block);
    const auto check = [&](std::size_t given, const char* key) {
        if (given != 0 && given != layers) {
            invalid(where + key, "has " + std::to_string(given) + " items, but the module's blocks have " +
                                     std::to_string(layers) + " layers");
        }
    };
    check(module.activations.size(), ".activations");
    check(module.precisions.size(), ".precisions");
}

// A cell, or a transformer modulated by actions, is the first block of a module that combines its inputs so,
// and of no other.
template <class Kind>
void check_first(const ModuleSpec& module, const JsonObject& object, Combine combine,
                 const char* combine_name, const std::string& kind) {
    const bool combines = module.combine == combine;
    for (std::size_t i = 0; i < module.blocks.size(); ++i) {
        const bool is_it = std::holds_alternative<Kind>(module.blocks[i]);
        if (is_it && !(combines && i == 0)) {
            invalid(item(object.where("blocks"), i), kind + " is the first block of a module with combine '" +
                                                         std::string(combine_name) + "'");
        }
        if (combines && i == 0 && !is_it) {
            invalid(object.where("combine"),
                    "'" + std::string(combine_name) + "' needs " + kind + " as the module's first block");
        }
    }
    const auto reads = [&](Input input) {
        return std::find(module.inputs.begin(), module.inputs.end(), input) != module.inputs.end();
    };
    if (combines && !(module.inputs.size() == 2 && reads(Input::state) && reads(Input::action))) {
        invalid(object.where("inputs"), kind + " reads exactly 'state' and 'action'");
    }
}

ModuleSpec read_module(const Json& value, const std::string& name) {
    const JsonObject object(
        value, "spec.modules." + name,
        {"inputs", "blocks", "combine", "residual", "ensemble", "latent", "quantisation"});
    ModuleSpec module;
    const std::string inputs = object.where("inputs");
    for (const Json& entry : as_list(object.at("inputs"), inputs, 1, 4)) {
        const std::string place = item(inputs, module.inputs.size());
        const auto input = one_of<Input>(entry, place,
                                         {{"observation", Input::observation},
                                          {"state", Input::state},
                                          {"action", Input::action},
                                          {"goal", Input::goal}});
        if (std::find(module.inputs.begin(), module.inputs.end(), input) != module.inputs.end()) {
            invalid(place, printable(entry.get_ref<const std::string&>()) + " is listed twice");
        }
        module.inputs.push_back(input);
    }
    module.residual = object.flag("residual", module.residual);
    module.ensemble = object.integer("ensemble", module.ensemble, 1, limits::ensemble);
    module.combine = object.choice<Combine>(
        "combine", Combine::concat,
        {{"concat", Combine::concat}, {"cell", Combine::cell}, {"adaln", Combine::adaln}});
    refuse_reserved(object, name);
    read_quantisation(object, name, module);
    const std::string blocks = object.where("blocks");
    for (const Json& entry : as_list(object.at("blocks"), blocks, 1, limits::blocks)) {
        module.blocks.push_back(read_block(entry, item(blocks, module.blocks.size())));
    }
    check_first<GruSpec>(module, object, Combine::cell, "cell", "a cell ('gru')");
    check_first<AdalnTransformerSpec>(module, object, Combine::adaln, "adaln",
                                      "a transformer ('adaln_transformer')");
    check_quantised_layers(module, object.where("quantisation"));
    return module;
}

// Names are parts of tensor names, so a dot in one would make those ambiguous.
bool is_identifier(const std::string& name) {
    const auto digit = [](char c) { return c >= '0' && c <= '9'; };
    const auto word = [&](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || digit(c);
    };
    return !name.empty() && name.size() <= limits::module_name &&
           std::all_of(name.begin(), name.end(), word) && !digit(name.front());
}

std::map<std::string, ModuleSpec> read_modules(const Json& value) {
    if (!value.is_object())
        invalid("spec.modules", std::string("expected an object, got ") + value.type_name());
    if (value.size() > limits::modules) {
        invalid("spec.modules", "more than " + std::to_string(limits::modules) + " modules");
    }
    std::map<std::string, ModuleSpec> modules;
    for (const auto& entry : value.items()) {
        if (!is_identifier(entry.key())) {
            invalid("spec.modules", printable(entry.key()) + " is not a name (up to " +
                                        std::to_string(limits::module_name) +
                                        " letters, digits and underscores, not starting with a digit)");
        }
        modules.emplace(entry.key(), read_module(entry.value(), entry.key()));
    }
    return modules;
}

// ---- levels, cost, planner
// --------------------------------------------------------------------------------------

LevelSpec read_levels(const Json& value) {
    as_list(value, "spec.levels", 1, limits::levels);
    if (value.size() > 1) not_in_engine("spec.levels", "more than one level");
    const JsonObject object(value[0], "spec.levels[0]",
                            {"encoder", "predictor", "history", "action_block", "hold", "stride"});
    LevelSpec level;
    level.encoder = object.name("encoder");
    level.predictor = object.name("predictor");
    level.action_block = object.integer("action_block", level.action_block, 1, limits::action_block);
    level.hold = object.flag("hold", level.hold);
    if (object.integer("history", 1, 1, limits::dimension) > 1) {
        not_in_engine(object.where("history"), "a history longer than 1");
    }
    if (object.integer("stride", 1, 1, limits::dimension) > 1) {
        not_in_engine(object.where("stride"), "a stride longer than 1");
    }
    return level;
}

float read_weight(const JsonObject& term, std::string_view key) {
    const float weight = term.number(key, 1.0f);
    if (weight < 0) invalid(term.where(key), "a cost's weight must not be negative");
    return weight;
}

std::vector<float> read_floats(const JsonObject& object, std::string_view key) {
    const std::vector<double> numbers = read_numbers(object, key);
    return {numbers.begin(), numbers.end()};
}

CostSpec read_cost_term(const JsonObject& term) {
    CostSpec read;
    read.kind = term.choice<CostKind>("kind", std::nullopt,
                                      {{"goal_distance", CostKind::goal_distance},
                                       {"action_size", CostKind::action_size},
                                       {"action_change", CostKind::action_change},
                                       {"reward", CostKind::reward},
                                       {"hazard", CostKind::hazard},
                                       {"disagreement", CostKind::disagreement},
                                       {"box", CostKind::box},
                                       {"half_space", CostKind::half_space},
                                       {"critic", CostKind::critic}});
    read.stage = read_weight(term, "stage");
    read.terminal = read_weight(term, "terminal");
    read.metric = term.choice<Metric>("metric", read.metric,
                                      {{"l2", Metric::l2},
                                       {"squared_l2", Metric::squared_l2},
                                       {"l1", Metric::l1},
                                       {"cosine", Metric::cosine}});
    read.reach = term.number("reach", read.reach);
    if (!(read.reach >= 0.0f)) invalid(term.where("reach"), "must not be negative");
    read.module = term.name("module");
    read.sigmoid = term.flag("sigmoid", read.sigmoid);
    read.seek = term.flag("seek", read.seek);
    read.low = read_floats(term, "low");
    read.high = read_floats(term, "high");
    read.normal = read_floats(term, "normal");
    read.offset = term.number("offset", read.offset);
    read.hard = term.flag("hard", read.hard);
    read.estimates = term.choice<Estimates>("estimates", read.estimates,
                                            {{"reward", Estimates::reward}, {"cost", Estimates::cost}});
    read.members = term.integer("members", read.members, 0, limits::ensemble);
    read.reduce = term.choice<Reduce>("reduce", read.reduce,
                                      {{"mean", Reduce::mean}, {"min", Reduce::min}, {"max", Reduce::max}});
    return read;
}

std::vector<CostSpec> read_cost(const Json& value) {
    std::vector<CostSpec> cost;
    std::set<std::string> names;  // those given: kinds may repeat, names tell apart
    for (const Json& entry : as_list(value, "spec.cost", 0, limits::cost_terms)) {
        const JsonObject term(
            entry, item("spec.cost", cost.size()),
            {"kind", "stage", "terminal", "metric", "reach", "name", "module", "sigmoid", "seek", "low",
             "high", "normal", "offset", "hard", "estimates", "members", "reduce"});
        cost.push_back(read_cost_term(term));
        const Json* name = term.find("name");
        if (name == nullptr) continue;
        const std::string& text = as_text(*name, term.where("name"), limits::module_name);
        if (text.empty()) continue;
        if (!is_identifier(text)) invalid(term.where("name"), printable(text) + " is not a name");
        if (!names.insert(text).second) {
            invalid(term.where("name"), "another term is called " + printable(text));
        }
    }
    return cost;
}

PlannerSpec read_planner(const Json& value, int action_block) {
    const JsonObject object(value, "spec.planner", {"algorithm",     "horizon",       "candidates",
                                                    "iterations",    "elites",        "knots",
                                                    "interpolation", "std",           "min_std",
                                                    "momentum",      "temperature",   "temperature_scale",
                                                    "elite_refit",   "max_std",       "policy_candidates",
                                                    "sampling",      "noise_beta",    "keep_elites",
                                                    "decay",         "learning_rate", "restarts",
                                                    "polish",        "exploration",   "branching"});
    PlannerSpec planner;
    planner.algorithm = object.choice<Algorithm>("algorithm", planner.algorithm,
                                                 {{"cem", Algorithm::cem},
                                                  {"mppi", Algorithm::mppi},
                                                  {"predictive-sampling", Algorithm::predictive_sampling},
                                                  {"icem", Algorithm::icem},
                                                  {"gradient", Algorithm::gradient},
                                                  {"hybrid", Algorithm::hybrid},
                                                  {"categorical-cem", Algorithm::categorical_cem},
                                                  {"tree", Algorithm::tree}});
    planner.horizon = object.integer("horizon", planner.horizon, 1, limits::horizon);
    planner.candidates = object.integer("candidates", planner.candidates, 1, limits::candidates);
    planner.iterations = object.integer("iterations", planner.iterations, 1, limits::iterations);
    planner.elites = object.integer("elites", planner.elites, 1, planner.candidates);
    planner.knots = object.integer("knots", planner.knots, 0, limits::horizon);
    planner.interpolation = object.choice<Interpolation>(
        "interpolation", planner.interpolation,
        {{"zero", Interpolation::zero}, {"linear", Interpolation::linear}, {"cubic", Interpolation::cubic}});
    const auto range = [&](std::string_view key, float fallback, auto accepts, const char* range_text) {
        const float number = object.number(key, fallback);
        if (!accepts(number)) invalid(object.where(key), std::string("is not ") + range_text);
        return number;
    };
    planner.std = range("std", planner.std, [](float v) { return v > 0 && v <= limits::std; }, "in (0, 10]");
    planner.min_std =
        range("min_std", planner.min_std, [](float v) { return v >= 0 && v <= limits::std; }, "in [0, 10]");
    planner.momentum =
        range("momentum", planner.momentum, [](float v) { return v >= 0 && v < 1; }, "in [0, 1)");
    planner.temperature =
        range("temperature", planner.temperature, [](float v) { return v > 0; }, "positive");
    planner.temperature_scale = object.choice<TemperatureScale>(
        "temperature_scale", planner.temperature_scale,
        {{"std", TemperatureScale::std}, {"absolute", TemperatureScale::absolute}});
    planner.elite_refit = object.flag("elite_refit", planner.elite_refit);
    planner.max_std =
        range("max_std", planner.max_std, [](float v) { return v > 0 && v <= limits::std; }, "in (0, 10]");
    planner.policy_candidates =
        object.integer("policy_candidates", planner.policy_candidates, 0, planner.candidates - 1);
    planner.sampling = object.choice<Sampling>(
        "sampling", planner.sampling, {{"gaussian", Sampling::gaussian}, {"sobol", Sampling::sobol}});
    if (const Json* beta = object.find("noise_beta"); beta && !beta->is_null()) {
        planner.noise_beta = range(
            "noise_beta", 0.0f, [](float v) { return v >= 0 && v <= limits::noise_beta; }, "in [0, 10]");
    }
    planner.keep_elites =
        range("keep_elites", planner.keep_elites, [](float v) { return v >= 0 && v <= 1; }, "in [0, 1]");
    planner.decay = range("decay", planner.decay, [](float v) { return v >= 1; }, "at least 1");
    planner.learning_rate = range(
        "learning_rate", planner.learning_rate, [](float v) { return v > 0 && v <= limits::learning_rate; },
        "in (0, 10]");
    planner.restarts = object.integer("restarts", planner.restarts, 1, limits::restarts);
    planner.polish = object.integer("polish", planner.polish, 1, limits::iterations);
    if (planner.algorithm == Algorithm::hybrid && planner.polish > planner.iterations) {
        invalid(object.where("polish"), std::to_string(planner.polish) + " is more than the " +
                                            std::to_string(planner.iterations) + " iterations");
    }
    planner.exploration =
        range("exploration", planner.exploration, [](float v) { return v >= 0 && v <= 1; }, "in [0, 1]");
    planner.branching = object.integer("branching", planner.branching, 2, limits::branching);

    // Here rather than with the other defaults of the planner: a default, too, must fit the file's
    // action_block.
    if (planner.horizon % action_block != 0) {
        invalid(object.where("horizon"), std::to_string(planner.horizon) +
                                             " is not a multiple of action_block " +
                                             std::to_string(action_block));
    }
    if (const int steps = planner.horizon / action_block; planner.knots > steps) {
        invalid(object.where("knots"), std::to_string(planner.knots) + " is more than the " +
                                           std::to_string(steps) + " predictor steps of the horizon");
    }
    return planner;
}

// ---- the whole
// --------------------------------------------------------------------------------------------------

// First, because in another version every other key may mean something else.
void check_version(const Json& root) {
    const auto found = root.find("version");
    if (!root.is_object()) return;  // which the reader says itself
    if (found == root.end()) invalid("spec", "key 'version' is missing");
    const auto version = as_integer(*found, "spec.version", std::numeric_limits<std::int64_t>::min(),
                                    std::numeric_limits<std::int64_t>::max());
    if (version != spec_version) {
        unsupported("spec.version", "unknown version " + std::to_string(version) +
                                        " (this engine reads version " + std::to_string(spec_version) + ")");
    }
}

PolicyHead read_policy_head(const JsonObject& spec) {
    return spec.choice<PolicyHead>("policy_head", PolicyHead::deterministic,
                                   {{"deterministic", PolicyHead::deterministic},
                                    {"gaussian_tanh", PolicyHead::gaussian_tanh},
                                    {"categorical", PolicyHead::categorical}});
}

// Provenance is for people: checked, then left in the text.
void check_provenance(const Json& value) {
    if (!value.is_object()) {
        invalid("spec.provenance", std::string("expected an object, got ") + value.type_name());
    }
    if (value.size() > limits::provenance_entries) {
        invalid("spec.provenance", "more than " + std::to_string(limits::provenance_entries) + " entries");
    }
    for (const auto& entry : value.items()) {
        const std::string where = "spec.provenance[" + printable(entry.key()) + "]";
        if (entry.key().size() > limits::provenance_key) {
            invalid(where, "key longer than " + std::to_string(limits::provenance_key) + " bytes");
        }
        as_text(entry.value(), where, limits::provenance_value);
    }
}

}  // namespace

Spec read_spec(const std::string& json) {
    if (json.size() > limits::header_bytes) {
        invalid("spec", "longer than " + std::to_string(limits::header_bytes) + " bytes");
    }
    const Json root = parse_json(json, "spec");
    check_version(root);
    const JsonObject object(root, "spec",
                            {"observation", "actions", "modules", "levels", "policy", "policy_head", "critic",
                             "discount", "cost", "planner", "name", "provenance", "version"});
    Spec spec;
    spec.json = json;
    if (const Json* name = object.find("name")) spec.name = as_text(*name, "spec.name", limits::agent_name);
    if (const Json* provenance = object.find("provenance")) check_provenance(*provenance);
    spec.observation = read_observation(object.at("observation"));
    spec.actions = read_actions(object.at("actions"));
    if (const Json* modules = object.find("modules")) spec.modules = read_modules(*modules);
    if (const Json* levels = object.find("levels")) spec.level = read_levels(*levels);
    spec.policy = object.name("policy");
    spec.policy_head = read_policy_head(object);
    spec.critic = object.name("critic");
    spec.discount = object.number("discount", spec.discount);
    if (!(spec.discount > 0.0f && spec.discount <= 1.0f)) invalid("spec.discount", "is not in (0, 1]");
    const Json* cost = object.find("cost");
    spec.cost = cost ? read_cost(*cost) : std::vector<CostSpec>{CostSpec{}};
    const Json* planner = object.find("planner");
    spec.planner = read_planner(planner ? *planner : Json::object(), spec.level.action_block);
    resolve_spec(spec);
    return spec;
}

}  // namespace pyjepa
