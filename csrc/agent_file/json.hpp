// Strict JSON for text from strangers: no duplicate keys, bounded nesting and size, valid UTF-8, finite
// numbers; and typed access to its values, with errors that name the place.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "error.hpp"

namespace pyjepa {

using Json = nlohmann::json;

// Throws Error(PYJEPA_INVALID_FILE), its message starting with `what` ("spec", "header").
Json parse_json(std::string_view text, const std::string& what);

// Text from a file made fit to print: in single quotes, anything but printable ASCII escaped, shortened if
// long.
std::string printable(std::string_view text);

[[noreturn]] void invalid(const std::string& where, const std::string& problem);
[[noreturn]] void unsupported(const std::string& where, const std::string& problem);

// The value as what it must be, or an error.
std::int64_t as_integer(const Json& value, const std::string& where, std::int64_t low, std::int64_t high);
double as_number(const Json& value, const std::string& where);  // finite, also as float
bool as_bool(const Json& value, const std::string& where);
const std::string& as_text(const Json& value, const std::string& where, std::size_t max_bytes);
const Json& as_list(const Json& value, const std::string& where, std::size_t min_items,
                    std::size_t max_items);

// A JSON object of which every key is known.
class JsonObject {
  public:
    JsonObject(const Json& value, std::string where, std::initializer_list<std::string_view> known_keys);

    const std::string& where() const { return where_; }
    std::string where(std::string_view key) const { return where_ + "." + std::string(key); }
    const Json* find(std::string_view key) const;  // null if absent
    const Json& at(std::string_view key) const;    // an error if absent

    int integer(std::string_view key, int fallback, int low, int high) const;
    int integer(std::string_view key, int low, int high) const;
    float number(std::string_view key, float fallback) const;
    bool flag(std::string_view key, bool fallback) const;
    std::optional<std::string> name(std::string_view key) const;  // absent or null: none

    // One of a fixed list of words.
    template <class E>
    E choice(std::string_view key, std::optional<E> fallback,
             std::initializer_list<std::pair<std::string_view, E>> words) const;

  private:
    const Json& value_;
    std::string where_;
};

template <class E>
E one_of(const Json& value, const std::string& where,
         std::initializer_list<std::pair<std::string_view, E>> words) {
    if (value.is_string()) {
        for (const auto& [word, meaning] : words) {
            if (value.get_ref<const std::string&>() == word) return meaning;
        }
    }
    std::string problem =
        value.is_string() ? printable(value.get_ref<const std::string&>()) : std::string(value.type_name());
    problem += " is not one of";
    std::string_view separator = " ";
    for (const auto& [word, meaning] : words) {
        problem.append(separator).append(printable(word));
        separator = ", ";
    }
    invalid(where, problem);
}

template <class E>
E JsonObject::choice(std::string_view key, std::optional<E> fallback,
                     std::initializer_list<std::pair<std::string_view, E>> words) const {
    if (fallback && !find(key)) return *fallback;
    return one_of(at(key), where(key), words);
}

}  // namespace pyjepa
