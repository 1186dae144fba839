// How the parts of a spec fit together: internal to the reader, beside what agent_file.hpp offers.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "model/spec.hpp"

namespace pyjepa {

// Checks that modules are wired up and fit each other, and fills in the sizes at the end of Spec.
void resolve_spec(Spec& spec);

// Pairs of tensors that hold the same numbers: what is tied, and to what.
std::vector<std::pair<std::string, std::string>> tied_tensors(const Spec& spec);

std::string shape_text(const Shape& shape);  // "[3, 64, 64]"

}  // namespace pyjepa
