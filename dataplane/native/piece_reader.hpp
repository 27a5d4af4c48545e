// Turns a chunk of a checked plan into pieces, a few at a time.
#pragma once

#include "plan.hpp"

namespace kvferry {

class PieceReader {
  public:
    PieceReader(const Plan &plan, const Chunk &chunk, Window source, Window destination);

    // Fills up to `capacity` pieces of at most STEP_BYTES_MAX bytes; 0 at the end of the chunk.
    std::size_t read(Piece *pieces, std::size_t capacity);

  private:
    std::size_t read(const Runs &runs, Piece *pieces, std::size_t capacity);
    std::size_t read(const Region &region, Piece *pieces, std::size_t capacity);
    void seek(const Region &region);
    void advance(const Region &region);
    Piece step(std::int64_t source, std::int64_t destination, std::uint64_t length);

    const Part &part_;
    const char *source_;
    char *destination_;
    std::uint64_t run_;
    std::uint64_t offset_;
    std::uint64_t left_;
    // Where a region's run lies: its pair of bases, its index on each axis, and what the indices add to the bases.
    std::size_t base_ = 0;
    std::int64_t indices_[AXES_MAX] = {};
    std::int64_t source_step_ = 0;
    std::int64_t destination_step_ = 0;
};

} // namespace kvferry
