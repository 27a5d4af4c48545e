// One run of bytes to copy, as addresses of this process.
#pragma once

#include <cstddef>

namespace kvferry {

struct Piece {
    const char *source;
    char *destination;
    std::size_t size;
};

// A contiguous run longer than this is copied in steps, so that a cancel is noticed between them.
inline constexpr std::size_t STEP_BYTES_MAX = std::size_t{1} << 20;

// Mapped memory that plans name by offsets from its start.
struct Window {
    std::size_t address;
    std::size_t size;
};

} // namespace kvferry
