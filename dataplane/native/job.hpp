// Copies under way. A copier's mutex guards all but the atomics, which any thread may read.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "plan.hpp"

namespace kvferry {

struct Job {
    Plan plan;
    Window source{};
    Window destination{};
    std::int64_t priority = 0;
    bool silent = false; // whether its end wakes nobody
    std::uint64_t total_bytes = 0;
    bool streams = false;
    std::vector<Chunk> chunks;

    std::size_t next_chunk = 0;
    std::size_t threads_inside = 0;

    std::atomic<bool> cancelled{false};
    std::atomic<std::uint64_t> copied_bytes{0};
    // Set after the last byte was written; whoever sees it sees the bytes.
    std::atomic<bool> done{false};

    bool is_handed_out() const { return next_chunk == chunks.size(); }
};

using JobPointer = std::shared_ptr<Job>;

} // namespace kvferry
