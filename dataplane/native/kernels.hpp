// Copies of pieces, for each instruction set that this processor may have.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "piece.hpp"

namespace kvferry {

struct Kernel {
    const char *name;
    // Copy pieces in order until `cancelled`; the bytes copied. Past the caches: for what is larger than they are.
    // Ends with a fence, so that whoever learns of the end sees the bytes.
    std::uint64_t (*stream)(const Piece *pieces, std::size_t count, const std::atomic<bool> &cancelled);
};

// The same through the caches, for what fits into them.
std::uint64_t copy_cached(const Piece *pieces, std::size_t count, const std::atomic<bool> &cancelled);

// Those that this processor has, best first; never empty.
const std::vector<Kernel> &kernels();

// The named one, the best one for an empty name, nullptr for one that this processor has not.
const Kernel *find_kernel(const std::string &name);

} // namespace kvferry
