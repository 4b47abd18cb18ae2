// Checks of the arrays and attributes of a call, before any of them is read. Python checks them
// too, with better messages; these make sure that no call reads or writes beyond a buffer.

#pragma once

#include <initializer_list>
#include <string>

#include "tile.h"
#include "xla/ffi/api/ffi.h"

namespace kzoo {

namespace ffi = xla::ffi;

constexpr int64_t kMostDim = 1 << 14;     // of a head; `MOST_DIM` in Python
constexpr int64_t kMostFeatures = 256;    // `MOST_FEATURES` in Python
constexpr int64_t kMostChunk = 1024;      // `MOST_CHUNK` in Python
constexpr int64_t kMostSize = INT32_MAX;  // of an axis: some are counted in ints

// Keeps the first error.
class Checks {
 public:
  typedef ffi::Span<const int64_t> Dims;

  // An array must have the dimensions `wanted`. If `broadcasts` (levels and segments), its first
  // two axes may also be 1.
  void dims(const char* name, Dims received, Dims wanted, bool broadcasts = false) {
    bool fits = received.size() == wanted.size();
    for (size_t i = 0; fits && i < wanted.size(); ++i)
      fits = received[i] == wanted[i] || (broadcasts && i < 2 && received[i] == 1);
    require(fits, [&] {
      return std::string(name) + " has the shape " + text(wanted) +
             (broadcasts ? ", or 1 for batch or heads" : "") + ". Received: " + text(received);
    });
  }

  void dims(const char* name, Dims received, std::initializer_list<int64_t> wanted,
            bool broadcasts = false) {
    dims(name, received, Dims(wanted.begin(), wanted.size()), broadcasts);
  }

  void level(const char* name, Dims received, size_t wanted) {
    require(received.size() == wanted, [&] {
      return std::string(name) + " has " + std::to_string(wanted) +
             " axes. Received: " + text(received);
    });
    for (const int64_t size : received) range(name, size, 0, kMostSize);
  }

  // An integer must lie between two others, both included.
  void range(const char* name, int64_t received, int64_t least, int64_t most) {
    require(least <= received && received <= most, [&] {
      return std::string(name) + " lies in " + std::to_string(least) + " to " +
             std::to_string(most) + ". Received: " + std::to_string(received);
    });
  }

  // The number of columns must be a multiple of a vector's.
  void columns(const char* name, int64_t received, int64_t most) {
    range(name, received, kMultiple, most);
    require(received % kMultiple == 0, [&] {
      return std::string(name) + " is a multiple of " + std::to_string(kMultiple) +
             ". Received: " + std::to_string(received);
    });
  }

  template <typename Words>
  void require(bool holds, const Words& words) {
    if (!holds && error_.empty()) error_ = words();
  }

  bool hold() const { return error_.empty(); }
  ffi::Error error() const { return ffi::Error::InvalidArgument("kzoo: " + error_); }

 private:
  static std::string text(Dims sizes) {
    std::string out;
    for (const int64_t size : sizes) out += (out.empty() ? "" : ", ") + std::to_string(size);
    return "[" + out + "]";
  }

  std::string error_;
};

}  // namespace kzoo
