// What this machine's memory allows: the plainest fast copy of given pieces, for benchmarks to measure ratios against.
// It shares no code with the copier beyond the plan's check.
#pragma once

#include "plan.hpp"

namespace kvferry {

// How pieces are copied: with non-temporal stores of the widest registers, or with memcpy.
enum class CeilingStyle { NON_TEMPORAL, MEMCPY };

// Copies runs, each thread an equal share of their bytes in order; the seconds from the first thread's start to the last
// one's end. Throws PlanError as the copier does.
double ceiling_copy(const Runs &runs, Window source, Window destination, std::size_t thread_count, CeilingStyle style);

} // namespace kvferry
