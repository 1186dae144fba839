#include "agent_file/json.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "agent_file/limits.hpp"

namespace pyjepa {
namespace {

// Builds the document from parser events. nlohmann's own builder keeps the last of duplicate keys and sets no
// bounds; its parser keeps its own stack, so deep nesting costs it nothing before we stop it here.
class Builder final : public nlohmann::json_sax<Json> {
  public:
    explicit Builder(const std::string& what) : what_(what) {}

    Json take() { return std::move(root_); }

    bool null() override { return add(nullptr); }
    bool boolean(bool value) override { return add(value); }
    bool number_integer(number_integer_t value) override { return add(value); }
    bool number_unsigned(number_unsigned_t value) override { return add(value); }
    bool number_float(number_float_t value, const string_t&) override { return add(value); }
    bool string(string_t& value) override { return add(std::move(value)); }
    bool binary(binary_t&) override { return false; }  // JSON text has none

    bool start_object(std::size_t) override { return open(Json::object()); }
    bool start_array(std::size_t) override { return open(Json::array()); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }

    bool key(string_t& name) override {
        count();
        const auto [place, inserted] = open_.back()->emplace(std::move(name), nullptr);
        if (!inserted) invalid(what_, "duplicate key " + printable(place.key()));
        member_ = &place.value();
        return true;
    }

    bool parse_error(std::size_t position, const std::string&, const Json::exception& error) override {
        // "[json.exception.parse_error.101] parse error at line 1, column 2: <reason>; last read: '...'"
        std::string_view reason = error.what();
        if (error.id == 406) {
            reason = "a number is too large";
        } else {
            if (const auto colon = reason.find(": "); colon != reason.npos) reason.remove_prefix(colon + 2);
            reason = reason.substr(0, reason.find("; last read"));
        }
        invalid(what_, "not valid JSON at byte " + std::to_string(position) + ": " + std::string(reason));
    }

  private:
    void count() {
        if (++values_ > limits::json_values) {
            invalid(what_, "more than " + std::to_string(limits::json_values) + " JSON values");
        }
    }

    template <class T>
    Json* place(T&& value) {
        count();
        if (open_.empty()) {
            root_ = std::forward<T>(value);
            return &root_;
        }
        if (open_.back()->is_array()) return &open_.back()->emplace_back(std::forward<T>(value));
        *member_ = std::forward<T>(value);
        return member_;
    }

    template <class T>
    bool add(T&& value) {
        place(std::forward<T>(value));
        return true;
    }

    bool open(Json container) {
        if (open_.size() == limits::json_nesting) {
            invalid(what_, "JSON nested deeper than " + std::to_string(limits::json_nesting));
        }
        // A container's address stays put while it is open: only the innermost one grows.
        open_.push_back(place(std::move(container)));
        return true;
    }

    bool close() {
        open_.pop_back();
        return true;
    }

    const std::string& what_;
    Json root_;
    std::vector<Json*> open_;
    Json* member_ = nullptr;  // where the value of the key just read goes
    std::size_t values_ = 0;
};

void check_length(const Json& list, const std::string& where, std::size_t low, std::size_t high) {
    if (list.size() < low || list.size() > high) {
        invalid(where, "has " + std::to_string(list.size()) + " items, not between " + std::to_string(low) +
                           " and " + std::to_string(high));
    }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& what) {
    // The parser would skip a byte order mark, which JSON in a file must not have.
    if (text.empty() || text.front() != '{') invalid(what, "not a JSON object: it must begin with '{'");
    // It would also take a NUL character for the end, and hide what follows.
    if (text.find('\0') != text.npos) invalid(what, "holds a NUL character");
    Builder builder(what);
    Json::sax_parse(text, &builder, Json::input_format_t::json, /*strict=*/true, /*ignore_comments=*/false);
    return builder.take();
}

std::string printable(std::string_view text) {
    constexpr std::size_t longest = 120;
    constexpr char digits[] = "0123456789abcdef";
    std::string out = "'";
    for (const char c : text.substr(0, longest)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte < 0x20 || byte >= 0x7f) {
            out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
        } else {
            out += c;
        }
    }
    return out + (text.size() > longest ? "...'" : "'");
}

void invalid(const std::string& where, const std::string& problem) {
    throw Error(PYJEPA_INVALID_FILE, where + ": " + problem);
}

void unsupported(const std::string& where, const std::string& problem) {
    throw Error(PYJEPA_UNSUPPORTED, where + ": " + problem);
}

std::int64_t as_integer(const Json& value, const std::string& where, std::int64_t low, std::int64_t high) {
    if (!value.is_number_integer())
        invalid(where, std::string("expected an integer, got ") + value.type_name());
    const bool huge = value.is_number_unsigned() &&
                      value.get<std::uint64_t>() > std::uint64_t{std::numeric_limits<std::int64_t>::max()};
    if (huge || value.get<std::int64_t>() < low || value.get<std::int64_t>() > high) {
        invalid(where,
                value.dump() + " is not between " + std::to_string(low) + " and " + std::to_string(high));
    }
    return value.get<std::int64_t>();
}

double as_number(const Json& value, const std::string& where) {
    if (!value.is_number()) invalid(where, std::string("expected a number, got ") + value.type_name());
    const double number = value.get<double>();
    if (!(std::abs(number) <= double{std::numeric_limits<float>::max()})) {
        invalid(where, value.dump() + " does not fit in float32");
    }
    return number;
}

bool as_bool(const Json& value, const std::string& where) {
    if (!value.is_boolean()) invalid(where, std::string("expected true or false, got ") + value.type_name());
    return value.get<bool>();
}

const std::string& as_text(const Json& value, const std::string& where, std::size_t max_bytes) {
    if (!value.is_string()) invalid(where, std::string("expected a string, got ") + value.type_name());
    const auto& text = value.get_ref<const std::string&>();
    if (text.size() > max_bytes) invalid(where, "longer than " + std::to_string(max_bytes) + " bytes");
    return text;
}

const Json& as_list(const Json& value, const std::string& where, std::size_t min_items,
                    std::size_t max_items) {
    if (!value.is_array()) invalid(where, std::string("expected a list, got ") + value.type_name());
    check_length(value, where, min_items, max_items);
    return value;
}

JsonObject::JsonObject(const Json& value, std::string where,
                       std::initializer_list<std::string_view> known_keys)
    : value_(value), where_(std::move(where)) {
    if (!value.is_object()) invalid(where_, std::string("expected an object, got ") + value.type_name());
    for (const auto& item : value.items()) {
        if (std::find(known_keys.begin(), known_keys.end(), item.key()) == known_keys.end()) {
            invalid(where_, "unknown key " + printable(item.key()));
        }
    }
}

const Json* JsonObject::find(std::string_view key) const {
    const auto found = value_.find(key);
    return found == value_.end() ? nullptr : &*found;
}

const Json& JsonObject::at(std::string_view key) const {
    const Json* found = find(key);
    if (!found) invalid(where_, "key " + printable(key) + " is missing");
    return *found;
}

int JsonObject::integer(std::string_view key, int low, int high) const {
    return static_cast<int>(as_integer(at(key), where(key), low, high));
}

int JsonObject::integer(std::string_view key, int fallback, int low, int high) const {
    return find(key) ? integer(key, low, high) : fallback;
}

float JsonObject::number(std::string_view key, float fallback) const {
    const Json* found = find(key);
    return found ? static_cast<float>(as_number(*found, where(key))) : fallback;
}

bool JsonObject::flag(std::string_view key, bool fallback) const {
    const Json* found = find(key);
    return found ? as_bool(*found, where(key)) : fallback;
}

std::optional<std::string> JsonObject::name(std::string_view key) const {
    const Json* found = find(key);
    if (!found || found->is_null()) return std::nullopt;
    return as_text(*found, where(key), limits::module_name);
}

}  // namespace pyjepa
