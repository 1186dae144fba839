#include "model/spec.hpp"

namespace pyjepa {

size_t quantised_layers(const BlockSpec& block) {
    if (const auto* mlp = std::get_if<MlpSpec>(&block)) return mlp->layers.size();
    if (const auto* transformer = std::get_if<AdalnTransformerSpec>(&block))
        return 2 + 4 * static_cast<size_t>(transformer->depth);
    if (const auto* vit = std::get_if<VitSpec>(&block)) return 1 + 4 * static_cast<size_t>(vit->depth);
    if (const auto* conv = std::get_if<ConvSpec>(&block)) return conv->layers.size();
    if (const auto* impala = std::get_if<ImpalaSpec>(&block)) return 5 * impala->channels.size();
    return std::holds_alternative<GruSpec>(block) ? 1 : 0;
}

const char* algorithm_name(Algorithm algorithm) {
    switch (algorithm) {
        case Algorithm::cem:
            return "cem";
        case Algorithm::mppi:
            return "mppi";
        case Algorithm::predictive_sampling:
            return "predictive-sampling";
        case Algorithm::icem:
            return "icem";
        case Algorithm::gradient:
            return "gradient";
        case Algorithm::hybrid:
            return "hybrid";
        case Algorithm::categorical_cem:
            return "categorical-cem";
        case Algorithm::tree:
            return "tree";
    }
    return "";
}

std::string planner_mismatch(Algorithm algorithm, const ActionSpec& actions) {
    if (algorithm == Algorithm::tree || actions.discrete() == (algorithm == Algorithm::categorical_cem))
        return "";
    const std::string name = algorithm_name(algorithm);
    return actions.discrete()
               ? "'" + name +
                     "' plans continuous actions, this agent's are discrete ('categorical-cem' and "
                     "'tree' plan those)"
               : "'" + name + "' plans discrete actions, this agent's are a box";
}

}  // namespace pyjepa
