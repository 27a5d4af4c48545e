// What a job copies, as it came from Python, and the proof that none of it leaves the two windows.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "piece.hpp"

namespace kvferry {

using Offsets = std::vector<std::int64_t>;

// A plan that must not run: which field, its value, and what is wrong with it.
struct PlanError : std::runtime_error {
    PlanError(std::string field_, std::string value_, const std::string &why)
        : std::runtime_error(why), field(std::move(field_)), value(std::move(value_)) {}
    std::string field;
    std::string value;
};

// Runs of any length; three lists of one length.
struct Runs {
    Offsets sources;
    Offsets destinations;
    Offsets lengths;
};

struct Axis {
    std::int64_t length;
    std::int64_t source_stride;
    std::int64_t destination_stride;
};

inline constexpr std::size_t AXES_MAX = 16;

// From each pair of bases, for all indices of the axes (outermost first), a run of run_bytes.
struct Region {
    Offsets source_bases;
    Offsets destination_bases;
    std::vector<Axis> axes;
    std::int64_t run_bytes;

    std::uint64_t runs_per_base() const;
};

using Part = std::variant<Runs, Region>;

// A share of a part: `bytes` bytes from `offset` in the run with index `run` on.
struct Chunk {
    std::uint32_t part;
    std::uint64_t run;
    std::uint64_t offset;
    std::uint64_t bytes;
};

class Plan {
  public:
    // Both throw PlanError for lists of different lengths, negative lengths, and too many axes.
    void add(Runs runs);
    void add(Region region);

    // Throws PlanError unless every byte lies inside both windows and the windows share none. Returns the bytes to copy.
    std::uint64_t check(Window source, Window destination) const;

    // Shares of about chunk_bytes each, in order. Only for a plan that was checked.
    std::vector<Chunk> chunks(std::uint64_t chunk_bytes) const;

    // Runs in all, at most UINT64_MAX. Only for a plan that was checked.
    std::uint64_t run_count() const;

    const Part &part(std::uint32_t index) const { return parts_[index]; }

  private:
    std::vector<Part> parts_;
};

} // namespace kvferry
