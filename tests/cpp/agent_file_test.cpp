#include "agent_file/agent_file.hpp"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <random>
#include <regex>

#include "error.hpp"

namespace pyjepa {
namespace {

// ---- a small agent file, made by hand so that it can be made wrong
// ----------------------------------------------

const char* const small_spec = R"({
"observation": {"shape": [4], "dtype": "float32", "scale": 0.5, "offset": 0.25},
"actions": {"kind": "box", "low": [-1, -2], "high": [1, 4], "center": [], "scale": [], "count": 0},
"modules": {
  "encoder": {"inputs": ["observation"], "blocks": [{"kind": "mlp", "simnorm_group": 2,
      "layers": [{"out": 6, "norm": "layer", "activation": "mish"}, {"out": 4, "norm": "simnorm"}]}]},
  "predictor": {"inputs": ["state", "action"], "residual": true, "combine": "concat", "ensemble": 1,
      "latent": null, "quantisation": null, "blocks": [{"kind": "mlp", "layers": [{"out": 4}]}]},
  "policy": {"inputs": ["state", "goal"], "blocks": [{"kind": "mlp", "layers": [{"out": 2}]}]}},
"levels": [{"encoder": "encoder", "predictor": "predictor", "history": 1, "action_block": 2, "hold": false, "stride": 1}],
"policy": "policy", "critic": null,
"cost": [{"kind": "goal_distance", "stage": 0.5, "terminal": 2, "metric": "squared_l2"}],
"planner": {"algorithm": "mppi", "horizon": 8, "candidates": 64, "iterations": 3, "elites": 8, "knots": 2,
    "interpolation": "cubic", "std": 0.7, "min_std": 0.1, "momentum": 0.2, "temperature": 0.9},
"name": "small", "provenance": {"seed": "7"}, "version": 1})";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
    const auto place = text.find(from);
    EXPECT_NE(place, text.npos) << "the test replaces what is not there: " << from;
    return text.replace(place, from.size(), to);
}

std::string json_string(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c == '\n' ? ' ' : c;
    }
    return out + '"';
}

// The same with a GRU cell for predictor, whose LayerNorm is tied to the encoder's.
std::string cell_spec(const std::string& gru = R"({"kind": "gru", "hidden": 4, "norm": "tied"})") {
    const std::string normed =
        replaced(small_spec, R"({"out": 4, "norm": "simnorm"})", R"({"out": 4, "norm": "layer"})");
    const std::string cell = replaced(normed, R"("combine": "concat")", R"("combine": "cell")");
    return replaced(cell, R"({"kind": "mlp", "layers": [{"out": 4}]})", gru);
}

struct TestTensor {
    std::string name, shape;
    std::size_t begin, end;  // bytes
    std::string dtype = "F32";
};

// A file under construction: change a part, then `bytes()`.
struct TestFile {
    std::string spec;
    std::vector<TestTensor> tensors;
    std::vector<float> data;
    std::string more_header;    // appended inside the header's object
    std::string more_metadata;  // appended inside __metadata__

    explicit TestFile(std::string text = small_spec) : spec(std::move(text)) {
        const Spec read = read_spec(spec);
        for (const auto& [name, shape] : expected_tensors(read)) {
            std::size_t count = 1;
            std::string text;
            for (const int size : shape) {
                count *= static_cast<std::size_t>(size);
                text += (text.empty() ? "" : ",") + std::to_string(size);
            }
            tensors.push_back({name, "[" + text + "]", data.size() * 4, (data.size() + count) * 4});
            for (std::size_t i = 0; i < count; ++i) data.push_back(0.01f * static_cast<float>(data.size()));
        }
    }

    std::string header() const {
        std::string out = R"({"__metadata__":{"pyjepa":)" + json_string(spec) + more_metadata + "}";
        for (const TestTensor& t : tensors) {
            out += ',' + json_string(t.name) + R"(:{"dtype":")" + t.dtype + R"(","shape":)" + t.shape +
                   R"(,"data_offsets":[)" + std::to_string(t.begin) + "," + std::to_string(t.end) + "]}";
        }
        out += more_header + "}";
        while (out.size() % 8 != 0) out += ' ';
        return out;
    }

    std::string bytes() const;
};

std::string packed(const std::string& header, const std::string& data) {
    std::string out;
    for (int i = 0; i < 8; ++i) out += static_cast<char>((std::uint64_t{header.size()} >> (8 * i)) & 255);
    return out + header + data;
}

std::string TestFile::bytes() const {
    std::string raw(data.size() * sizeof(float), '\0');
    if (!data.empty()) std::memcpy(raw.data(), data.data(), raw.size());
    return packed(header(), raw);
}

AgentFile parse(const std::string& bytes) {
    return read_agent_bytes(std::as_bytes(std::span(bytes)));
}

struct Verdict {
    int status = PYJEPA_OK;
    std::string message;
};

Verdict verdict(const std::function<void()>& call) {
    try {
        call();
    } catch (const Error& error) {
        return {error.status(), error.what()};
    }
    return {};
}

void expect_error(pyjepa_status status, const std::string& message, const std::function<void()>& call) {
    const Verdict got = verdict(call);
    EXPECT_EQ(got.status, status) << got.message;
    EXPECT_NE(got.message.find(message), std::string::npos)
        << "expected: " << message << "\ngot:      " << got.message;
}

void expect_bad_file(const std::string& message, const std::string& bytes) {
    expect_error(PYJEPA_INVALID_FILE, message, [&] { parse(bytes); });
}

// ---- files that load
// --------------------------------------------------------------------------------------------

TEST(AgentFile, ReadsEveryFieldOfTheSpec) {
    const Spec spec = read_spec(small_spec);
    EXPECT_EQ(spec.json, small_spec);
    EXPECT_EQ(spec.name, "small");
    EXPECT_EQ(spec.observation.shape, std::vector<int>{4});
    EXPECT_EQ(spec.observation.dtype, DType::float32);
    EXPECT_EQ(spec.observation.scale, 0.5f);
    EXPECT_EQ(spec.observation.offset, 0.25f);
    EXPECT_EQ(spec.actions.low, (std::vector<float>{-1, -2}));
    EXPECT_EQ(spec.actions.high, (std::vector<float>{1, 4}));
    EXPECT_EQ(spec.actions.center, (std::vector<float>{0, 1}));  // from the bounds
    EXPECT_EQ(spec.actions.scale, (std::vector<float>{1, 3}));
    ASSERT_EQ(spec.modules.size(), 3u);
    const auto& encoder = std::get<MlpSpec>(spec.modules.at("encoder").blocks.at(0));
    EXPECT_EQ(encoder.simnorm_group, 2);
    EXPECT_EQ(encoder.layers.at(0).norm, Norm::layer);
    EXPECT_EQ(encoder.layers.at(0).activation, Activation::mish);
    EXPECT_EQ(encoder.layers.at(1).norm, Norm::simnorm);
    EXPECT_TRUE(spec.modules.at("predictor").residual);
    EXPECT_EQ(spec.modules.at("predictor").inputs, (std::vector<Input>{Input::state, Input::action}));
    EXPECT_EQ(spec.level.encoder, "encoder");
    EXPECT_EQ(spec.level.action_block, 2);
    EXPECT_FALSE(spec.level.hold);
    EXPECT_EQ(spec.policy, "policy");
    ASSERT_EQ(spec.cost.size(), 1u);
    EXPECT_EQ(spec.cost[0].kind, CostKind::goal_distance);
    EXPECT_EQ(spec.cost[0].stage, 0.5f);
    EXPECT_EQ(spec.cost[0].terminal, 2.0f);
    EXPECT_EQ(spec.cost[0].metric, Metric::squared_l2);
    EXPECT_EQ(spec.planner.algorithm, Algorithm::mppi);
    EXPECT_EQ(spec.planner.horizon, 8);
    EXPECT_EQ(spec.planner.candidates, 64);
    EXPECT_EQ(spec.planner.iterations, 3);
    EXPECT_EQ(spec.planner.elites, 8);
    EXPECT_EQ(spec.planner.knots, 2);
    EXPECT_EQ(spec.planner.interpolation, Interpolation::cubic);
    EXPECT_EQ(spec.planner.std, 0.7f);
    EXPECT_EQ(spec.planner.min_std, 0.1f);
    EXPECT_EQ(spec.planner.momentum, 0.2f);
    EXPECT_EQ(spec.planner.temperature, 0.9f);
    EXPECT_EQ(spec.observation_size, 4);
    EXPECT_EQ(spec.action_dim, 2);
    EXPECT_EQ(spec.latent_dim, 4);
    EXPECT_EQ(spec.plan_dim, 4);
}

TEST(AgentFile, OnlyVersionObservationAndBoundsAreRequired) {
    const Spec spec = read_spec(
        R"({"version": 1, "observation": {"shape": [2, 3]}, "actions": {"low": [0], "high": [1]}})");
    EXPECT_EQ(spec.latent_dim, 6);  // without an encoder the observation is the state
    EXPECT_EQ(spec.plan_dim, 1);
    ASSERT_EQ(spec.cost.size(), 1u);
    EXPECT_EQ(spec.cost[0].kind, CostKind::goal_distance);
    EXPECT_EQ(spec.cost[0].stage, 1.0f);
    EXPECT_EQ(spec.cost[0].terminal, 1.0f);
    EXPECT_EQ(spec.cost[0].metric, Metric::l2);
    EXPECT_EQ(spec.observation.dtype, DType::float32);
    EXPECT_EQ(spec.observation.scale, 1.0f);
    EXPECT_EQ(spec.observation.offset, 0.0f);
    EXPECT_EQ(spec.level.action_block, 1);
    // The defaults of pyjepa/spec.py.
    EXPECT_EQ(spec.planner.algorithm, Algorithm::cem);
    EXPECT_EQ(spec.planner.horizon, 10);
    EXPECT_EQ(spec.planner.candidates, 256);
    EXPECT_EQ(spec.planner.iterations, 5);
    EXPECT_EQ(spec.planner.elites, 32);
    EXPECT_EQ(spec.planner.knots, 0);
    EXPECT_EQ(spec.planner.interpolation, Interpolation::zero);
    EXPECT_EQ(spec.planner.std, 0.5f);
    EXPECT_EQ(spec.planner.min_std, 0.05f);
    EXPECT_EQ(spec.planner.momentum, 0.0f);
    EXPECT_EQ(spec.planner.temperature, 0.5f);
    EXPECT_TRUE(expected_tensors(spec).empty());
}

TEST(AgentFile, NamesMissingParts) {
    expect_error(PYJEPA_INVALID_FILE, "spec: key 'version' is missing", [] { read_spec("{}"); });
    expect_error(PYJEPA_INVALID_FILE, "spec: key 'observation' is missing",
                 [] { read_spec(R"({"version": 1})"); });
    expect_error(PYJEPA_INVALID_FILE, "spec: key 'actions' is missing",
                 [] { read_spec(R"({"version": 1, "observation": {"shape": [1]}})"); });
    expect_error(PYJEPA_INVALID_FILE, "spec.levels: has 0 items", [] {
        read_spec(
            R"({"version": 1, "observation": {"shape": [1]}, "actions": {"low": [0], "high": [1]}, "levels": []})");
    });
}

TEST(AgentFile, HeldActionsEnterThePredictorOnce) {
    const Spec spec = read_spec(replaced(small_spec, "\"hold\": false", "\"hold\": true"));
    EXPECT_EQ(spec.plan_dim, 2);
    EXPECT_EQ(module_input_shape(spec, spec.modules.at("predictor")), Shape{6});
}

TEST(AgentFile, ReadsTensors) {
    const TestFile file;
    const AgentFile agent = parse(file.bytes());
    ASSERT_EQ(agent.tensors.size(), file.tensors.size());
    const Tensor& weight = agent.tensors.at("predictor.0.linear0.weight");
    EXPECT_EQ(weight.shape, (std::vector<int>{4, 8}));
    ASSERT_EQ(weight.data.size(), 32u);
    for (const TestTensor& t : file.tensors) {
        const Tensor& read = agent.tensors.at(t.name);
        ASSERT_EQ(read.data.size() * 4, t.end - t.begin);
        EXPECT_EQ(std::memcmp(read.data.data(), file.data.data() + t.begin / 4, t.end - t.begin), 0);
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(read.data.data()) % alignof(float), 0u);
    }
}

TEST(AgentFile, ImageModulesHaveTheContractsTensorsAndShapes) {
    const Spec spec = read_spec(R"({"version": 1, "observation": {"shape": [3, 17, 12], "dtype": "uint8"},
        "actions": {"low": [0], "high": [1]}, "levels": [{"encoder": "eye"}],
        "modules": {"eye": {"inputs": ["observation"], "blocks": [
            {"kind": "conv", "layers": [{"out": 5, "kernel": 3, "stride": 2, "padding": 1}]},
            {"kind": "impala", "channels": [4]}, {"kind": "mlp", "layers": [{"out": 7, "norm": "layer+simnorm"}],
             "simnorm_group": 7}]}}})");
    const auto& blocks = spec.modules.at("eye").blocks;
    EXPECT_EQ(module_input_shape(spec, spec.modules.at("eye")), (Shape{3, 17, 12}));
    EXPECT_EQ(block_output_shape(blocks[0], {3, 17, 12}, ""), (Shape{5, 9, 6}));
    EXPECT_EQ(block_output_shape(blocks[1], {5, 9, 6}, ""), (Shape{4, 5, 3}));
    EXPECT_EQ(spec.latent_dim, 7);
    std::vector<std::pair<std::string, std::vector<int>>> expected = {
        {"eye.0.conv0.weight", {5, 3, 3, 3}},
        {"eye.0.conv0.bias", {5}},
        {"eye.1.stage0.conv.weight", {4, 5, 3, 3}},
        {"eye.1.stage0.conv.bias", {4}}};
    for (const char* name : {"res0.conv0", "res0.conv1", "res1.conv0", "res1.conv1"}) {
        expected.push_back({std::string("eye.1.stage0.") + name + ".weight", {4, 4, 3, 3}});
        expected.push_back({std::string("eye.1.stage0.") + name + ".bias", {4}});
    }
    expected.push_back({"eye.2.linear0.weight", {7, 60}});
    expected.push_back({"eye.2.linear0.bias", {7}});
    expected.push_back({"eye.2.norm0.weight", {7}});
    expected.push_back({"eye.2.norm0.bias", {7}});
    EXPECT_EQ(expected_tensors(spec), expected);
}

TEST(AgentFile, AGruHasTorchsTensors) {
    const Spec spec = read_spec(cell_spec());
    const ModuleSpec& predictor = spec.modules.at("predictor");
    EXPECT_EQ(predictor.combine, Combine::cell);
    EXPECT_EQ(std::get<GruSpec>(predictor.blocks[0]).hidden, 4);
    EXPECT_EQ(std::get<GruSpec>(predictor.blocks[0]).norm, CellNorm::tied);
    std::vector<std::pair<std::string, std::vector<int>>> own;
    for (const auto& tensor : expected_tensors(spec))
        if (tensor.first.starts_with("predictor.")) own.push_back(tensor);
    const std::vector<std::pair<std::string, std::vector<int>>> expected = {
        {"predictor.0.weight_ih", {12, 4}}, {"predictor.0.weight_hh", {12, 4}},
        {"predictor.0.bias_ih", {12}},      {"predictor.0.bias_hh", {12}},
        {"predictor.0.norm.weight", {4}},   {"predictor.0.norm.bias", {4}}};
    EXPECT_EQ(own, expected);
    EXPECT_EQ(expected_tensors(read_spec(cell_spec(R"({"kind": "gru", "hidden": 4})"))).size(),
              expected_tensors(spec).size() - 2);
}

const std::string adaln_block =
    R"({"kind": "adaln_transformer", "window": 3, "depth": 2, "width": 4, "heads": 2,
    "head_dim": 3, "hidden": 5, "embedding": 6})";

// cell_spec with a transformer that looks back instead.
std::string adaln_spec(const std::string& changes = "", const std::string& after = "") {
    const std::string& block = adaln_block;
    const auto colon = changes.find(':');
    const std::string changed =
        changes.empty() ? block
                        : std::regex_replace(block, std::regex(changes.substr(0, colon) + ": \\d+"), changes);
    return replaced(cell_spec(changed + after), R"("cell")", R"("adaln")");
}

TEST(AgentFile, ATransformerHasItsTensors) {
    const auto own = [](const std::string& json) {
        std::vector<std::pair<std::string, std::vector<int>>> found;
        for (const auto& tensor : expected_tensors(read_spec(json)))
            if (tensor.first.starts_with("predictor.0.")) found.push_back(tensor);
        return found;
    };
    std::vector<std::pair<std::string, std::vector<int>>> expected = {{"predictor.0.position", {3, 4}}};
    const auto add = [&](const std::string& name, int out, int in) {
        expected.push_back({"predictor.0." + name + ".weight", {out, in}});
        if (in == 0) expected.back().second.pop_back();
        if (name.find("qkv") == std::string::npos)
            expected.push_back({"predictor.0." + name + ".bias", {out}});
    };
    add("action0", 6, 4);
    add("action1", 4, 6);
    for (const std::string layer : {"layer0.", "layer1."}) {
        add(layer + "modulation", 24, 4);
        add(layer + "norm0", 4, 0);
        add(layer + "qkv", 18, 4);
        add(layer + "out", 4, 6);
        add(layer + "norm1", 4, 0);
        add(layer + "linear0", 5, 4);
        add(layer + "linear1", 4, 5);
    }
    add("norm", 4, 0);
    EXPECT_EQ(own(adaln_spec()), expected);
    // A state that is not as wide as a token passes through a layer before.
    const auto wider = own(adaln_spec("\"width\": 7", R"(, {"kind": "mlp", "layers": [{"out": 4}]})"));
    EXPECT_EQ(wider[1].first, "predictor.0.input.weight");
    EXPECT_EQ(wider[1].second, (std::vector<int>{7, 4}));
    EXPECT_EQ(wider.size(), expected.size() + 2);
}

TEST(AgentFile, NamesTransformersThatDoNotFit) {
    const auto expect = [](const std::string& message, const std::string& spec,
                           pyjepa_status status = PYJEPA_INVALID_FILE) {
        expect_error(status, message, [&] { read_spec(spec); });
    };
    const std::string block = "spec.modules.predictor.blocks[0]";
    expect(block + ".window: 257 is not between 1 and 256", adaln_spec("\"window\": 257"));
    expect(block + ".depth: 0 is not between 1 and 256", adaln_spec("\"depth\": 0"));
    expect(block + ".width: 6 * width is more than 1048576", adaln_spec("\"width\": 200000"));
    expect(block + ".heads: 3 * heads * head_dim is more than 1048576", adaln_spec("\"heads\": 200000"));
    expect(block + ": window * depth * (6 * width + 2 * heads * head_dim) is more than 16777216",
           replaced(adaln_spec("\"window\": 256"), R"("width": 4)", R"("width": 6000)"));
    expect("spec.modules.predictor: a predictor puts out a state of size 4, this one puts out 7",
           adaln_spec("\"width\": 7"));
    expect("spec.modules.predictor.combine: 'cell' needs a cell ('gru')",
           replaced(adaln_spec(), R"("adaln")", R"("cell")"));
    expect(
        block + ": a transformer ('adaln_transformer') is the first block of a module with combine 'adaln'",
        replaced(adaln_spec(), R"("adaln")", R"("concat")"));
    expect(
        "spec.modules.predictor.inputs: a transformer ('adaln_transformer') reads exactly 'state' and "
        "'action'",
        replaced(adaln_spec(), R"(["state", "action"])", R"(["state"])"));
    expect("spec.modules.predictor.ensemble: module 'predictor': an ensemble with combine 'adaln'",
           replaced(adaln_spec(), R"("ensemble": 1)", R"("ensemble": 2)"), PYJEPA_UNSUPPORTED);
    expect("spec.modules.policy.combine: only a predictor has the past",
           replaced(replaced(small_spec, R"("policy": {"inputs": ["state", "goal"])",
                             R"("policy": {"combine": "adaln", "inputs": ["state", "action"])"),
                    R"({"kind": "mlp", "layers": [{"out": 2}]})", adaln_block));
}

TEST(AgentFile, TiedTensorsAreEqual) {
    TestFile file(cell_spec());
    const auto values = [&](const std::string& name) {
        const auto found = std::find_if(file.tensors.begin(), file.tensors.end(),
                                        [&](const TestTensor& t) { return t.name == name; });
        return file.data.data() + found->begin / 4;
    };
    for (const std::string part : {"weight", "bias"})
        std::copy_n(values("encoder.0.norm1." + part), 4, values("predictor.0.norm." + part));
    parse(file.bytes());
    values("predictor.0.norm.bias")[2] += 1.0f;
    expect_bad_file(
        "tensor 'predictor.0.norm.bias': tied to 'encoder.0.norm1.bias', but differs at element 2",
        file.bytes());
}

TEST(AgentFile, NamesCellsThatDoNotFit) {
    const auto expect = [](const std::string& message, const std::string& spec) {
        expect_error(PYJEPA_INVALID_FILE, message, [&] { read_spec(spec); });
    };
    expect("spec.modules.predictor.blocks[0].hidden: 5, but its hidden state is the state, of size 4",
           cell_spec(R"({"kind": "gru", "hidden": 5})"));
    expect("blocks[0].hidden: 0 is not between 1 and", cell_spec(R"({"kind": "gru", "hidden": 0})"));
    expect("blocks[0]: key 'hidden' is missing", cell_spec(R"({"kind": "gru"})"));
    expect("blocks[0].norm: 'batch' is not one of 'none', 'layer', 'tied'",
           cell_spec(R"({"kind": "gru", "hidden": 4, "norm": "batch"})"));
    expect("blocks[1]: a cell ('gru') is the first block",
           cell_spec(R"({"kind": "gru", "hidden": 4}, {"kind": "gru", "hidden": 4})"));
    expect("spec.modules.predictor: a predictor puts out a state of size 4, this one puts out 3",
           cell_spec(R"({"kind": "gru", "hidden": 4}, {"kind": "mlp", "layers": [{"out": 3}]})"));
    expect("spec.modules.predictor.inputs: a cell ('gru') reads exactly 'state' and 'action'",
           replaced(cell_spec(), R"(["state", "action"])", R"(["state"])"));
    expect("spec.modules.predictor.blocks[0].norm: those of an ensemble cannot be tied",
           replaced(cell_spec(), R"("ensemble": 1)", R"("ensemble": 2)"));
    expect("spec.modules.predictor.blocks[0].norm: there is nothing to be tied to",
           replaced(cell_spec(), R"({"out": 4, "norm": "layer"})", R"({"out": 4, "norm": "none"})"));
    expect("activations: has 1 items, but the module's blocks have 2 layers",
           replaced(cell_spec(R"({"kind": "gru", "hidden": 4}, {"kind": "mlp", "layers": [{"out": 4}]})"),
                    R"("quantisation": null)",
                    R"("quantisation": {"weights": "int8", "activations": [{"scale": [1]}]})"));
    expect(
        "activations[0].scale: has 8 items, but the layer has 4 inputs",
        replaced(
            cell_spec(), R"("quantisation": null)",
            R"("quantisation": {"weights": "int8", "activations": [{"scale": [1, 1, 1, 1, 1, 1, 1, 1]}]})"));
}

// ---- the container's faults
// -------------------------------------------------------------------------------------

TEST(AgentFile, NamesTruncationAtEveryByte) {
    const std::string bytes = TestFile().bytes();
    expect_bad_file("file: empty", "");
    for (std::size_t size = 1; size < bytes.size(); ++size) {
        const std::string part =
            bytes.substr(0, size);  // a copy of this size: asan sees any read past its end
        expect_bad_file("truncated", part);
    }
}

TEST(AgentFile, NamesOversizedHeader) {
    std::string bytes = TestFile().bytes();
    bytes[3] = 1;  // 16 MiB and some
    expect_bad_file("header: oversized", bytes);
    for (int i = 0; i < 8; ++i) bytes[i] = '\xff';
    expect_bad_file("header: oversized: 18446744073709551615 bytes", bytes);
}

TEST(AgentFile, NamesBytesThatBelongToNoTensor) {
    TestFile file;
    expect_bad_file("5 trailing bytes", file.bytes() + "12345");
    file.data.push_back(0);
    expect_bad_file("4 trailing bytes", file.bytes());
    for (std::size_t i = 1; i < file.tensors.size(); ++i)
        file.tensors[i].begin += 4, file.tensors[i].end += 4;
    expect_bad_file("gap: bytes", file.bytes());
}

TEST(AgentFile, NamesOverlap) {
    TestFile file;
    for (std::size_t i = 1; i < file.tensors.size(); ++i)
        file.tensors[i].begin -= 4, file.tensors[i].end -= 4;
    file.data.pop_back();
    expect_bad_file("tensor 'encoder.0.linear0.bias': overlaps tensor 'encoder.0.linear0.weight'",
                    file.bytes());
}

TEST(AgentFile, NamesMisalignment) {
    TestFile file;
    std::string header = file.header();
    const std::string data(file.data.size() * 4, '\0');
    expect_bad_file("header: misaligned", packed(header + "  ", data));
    file.tensors[0].begin += 2;
    file.tensors[0].end += 2;
    expect_bad_file("tensor 'encoder.0.linear0.weight': misaligned: begins at byte 2", file.bytes());
}

TEST(AgentFile, NamesImpossibleOffsetsAndShapes) {
    const auto with = [](const std::function<void(TestTensor&)>& change) {
        TestFile file;
        change(file.tensors[0]);
        return file.bytes();
    };
    expect_bad_file("ends before it begins", with([](TestTensor& t) { t.begin = t.end + 4; }));
    expect_bad_file("the shape needs 96", with([](TestTensor& t) { t.end += 4; }));
    expect_bad_file("expected a list", with([](TestTensor& t) { t.shape = "7"; }));
    expect_bad_file("expected an integer", with([](TestTensor& t) { t.shape = "[true, 4]"; }));
    expect_bad_file("is not between", with([](TestTensor& t) { t.shape = "[-6, 4]"; }));
    expect_bad_file("is not between", with([](TestTensor& t) { t.shape = "[18446744073709551615]"; }));
    expect_bad_file("expected an integer", with([](TestTensor& t) { t.shape = "[36893488147419103232]"; }));
    expect_bad_file("size overflows",
                    with([](TestTensor& t) { t.shape = "[16777216, 16777216, 16777216]"; }));
    expect_bad_file("has 9 items", with([](TestTensor& t) { t.shape = "[1,1,1,1,1,1,1,1,24]"; }));
    expect_bad_file("wrong shape [4, 6], the spec calls for [6, 4]",
                    with([](TestTensor& t) { t.shape = "[4, 6]"; }));
    expect_bad_file("wrong dtype 'F64'", with([](TestTensor& t) { t.dtype = "F64"; }));
    expect_bad_file("is not between",
                    with([](TestTensor& t) { t.begin = t.end = std::numeric_limits<std::size_t>::max(); }));
}

TEST(AgentFile, NamesMissingUnknownAndDuplicateTensors) {
    TestFile file;
    file.tensors[0].name = "encoder.0.linear0.wait";
    expect_bad_file("tensor 'encoder.0.linear0.weight': missing", file.bytes());
    file = TestFile();
    file.tensors.push_back({"extra", "[1]", file.data.size() * 4, file.data.size() * 4 + 4});
    file.data.push_back(0);
    expect_bad_file("tensor 'extra': unknown", file.bytes());
    file = TestFile();
    file.tensors.push_back(file.tensors[0]);
    expect_bad_file("header: duplicate key 'encoder.0.linear0.weight'", file.bytes());
}

TEST(AgentFile, NamesUnknownKeysOfTheHeader) {
    TestFile file;
    file.more_metadata = R"(,"format":"pt")";
    expect_bad_file("header.__metadata__: unknown key 'format'", file.bytes());
    file.more_metadata = R"(,"pyjepa":"{}")";
    expect_bad_file("header: duplicate key 'pyjepa'", file.bytes());
    file = TestFile();
    file.more_header = R"(,"odd":{"dtype":"F32","shape":[0],"data_offsets":[0,0],"owner":"me"})";
    expect_bad_file("tensor 'odd': unknown key 'owner'", file.bytes());
    expect_bad_file("'__metadata__' is missing", packed(R"({"a":1})", ""));
    expect_bad_file("key 'pyjepa' is missing", packed(R"({"__metadata__":{}})", ""));
    expect_bad_file("header.__metadata__: expected an object, got string",
                    packed(R"({"__metadata__":"x"})", ""));
    expect_bad_file("expected a string, got object", packed(R"({"__metadata__":{"pyjepa":{}}})", ""));
}

TEST(AgentFile, NamesNonFiniteWeights) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
        TestFile file;
        file.data[3] = bad;
        file.data.back() = bad;
        expect_bad_file("tensor 'encoder.0.linear0.weight': non-finite value", file.bytes());
        expect_bad_file("at element 3 (1 in all)", file.bytes());
    }
}

TEST(AgentFile, NamesBadJson) {
    expect_bad_file("header: not a JSON object", packed("\xef\xbb\xbf{}", ""));
    expect_bad_file("header: not a JSON object", packed("", ""));
    expect_bad_file("header: not a JSON object", packed("[]", ""));
    expect_bad_file("header: not valid JSON at byte", packed("{} {}", ""));
    expect_bad_file("ill-formed UTF-8", packed("{\"\xff\":1}", ""));
    expect_bad_file("header: holds a NUL character", packed(std::string("{\0}", 3), ""));
    expect_bad_file("header: holds a NUL character",
                    packed(std::string("{}\0 more", 8), ""));  // nothing hides
    expect_bad_file("header: not valid JSON at byte", packed("{\"a\":NaN}", ""));
    expect_bad_file("header: not valid JSON at byte", packed("{\"a\":1}//", ""));
    expect_bad_file("a number is too large", packed("{\"a\":1e999}", ""));
    expect_bad_file("nested deeper than 32",
                    packed("{\"a\":" + std::string(40, '[') + std::string(40, ']') + "}", ""));
    expect_bad_file("nested deeper than 32", packed("{\"a\":" + std::string(1 << 20, '['), ""));
    std::string many = "{\"a\":[0";
    for (int i = 0; i < (1 << 20); ++i) many += ",0";
    expect_bad_file("more than 1048576 JSON values", packed(many + "]}", ""));
}

TEST(AgentFile, MessagesCarryNoControlCharacters) {
    TestFile file;
    file.more_metadata = R"(,"\u001b[31m\u0000\u009b\n":"")";
    const Verdict got = verdict([&] { parse(file.bytes()); });
    EXPECT_EQ(got.status, PYJEPA_INVALID_FILE);
    for (const char c : got.message) EXPECT_TRUE(c >= 0x20 && c < 0x7f) << static_cast<int>(c);
}

// ---- the spec's faults
// ------------------------------------------------------------------------------------------

struct Fault {
    const char* name;
    const char* from;
    const char* to;
    const char* message;
    pyjepa_status status = PYJEPA_INVALID_FILE;
};

class SpecFault : public testing::TestWithParam<Fault> {};

TEST_P(SpecFault, IsNamed) {
    const Fault& fault = GetParam();
    const std::string spec = replaced(small_spec, fault.from, fault.to);
    expect_error(fault.status, fault.message, [&] { read_spec(spec); });
}

INSTANTIATE_TEST_SUITE_P(
    All, SpecFault,
    testing::Values(
        Fault{"Version2", "\"version\": 1", "\"version\": 2",
              "spec.version: unknown version 2 (this engine reads version 1)", PYJEPA_UNSUPPORTED},
        Fault{"VersionComesFirst", "\"version\": 1", "\"version\": 2, \"new\": 0", "unknown version 2",
              PYJEPA_UNSUPPORTED},
        Fault{"VersionText", "\"version\": 1", "\"version\": \"1\"",
              "spec.version: expected an integer, got string"},
        Fault{"DuplicateKey", "\"name\": \"small\"", "\"name\": \"a\", \"n\\u0061me\": \"b\"",
              "spec: duplicate key 'name'"},
        Fault{"UnknownKey", "\"name\": \"small\"", "\"names\": \"a\"", "spec: unknown key 'names'"},
        Fault{"UnknownPlannerKey", "\"elites\": 8", "\"elite\": 8", "spec.planner: unknown key 'elite'"},
        Fault{"UnknownLayerKey", "\"out\": 6", "\"out\": 6, \"dropout\": 0",
              "spec.modules.encoder.blocks[0].layers[0]: unknown key 'dropout'"},
        Fault{"MissingShape", "\"shape\": [4], ", "", "spec.observation: key 'shape' is missing"},
        Fault{"EmptyShape", "[4]", "[]", "spec.observation.shape: has 0 items"},
        Fault{"ZeroSize", "[4]", "[0]", "spec.observation.shape[0]: 0 is not between 1 and"},
        Fault{"FractionalSize", "[4]", "[4.0]", "spec.observation.shape[0]: expected an integer"},
        Fault{"BooleanSize", "[4]", "[true]", "spec.observation.shape[0]: expected an integer, got boolean"},
        Fault{"AbsurdSize", "[4]", "[1048577]", "spec.observation.shape[0]: 1048577 is not between"},
        Fault{"AbsurdProduct", "[4]", "[1048576, 1048576, 1048576, 1048576]",
              "spec.observation.shape: more than 16777216"},
        Fault{"Dtype", "\"dtype\": \"float32\"", "\"dtype\": \"float64\"",
              "spec.observation.dtype: 'float64' is not one of 'float32', 'uint8'"},
        Fault{"ScaleOverflow", "\"scale\": 0.5", "\"scale\": 1e39",
              "spec.observation.scale: 1e+39 does not fit in float32"},
        Fault{"ScaleNull", "\"scale\": 0.5", "\"scale\": null",
              "spec.observation.scale: expected a number, got null"},
        Fault{"ScaleNaN", "\"scale\": 0.5", "\"scale\": NaN", "spec: not valid JSON at byte"},
        Fault{"ScaleHuge", "\"scale\": 0.5", "\"scale\": 1e999", "spec: not valid JSON at byte"},
        Fault{"DiscreteWithBounds", "\"box\"", "\"discrete\"",
              "spec.actions.low: discrete actions have a count, no bounds and no scale"},
        Fault{"DiscreteWithoutCount", "{\"kind\": \"box\", \"low\": [-1, -2], \"high\": [1, 4]",
              "{\"kind\": \"discrete\"", "spec.actions.count: discrete actions need their count"},
        Fault{"BoxPlannerOnDiscrete",
              "{\"kind\": \"box\", \"low\": [-1, -2], \"high\": [1, 4], \"center\": [], \"scale\": [], "
              "\"count\": 0",
              "{\"kind\": \"discrete\", \"count\": 3",
              "spec.planner.algorithm: 'mppi' plans continuous actions, this agent's are discrete"},
        Fault{"CountTooLarge",
              "{\"kind\": \"box\", \"low\": [-1, -2], \"high\": [1, 4], \"center\": [], \"scale\": [], "
              "\"count\": 0",
              "{\"kind\": \"discrete\", \"count\": 4194304",
              "spec.actions.count: 4194304 is not between 0 and 1048576"},
        Fault{"DiscretePlannerOnABox", "\"mppi\"", "\"categorical-cem\"",
              "spec.planner.algorithm: 'categorical-cem' plans discrete actions, this agent's are a box"},
        Fault{"Exploration", "\"temperature\": 0.9", "\"exploration\": 1.5",
              "spec.planner.exploration: is not in [0, 1]"},
        Fault{"Branching", "\"temperature\": 0.9", "\"branching\": 1",
              "spec.planner.branching: 1 is not between 2 and 1024"},
        Fault{"BoxWithCount", "\"count\": 0", "\"count\": 3", "spec.actions.count: only discrete"},
        Fault{"NoBounds", "[-1, -2]", "[]", "spec.actions.low: a box needs its lower bounds"},
        Fault{"BoundsDiffer", "[1, 4]", "[1]", "spec.actions.high: has 1 items, but there are 2 actions"},
        Fault{"BoundsSwapped", "[1, 4]", "[1, -2]", "spec.actions.low[1]: the lower bound is not below"},
        Fault{"BoundsText", "[1, 4]", "[1, \"4\"]", "spec.actions.high[1]: expected a number, got string"},
        Fault{"RangeOverflow", "\"low\": [-1, -2], \"high\": [1, 4]",
              "\"low\": [-3e38, -2], \"high\": [3e38, 4]", "spec.actions.high[0]: the range of the action"},
        Fault{"CenterLength", "\"center\": []", "\"center\": [0]", "spec.actions.center: has 1 items"},
        Fault{"ScaleLength", "\"scale\": []", "\"scale\": [1, 1, 1]", "spec.actions.scale: has 3 items"},
        Fault{"ScaleZero", "\"scale\": []", "\"scale\": [1, 0]", "spec.actions.scale[1]: must be positive"},
        Fault{"ScaleSubnormal", "\"scale\": []", "\"scale\": [1, 1e-40]",
              "spec.actions.scale[1]: must be positive"},
        Fault{"ModuleName", "\"policy\": {", "\"pol.icy\": {", "'pol.icy' is not a name"},
        Fault{"ModuleNameEmpty", "\"policy\": {", "\"\": {", "'' is not a name"},
        Fault{"ModuleUnreferenced", "\"policy\": \"policy\"", "\"policy\": null",
              "spec.modules.policy: no level, policy, critic or cost term refers to this module"},
        Fault{"ModuleDangling", "\"encoder\": \"encoder\"", "\"encoder\": \"coder\"",
              "spec.levels[0].encoder: there is no module 'coder'"},
        Fault{"PolicyDangling", "\"policy\": \"policy\"", "\"policy\": \"nobody\"",
              "spec.policy: there is no module 'nobody'"},
        Fault{"PolicyIsPredictor", "\"policy\": \"policy\"", "\"policy\": \"predictor\"",
              "a policy reads only 'state' and 'goal'"},
        Fault{"NoInputs", "[\"observation\"]", "[]", "spec.modules.encoder.inputs: has 0 items"},
        Fault{"UnknownInput", "[\"observation\"]", "[\"pixels\"]", "'pixels' is not one of 'observation'"},
        Fault{"TwiceTheSameInput", "[\"state\", \"goal\"]", "[\"state\", \"state\"]",
              "'state' is listed twice"},
        Fault{"EncoderInputs", "[\"observation\"]", "[\"observation\", \"goal\"]",
              "an encoder reads exactly 'observation'"},
        Fault{"EncoderResidual", "{\"inputs\": [\"observation\"]",
              "{\"residual\": true, \"inputs\": [\"observation\"]", "spec.modules.encoder.residual"},
        Fault{"PredictorInputs", "[\"state\", \"action\"]", "[\"state\", \"action\", \"goal\"]",
              "a predictor reads exactly"},
        Fault{"PredictorWithoutAction", "[\"state\", \"action\"]", "[\"state\"]",
              "a predictor reads exactly"},
        Fault{"PredictorOutput", "[{\"out\": 4}]", "[{\"out\": 5}]",
              "a predictor puts out a state of size 4, this one puts out 5"},
        Fault{"PolicyInputs", "[\"state\", \"goal\"]", "[\"state\", \"observation\"]", "a policy reads only"},
        Fault{"PolicyOutput", "[{\"out\": 2}]", "[{\"out\": 3}]",
              "a policy puts out 2 actions, this one puts out 3"},
        Fault{"PolicyResidual", "{\"inputs\": [\"state\", \"goal\"]",
              "{\"residual\": true, \"inputs\": [\"state\", \"goal\"]", "spec.modules.policy.residual"},
        Fault{"NoBlocks", "\"blocks\": [{\"kind\": \"mlp\", \"layers\": [{\"out\": 2}]}]", "\"blocks\": []",
              "spec.modules.policy.blocks: has 0 items"},
        Fault{"NoLayers", "[{\"out\": 2}]", "[]", "spec.modules.policy.blocks[0].layers: has 0 items"},
        Fault{"NoKind", "\"kind\": \"mlp\", \"simnorm_group\"", "\"simnorm_group\"",
              "spec.modules.encoder.blocks[0]: key 'kind' is missing"},
        Fault{"UnknownBlock", "\"kind\": \"mlp\"", "\"kind\": \"lstm\"", "'lstm' is not one of 'mlp'"},
        Fault{"GruKeys", "\"kind\": \"mlp\"", "\"kind\": \"gru\"",
              "spec.modules.encoder.blocks[0]: unknown key 'layers'"},
        Fault{"GruWithoutCell", "{\"kind\": \"mlp\", \"layers\": [{\"out\": 4}]}",
              "{\"kind\": \"gru\", \"hidden\": 4}",
              "spec.modules.predictor.blocks[0]: a cell ('gru') is the first block of a module with combine "
              "'cell'"},
        Fault{"GruAsPolicy", "\"blocks\": [{\"kind\": \"mlp\", \"layers\": [{\"out\": 2}]}]",
              "\"combine\": \"cell\", \"blocks\": [{\"kind\": \"gru\", \"hidden\": 2}]",
              "spec.modules.policy.inputs: a cell ('gru') reads exactly 'state' and 'action'"},
        Fault{"VitUnknownKey", "\"kind\": \"mlp\"", "\"kind\": \"vit\"", "unknown key 'layers'"},
        Fault{"AdalnKeys", "\"kind\": \"mlp\"", "\"kind\": \"adaln_transformer\"",
              "spec.modules.encoder.blocks[0]: unknown key 'layers'"},
        Fault{"ConvOnVector", "{\"kind\": \"mlp\", \"layers\": [{\"out\": 2}]}",
              "{\"kind\": \"conv\", \"layers\": [{\"out\": 2, \"kernel\": 3}]}",
              "spec.modules.policy.blocks[0]: block 'conv' needs an input (C, H, W), got [8]"},
        Fault{"ImpalaOnVector", "{\"kind\": \"mlp\", \"layers\": [{\"out\": 2}]}",
              "{\"kind\": \"impala\", \"channels\": [2]}", "block 'impala' needs an input (C, H, W)"},
        Fault{"ImpalaPreactivation", "{\"kind\": \"mlp\", \"layers\": [{\"out\": 2}]}",
              "{\"kind\": \"impala\", \"channels\": [2], \"preactivation\": 1}", "blocks[0].preactivation: "},
        Fault{"Norm", "\"norm\": \"layer\"", "\"norm\": \"batch\"", "'batch' is not one of 'none'"},
        Fault{"Activation", "\"mish\"", "\"elu\"", "'elu' is not one of 'none'"},
        Fault{"SimnormGroup", "\"simnorm_group\": 2", "\"simnorm_group\": 3",
              "4 is not divisible by simnorm_group 3"},
        Fault{"SimnormGroupZero", "\"simnorm_group\": 2", "\"simnorm_group\": 0",
              "simnorm_group: 0 is not between"},
        Fault{"CombineAdaln", "\"concat\"", "\"adaln\"",
              "spec.modules.predictor.combine: 'adaln' needs a transformer ('adaln_transformer') as the "
              "module's "
              "first block"},
        Fault{"CellWithoutGru", "\"concat\"", "\"cell\"",
              "spec.modules.predictor.combine: 'cell' needs a cell ('gru') as the module's first block"},
        Fault{"CombineUnknown", "\"concat\"", "\"sum\"", "'sum' is not one of"},
        Fault{"Ensemble", "\"policy\": {\"inputs\"", "\"policy\": {\"ensemble\": 2, \"inputs\"",
              "module 'policy': an ensemble is available for predictors, critics and prediction heads only",
              PYJEPA_UNSUPPORTED},
        Fault{"EnsembleZero", "\"ensemble\": 1", "\"ensemble\": 0", "ensemble: 0 is not between"},
        Fault{"LatentVariable", "\"latent\": null", "\"latent\": {\"kind\": \"gaussian\", \"size\": 2}",
              "module 'predictor': a latent variable", PYJEPA_UNSUPPORTED},
        Fault{"LatentMalformed", "\"latent\": null", "\"latent\": {\"kind\": \"gaussian\"}",
              "latent: key 'size' is missing"},
        Fault{"QuantisationBf16", "\"quantisation\": null", "\"quantisation\": {\"weights\": \"bf16\"}",
              "module 'predictor': stored bf16", PYJEPA_UNSUPPORTED},
        Fault{"QuantisationWithoutScales", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\"}", "quantisation: key 'activations' is missing"},
        Fault{"QuantisationEmpty", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": []}",
              "quantisation.activations: has 0 items"},
        Fault{"QuantisationCount", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"scale\": [1]}, {\"scale\": "
              "[1]}]}",
              "spec.modules.predictor.quantisation.activations: has 2 items, but the module's blocks "
              "have 1 layers"},
        Fault{"PrecisionsCount", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"precisions\": [\"int8\", \"bf16\"]}",
              "spec.modules.predictor.quantisation.precisions: has 2 items, but the module's blocks "
              "have 1 layers"},
        Fault{"PrecisionsUnknown", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"precisions\": [\"int4\"]}",
              "quantisation.precisions[0]: 'int4' is not one of 'fp32', 'bf16', 'int8'"},
        Fault{"PrecisionsNumber", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"precisions\": [8]}",
              "quantisation.precisions[0]: number is not one of"},
        Fault{"PrecisionsOfLayers", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"precisions\": {\"linear0\": \"int8\"}}",
              "quantisation.precisions: expected a list, got object"},
        Fault{"PrecisionsAndScalesCount", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"precisions\": [\"int8\"], \"activations\": "
              "[{\"scale\": [1]}, {\"scale\": [1]}]}",
              "quantisation.activations: has 2 items"},
        Fault{"QuantisationOfNothing", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"precisions\": []}",
              "quantisation: key 'activations' is missing"},
        Fault{"QuantisationScaleZero", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"scale\": [0]}]}",
              "quantisation.activations[0].scale[0]: must be positive"},
        Fault{"QuantisationScaleNegative", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"scale\": [-0.5]}]}",
              "quantisation.activations[0].scale[0]: must be positive"},
        Fault{"QuantisationScaleDenormal", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"scale\": [1e-40]}]}",
              "quantisation.activations[0].scale[0]: must be positive"},
        Fault{"QuantisationScaleInfinite", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"scale\": [1e39]}]}",
              "quantisation.activations[0].scale[0]: 1e+39 does not fit in float32"},
        Fault{"QuantisationScaleMissing", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"zero\": 3}]}",
              "quantisation.activations[0]: key 'scale' is missing"},
        Fault{"QuantisationZeroLarge", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"scale\": [1], \"zero\": 256}]}",
              "quantisation.activations[0].zero: 256 is not between 0 and 255"},
        Fault{"QuantisationZeroNegative", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"scale\": [1], \"zero\": -1}]}",
              "quantisation.activations[0].zero: -1 is not between 0 and 255"},
        Fault{"QuantisationScaleCount", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"scale\": [1, 1, 1]}]}",
              "spec.modules.predictor.quantisation.activations[0].scale: has 3 items, but the layer has 8 "
              "inputs"},
        Fault{"QuantisationUnknownKey", "\"quantisation\": null",
              "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"scale\": [1]}], \"bits\": 4}",
              "quantisation: unknown key 'bits'"},
        Fault{"QuantisationMalformed", "\"quantisation\": null", "\"quantisation\": {\"weights\": \"int3\"}",
              "'int3' is not one of"},
        Fault{"History", "\"history\": 1", "\"history\": 2", "a history longer than 1", PYJEPA_UNSUPPORTED},
        Fault{"Stride", "\"stride\": 1", "\"stride\": 2", "a stride longer than 1", PYJEPA_UNSUPPORTED},
        Fault{"TwoLevels", "\"levels\": [{", "\"levels\": [{}, {", "more than one level", PYJEPA_UNSUPPORTED},
        Fault{"HoldNumber", "\"hold\": false", "\"hold\": 0",
              "spec.levels[0].hold: expected true or false, got number"},
        Fault{"Critic", "\"critic\": null", "\"critic\": \"policy\"",
              "spec.modules.policy: a critic puts out 1 number, this one puts out 2"},
        Fault{"CriticDangling", "\"critic\": null", "\"critic\": \"fan\"",
              "spec.critic: there is no module 'fan'"},
        Fault{"CriticReads", "\"critic\": null", "\"critic\": \"encoder\"",
              "a critic reads only 'state', 'action'"},
        Fault{"CriticResidual", "\"critic\": null", "\"critic\": \"predictor\"",
              "spec.modules.predictor.residual: a critic puts out no state to add to"},
        Fault{"PolicyHead", "\"critic\": null", "\"policy_head\": \"beta\"", "'beta' is not one of"},
        Fault{"Categorical", "\"critic\": null", "\"policy_head\": \"categorical\"",
              "spec.policy_head: the head 'categorical' is for discrete actions"},
        Fault{"GaussianOutput", "\"critic\": null", "\"policy_head\": \"gaussian_tanh\"",
              "puts out 2 means and as many log standard deviations, this one puts out 2"},
        Fault{"Discount", "\"critic\": null", "\"discount\": 1.5", "spec.discount: is not in (0, 1]"},
        Fault{"EnsembleLarge", "\"ensemble\": 1", "\"ensemble\": 65", "ensemble: 65 is not between 1 and 64"},
        Fault{"TwoHotBins", "{\"out\": 2}]}",
              "{\"out\": 2}]}, {\"kind\": \"two_hot\", \"bins\": 3, \"low\": 0, \"high\": 1}",
              "block 'two_hot' has 3 bins, its input is [2]"},
        Fault{"TwoHotRange", "{\"out\": 2}]}",
              "{\"out\": 2}]}, {\"kind\": \"two_hot\", \"bins\": 2, \"low\": 0, \"high\": 81}",
              "bins must lie between -80 <= low < high <= 80"},
        Fault{"TermWithoutModule", "\"goal_distance\"", "\"reward\"",
              "spec.cost[0]: key 'module' is missing"},
        Fault{"TermModuleDangling", "\"goal_distance\"", "\"hazard\", \"module\": \"x\"",
              "spec.cost[0].module: there is no module 'x'"},
        Fault{"TermReads", "\"goal_distance\"", "\"hazard\", \"module\": \"predictor\"",
              "a hazard head reads only 'state', 'goal'"},
        Fault{"TermOutput", "\"goal_distance\"", "\"reward\", \"module\": \"policy\"",
              "a reward head puts out 1 number, this one puts out 2"},
        Fault{"GoalHeadReads", "\"goal_distance\"", "\"goal_distance\", \"module\": \"policy\"",
              "a prediction head of state and goal reads only 'state'"},
        Fault{"ActionModule", "\"goal_distance\"", "\"action_size\", \"module\": \"policy\"",
              "a term of this kind reads no module"},
        Fault{"CriticMissing", "\"goal_distance\"", "\"critic\"", "spec.cost[0]: this agent has no critic"},
        Fault{"BoxUnbounded", "\"goal_distance\"", "\"box\"", "a box needs 'low' or 'high'"},
        Fault{"BoxSize", "\"goal_distance\"", "\"box\", \"low\": [1]",
              "spec.cost[0].low: has 1 items, but there are 4 numbers to judge"},
        Fault{"BoxCrossed", "\"goal_distance\"", "\"box\", \"low\": [0, 0, 2, 0], \"high\": [1, 1, 1, 1]",
              "spec.cost[0].low[2]: the lower bound is above the upper one"},
        Fault{"HalfSpaceSize", "\"goal_distance\"", "\"half_space\", \"normal\": [1, 2, 3]",
              "spec.cost[0].normal: has 3 items"},
        Fault{"Members", "\"goal_distance\"", "\"hazard\", \"members\": 65",
              "members: 65 is not between 0 and 64"},
        Fault{"MembersOfGoal", "\"goal_distance\"", "\"goal_distance\", \"members\": 1",
              "a goal distance takes all members"},
        Fault{"TermName", "\"goal_distance\"", "\"action_size\", \"name\": \"a b\"", "'a b' is not a name"},
        Fault{"TermNameTwice", "[{\"kind\": \"goal_distance\"",
              "[{\"kind\": \"action_size\", \"name\": \"a\"}, {\"name\": \"a\", \"kind\": \"goal_distance\"",
              "spec.cost[1].name: another term is called 'a'"},
        Fault{"PolicyCandidates", "\"knots\": 2", "\"policy_candidates\": 64",
              "spec.planner.policy_candidates: 64 is not between 0 and 63"},
        Fault{"PolicyCandidatesBlock", "\"knots\": 2", "\"policy_candidates\": 1",
              "spec.planner.policy_candidates: the predictor reads several actions a step"},
        Fault{"MaxStd", "\"knots\": 2", "\"max_std\": 0", "spec.planner.max_std: is not in (0, 10]"},
        Fault{"TemperatureScale", "\"knots\": 2", "\"temperature_scale\": \"K\"",
              "'K' is not one of 'std', 'absolute'"},
        Fault{"CostKind", "\"goal_distance\"", "\"boredom\"", "spec.cost[0].kind: 'boredom' is not one of"},
        Fault{"CostWithoutKind", "\"kind\": \"goal_distance\", ", "", "spec.cost[0]: key 'kind' is missing"},
        Fault{"CostNegative", "\"stage\": 0.5", "\"stage\": -0.5",
              "spec.cost[0].stage: a cost's weight must not be negative"},
        Fault{"Metric", "\"squared_l2\"", "\"l7\"", "spec.cost[0].metric: 'l7' is not one of"},
        Fault{"AlgorithmUnknown", "\"mppi\"", "\"annealing\"",
              "spec.planner.algorithm: 'annealing' is not one of"},
        Fault{"HorizonZero", "\"horizon\": 8", "\"horizon\": 0",
              "spec.planner.horizon: 0 is not between 1 and 100000"},
        Fault{"HorizonBlock", "\"horizon\": 8", "\"horizon\": 9", "9 is not a multiple of action_block 2"},
        Fault{"Candidates", "\"candidates\": 64", "\"candidates\": 1048577",
              "spec.planner.candidates: 1048577"},
        Fault{"PlanElements", "\"horizon\": 8, \"candidates\": 64",
              "\"horizon\": 100000, \"candidates\": 1048576", "candidates * horizon * actions is more than"},
        Fault{"Iterations", "\"iterations\": 3", "\"iterations\": 10001", "spec.planner.iterations"},
        Fault{"Elites", "\"elites\": 8", "\"elites\": 65", "spec.planner.elites: 65 is not between 1 and 64"},
        Fault{"Knots", "\"knots\": 2", "\"knots\": 5",
              "spec.planner.knots: 5 is more than the 4 predictor steps"},
        Fault{"KnotsNegative", "\"knots\": 2", "\"knots\": -1", "spec.planner.knots: -1 is not between"},
        Fault{"Std", "\"std\": 0.7", "\"std\": 0", "spec.planner.std: is not in (0, 10]"},
        Fault{"StdUnderflow", "\"std\": 0.7", "\"std\": 1e-60", "spec.planner.std: is not in (0, 10]"},
        Fault{"MinStd", "\"min_std\": 0.1", "\"min_std\": -0.1", "spec.planner.min_std"},
        Fault{"Momentum", "\"momentum\": 0.2", "\"momentum\": 1", "spec.planner.momentum: is not in [0, 1)"},
        Fault{"Temperature", "\"temperature\": 0.9", "\"temperature\": 0",
              "spec.planner.temperature: is not positive"},
        Fault{"NameNumber", "\"small\"", "7", "spec.name: expected a string, got number"},
        Fault{"ProvenanceNumber", "\"seed\": \"7\"", "\"seed\": 7",
              "spec.provenance['seed']: expected a string, got number"},
        Fault{"ProvenanceList", "{\"seed\": \"7\"}", "[]", "spec.provenance: expected an object, got array"}),
    [](const auto& parameter) { return parameter.param.name; });

// A spec whose encoder is this vision transformer, on an image (2, 8, 12).
std::string vit_spec(const std::string& fields) {
    return R"({"version": 1, "observation": {"shape": [2, 8, 12]}, "actions": {"low": [0], "high": [1]},
      "modules": {"encoder": {"inputs": ["observation"], "blocks": [{"kind": "vit", )" +
           fields + R"(}]}}, "levels": [{"encoder": "encoder"}]})";
}

TEST(AgentFile, ReadsVisionTransformers) {
    const Spec spec = read_spec(vit_spec(
        R"("patch": 4, "width": 6, "depth": 1, "heads": 2, "hidden": 9, "pool": "mean", "norm_eps": 1e-12)"));
    const auto& vit = std::get<VitSpec>(spec.modules.at("encoder").blocks[0]);
    EXPECT_EQ(vit.pool, TokenPool::mean);
    EXPECT_FLOAT_EQ(vit.norm_eps, 1e-12f);
    EXPECT_EQ(spec.latent_dim, 6);
    const auto tensors = expected_tensors(spec);
    const auto shape = [&](const std::string& name) {
        for (const auto& [found, dims] : tensors)
            if (found == "encoder.0." + name) return dims;
        return std::vector<int>{};
    };
    EXPECT_EQ(shape("patch.weight"), (std::vector<int>{6, 2, 4, 4}));
    EXPECT_EQ(shape("position"), (std::vector<int>{6, 6}));
    EXPECT_EQ(shape("cls"), std::vector<int>{});
    EXPECT_EQ(shape("layer0.qkv.bias"), std::vector<int>{18});
    EXPECT_EQ(shape("layer0.linear1.weight"), (std::vector<int>{6, 9}));
    EXPECT_EQ(tensors.size(), 2 + 1 + 12 + 2u);
}

TEST(AgentFile, NamesWhatIsWrongWithAVisionTransformer) {
    const std::string sound = R"("patch": 4, "width": 6, "depth": 1, "heads": 2, "hidden": 9)";
    for (const auto& [was, is, message] : std::vector<std::tuple<const char*, const char*, const char*>>{
             {R"("patch": 4)", R"("patch": 5)", "blocks[0].patch: 5 does not divide its input [2, 8, 12]"},
             {R"("patch": 4)", R"("patch": 0)", "patch: 0 is not between 1 and 255"},
             {R"("heads": 2)", R"("heads": 4)", "heads: 4 do not divide the width 6"},
             {R"("depth": 1)", R"("depth": 257)", "depth: 257 is not between 1 and 256"},
             {R"("width": 6)", R"("width": 349526)", "width: 349526 is not between 1 and 349525"},
             {R"("hidden": 9)", R"("hidden": -1)", "hidden: -1 is not between"},
             {R"("hidden": 9)", R"("hidden": 9, "pool": "max")", "'max' is not one of 'cls', 'mean'"},
             {R"("hidden": 9)", R"("hidden": 9, "norm_eps": 0)", "norm_eps: is not in [1e-12, 1]"},
             {R"("hidden": 9)", R"("hidden": 9, "ratio": 4)", "unknown key 'ratio'"},
             {R"(, "hidden": 9)", "", "key 'hidden' is missing"}}) {
        try {
            read_spec(vit_spec(replaced(sound, was, is)));
            ADD_FAILURE() << is;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(message), std::string::npos) << error.what();
        }
    }
    const std::string many =
        replaced(vit_spec(R"("patch": 1, "width": 6, "depth": 1, "heads": 2, "hidden": 9)"), "[2, 8, 12]",
                 "[2, 100, 41]");
    EXPECT_THROW(read_spec(many), Error);
    EXPECT_THROW(read_spec(replaced(vit_spec(sound), "[2, 8, 12]", "[192]")), Error);
}

TEST(AgentFile, ReadsActivationScales) {
    const Spec spec = read_spec(replaced(
        small_spec, "\"quantisation\": null",
        "\"quantisation\": {\"weights\": \"int8\", \"activations\": [{\"scale\": [0.25], \"zero\": 128}]}"));
    const auto& scales = spec.modules.at("predictor").activations;
    ASSERT_EQ(scales.size(), 1u);
    EXPECT_EQ(scales[0].scale, std::vector<float>{0.25f});
    EXPECT_EQ(scales[0].zero, 128);
    EXPECT_TRUE(spec.modules.at("encoder").activations.empty());
}

TEST(AgentFile, ReadsPrecisionsOfLayers) {
    const Spec spec =
        read_spec(replaced(small_spec, "\"quantisation\": null",
                           "\"quantisation\": {\"weights\": \"int8\", \"precisions\": [\"bf16\"]}"));
    EXPECT_EQ(spec.modules.at("predictor").precisions, std::vector{LayerPrecision::bf16});
    EXPECT_TRUE(spec.modules.at("predictor").activations.empty());
    EXPECT_TRUE(spec.modules.at("encoder").precisions.empty());
}

TEST(AgentFile, NamesLayersTooWideForTheirInput) {
    const char* spec =
        R"({"version": 1, "observation": {"shape": [3, 4, 4]}, "actions": {"low": [0], "high": [1]},
        "levels": [{"encoder": "e"}], "modules": {"e": {"inputs": ["observation"], "blocks": [
            {"kind": "conv", "layers": [{"out": 2, "kernel": 3}, {"out": 2, "kernel": 3}]}]}}})";
    expect_error(PYJEPA_INVALID_FILE,
                 "spec.modules.e.blocks[0].layers[1]: kernel 3 is larger than its input [2, 2, 2]",
                 [&] { read_spec(spec); });
    expect_error(PYJEPA_INVALID_FILE, "padding: 3 is not between 0 and 2",
                 [&] { read_spec(replaced(spec, "\"kernel\": 3", "\"kernel\": 3, \"padding\": 3")); });
    expect_error(
        PYJEPA_INVALID_FILE, "spec.modules.e.blocks[0].layers[0]: output [1048576, 20, 20] has more than",
        [&] {
            std::string wide = replaced(spec, "[3, 4, 4]", "[3, 20, 20]");
            read_spec(replaced(wide, "\"out\": 2, \"kernel\": 3", "\"out\": 1048576, \"kernel\": 1"));
        });
    expect_error(PYJEPA_INVALID_FILE, "spec.modules.e.blocks[0].channels[0]: output", [&] {
        std::string wide = replaced(spec, "[3, 4, 4]", "[3, 20, 20]");
        read_spec(replaced(
            wide, R"({"kind": "conv", "layers": [{"out": 2, "kernel": 3}, {"out": 2, "kernel": 3}]})",
            R"({"kind": "impala", "channels": [1048576]})"));
    });
}

TEST(AgentFile, CapsTextAndCounts) {
    const auto spec = [](const std::string& from, const std::string& to) {
        return [=] { read_spec(replaced(small_spec, from, to)); };
    };
    expect_error(PYJEPA_INVALID_FILE, "spec.name: longer than 256 bytes",
                 spec("small", std::string(257, 'x')));
    expect_error(PYJEPA_INVALID_FILE, "longer than 65536 bytes",
                 spec("\"7\"", '"' + std::string(65537, 'x') + '"'));
    expect_error(PYJEPA_INVALID_FILE, "key longer than 256 bytes", spec("seed", std::string(257, 'x')));
    expect_error(PYJEPA_INVALID_FILE, "is not a name",
                 spec("\"policy\": {", '"' + std::string(65, 'p') + "\": {"));
    std::string entries, terms, layers, modules;
    for (int i = 0; i < 256; ++i) entries.append(",\"k").append(std::to_string(i)).append("\":\"\"");
    for (int i = 0; i < 64; ++i) terms += "{\"kind\":\"action_size\"},";
    for (int i = 0; i < 256; ++i) layers += "{\"out\":1},";
    for (int i = 0; i < 64; ++i) modules.append("\"m").append(std::to_string(i)).append("\":{},");
    expect_error(PYJEPA_INVALID_FILE, "spec.provenance: more than 256 entries",
                 spec("\"seed\": \"7\"", "\"seed\": \"7\"" + entries));
    expect_error(PYJEPA_INVALID_FILE, "spec.cost: has 65 items", spec("\"cost\": [", "\"cost\": [" + terms));
    expect_error(PYJEPA_INVALID_FILE, "layers: has 257 items",
                 spec("[{\"out\": 2}]", "[" + layers + "{\"out\": 2}]"));
    expect_error(PYJEPA_INVALID_FILE, "more than 64 modules",
                 spec("\"modules\": {", "\"modules\": {" + modules));
}

// ---- files on disk
// ----------------------------------------------------------------------------------------------

class OnDisk : public testing::Test {
  protected:
    void SetUp() override {
        const auto* info = testing::UnitTest::GetInstance()->current_test_info();
        folder_ = std::filesystem::temp_directory_path() /
                  ("pyjepa_" + std::string(info->name()) + "_" + std::to_string(std::random_device{}()));
        std::filesystem::create_directories(folder_);
    }
    void TearDown() override { std::filesystem::remove_all(folder_); }

    std::string path(const std::string& name) const { return (folder_ / name).string(); }

  private:
    std::filesystem::path folder_;
};

TEST_F(OnDisk, ReadsTheSameAsFromMemory) {
    const std::string bytes = TestFile().bytes();
    std::ofstream(path("agent"), std::ios::binary) << bytes;
    const AgentFile mapped = read_agent_file(path("agent")), copied = parse(bytes);
    ASSERT_EQ(mapped.tensors.size(), copied.tensors.size());
    for (const auto& [name, tensor] : copied.tensors) {
        const auto& other = mapped.tensors.at(name);
        EXPECT_TRUE(std::equal(tensor.data.begin(), tensor.data.end(), other.data.begin(), other.data.end()));
    }
}

TEST_F(OnDisk, RefusesWhatIsNotAFile) {
    const auto read = [](const std::string& name) { return [=] { read_agent_file(name); }; };
    expect_error(PYJEPA_IO, "No such file", read(path("none")));
    expect_error(PYJEPA_IO, "Is a directory", read(path("")));
    ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
    expect_error(PYJEPA_IO, "not a regular file", read(path("fifo")));
    expect_error(PYJEPA_IO, "not a regular file", read("/dev/null"));
    expect_error(PYJEPA_IO, "NUL byte", read(path("a") + std::string(1, '\0')));
    std::ofstream(path("empty"));
    expect_error(PYJEPA_INVALID_FILE, "file: empty", read(path("empty")));
}

TEST(GoldenFile, Version1Loads) {
    const AgentFile agent = read_agent_file(PYJEPA_GOLDEN "/version-1.safetensors");
    EXPECT_EQ(agent.spec.name, "golden version 1");
    EXPECT_EQ(agent.spec.latent_dim, 8);
    EXPECT_EQ(agent.spec.plan_dim, 4);
    EXPECT_EQ(agent.tensors.size(), expected_tensors(agent.spec).size());
}

// ---- damage nobody thought of
// -----------------------------------------------------------------------------------

// Every outcome but a named error or a sound file is a bug; the sanitizers watch for the silent ones.
void expect_sound_or_refused(const std::string& bytes) {
    try {
        const AgentFile agent = parse(bytes);
        for (const auto& [name, shape] : expected_tensors(agent.spec)) {
            const Tensor& tensor = agent.tensors.at(name);
            ASSERT_EQ(tensor.shape, shape);
            for (const float value : tensor.data) ASSERT_TRUE(std::isfinite(value));
        }
    } catch (const Error& error) {
        ASSERT_TRUE(error.status() == PYJEPA_INVALID_FILE || error.status() == PYJEPA_UNSUPPORTED);
        ASSERT_NE(std::string(error.what()).find(": "), std::string::npos);
    }
}

TEST(AgentFileDamage, RandomBytes) {
    std::mt19937 random(1);
    const std::string good = TestFile().bytes();
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
    for (int round = 0; round < 4000; ++round) {
        std::string bytes = good;
        for (std::size_t n = 1 + below(4); n > 0; --n) {
            const std::size_t place = below(bytes.size() - 1);
            switch (below(4)) {
                case 0:
                    bytes[place] = static_cast<char>(random());
                    break;
                case 1:
                    bytes[place] ^= static_cast<char>(1 << below(8));
                    break;
                case 2:
                    bytes.erase(place, 1 + below(8));
                    break;
                default:
                    bytes.insert(place, bytes.substr(below(bytes.size()), 1 + below(16)));
            }
        }
        expect_sound_or_refused(bytes);
    }
}

TEST(AgentFileDamage, RandomTokensInTheSpec) {
    std::mt19937 random(2);
    const std::vector<std::string> tokens = {
        "0",    "-1",   "1e999",   "1e38",    "2147483648", "18446744073709551616",
        "0.5",  "true", "null",    "{}",      "[]",         "\"state\"",
        "\"\"", "[[[",  "\"mlp\"", "[1,1,1]", "1048576",    "{\"kind\":\"conv\"}",
        "-0",   "1e-50"};
    // Where a value may stand: after a colon, a comma or a bracket.
    std::vector<std::pair<std::size_t, std::size_t>> values;
    const std::string good = small_spec;
    for (std::size_t i = 0; i + 1 < good.size(); ++i) {
        if (good[i] != ':' && good[i] != ',' && good[i] != '[') continue;
        values.emplace_back(i + 1, good.find_first_of(",]}", i + 1));
    }
    TestFile file;
    for (int round = 0; round < 4000; ++round) {
        file.spec = good;
        for (int n = 1 + static_cast<int>(random() % 2); n > 0; --n) {
            const auto [begin, end] = values[random() % values.size()];
            if (end <= file.spec.size())
                file.spec.replace(begin, end - begin, tokens[random() % tokens.size()]);
        }
        expect_sound_or_refused(file.bytes());
    }
}

}  // namespace
}  // namespace pyjepa
