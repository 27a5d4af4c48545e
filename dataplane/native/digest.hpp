// Sums over KV that do not depend on how it lies in memory, for each instruction set that this processor may have.
//
// A run is what one token has in one cell (layer, K or V, head): its elements in order, without gaps. A run is cut into
// chunks of CHUNK_BYTES, the last one filled up with zeros to whole lines. A chunk is hashed by NH (Black, Halevi,
// Krawczyk, Krovetz, Rogaway: UMAC, CRYPTO '99), its hash is mixed with the key of its position (the cell's, the token's
// number, the chunk's) by a bijection, and the terms of a cell's tokens are added modulo 2^64.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "plan.hpp"

namespace kvferry {

inline constexpr std::size_t CHUNK_BYTES = 1024;
inline constexpr std::size_t LINE_BYTES = 64;

using WordKeys = std::array<std::uint32_t, CHUNK_BYTES / sizeof(std::uint32_t)>;

// Tokens of one layer group. Offsets are from the window's start.
struct DigestRegion {
    Offsets bases;  // of each segment, its first token in a cell at offset 0
    Offsets tokens; // that token's number
    Offsets counts; // tokens of the segment
    Offsets rows;   // the row of sums that it is added to
    Offsets cell_offsets;
    std::vector<std::uint64_t> cell_keys;
    std::int64_t inner; // so many neighbours among the cells differ in the head alone
    std::int64_t token_stride;
    std::int64_t dim_stride;
    std::int64_t run_elements;
    std::int64_t element_bytes;
    std::int64_t row_count;

    std::size_t cell_count() const { return cell_offsets.size(); }
    // Throws PlanError unless every byte lies inside the window and every row among the rows.
    std::uint64_t check(Window window) const;
};

struct DigestOptions {
    std::size_t thread_count;
    const std::atomic<bool> *cancelled; // nullptr for none
    std::string instruction_set;        // empty for the best one
};

// Adds the sums of a region that was checked to `sums`, [row][cell]. False if it was cancelled before its end.
// Throws std::invalid_argument for bad options.
bool digest(const DigestRegion &region, Window window, const WordKeys &keys, std::uint64_t *sums,
            const DigestOptions &options);

// Those that this processor has, best first.
std::vector<std::string> digest_instruction_sets();

} // namespace kvferry
