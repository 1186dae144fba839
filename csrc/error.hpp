// The one exception of the engine core; the C ABI turns it into a status code and a message.
#pragma once

#include <stdexcept>
#include <string>

#include "pyjepa/pyjepa.h"

namespace pyjepa {

class Error : public std::runtime_error {
  public:
    Error(pyjepa_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
    pyjepa_status status() const noexcept { return status_; }

  private:
    pyjepa_status status_;
};

}  // namespace pyjepa
