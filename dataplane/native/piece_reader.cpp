#include "piece_reader.hpp"

#include <algorithm>

namespace kvferry {

PieceReader::PieceReader(const Plan &plan, const Chunk &chunk, Window source, Window destination)
    : part_(plan.part(chunk.part)), source_(reinterpret_cast<const char *>(source.address)),
      destination_(reinterpret_cast<char *>(destination.address)), run_(chunk.run), offset_(chunk.offset),
      left_(chunk.bytes) {
    if (const auto *region = std::get_if<Region>(&part_))
        seek(*region);
}

std::size_t PieceReader::read(Piece *pieces, std::size_t capacity) {
    return std::visit([&](const auto &part) { return read(part, pieces, capacity); }, part_);
}

Piece PieceReader::step(std::int64_t source, std::int64_t destination, std::uint64_t length) {
    const std::uint64_t size = std::min({length - offset_, left_, std::uint64_t{STEP_BYTES_MAX}});
    const auto skipped = static_cast<std::int64_t>(offset_);
    const Piece piece{source_ + source + skipped, destination_ + destination + skipped, size};
    left_ -= size;
    offset_ += size;
    return piece;
}

std::size_t PieceReader::read(const Runs &runs, Piece *pieces, std::size_t capacity) {
    std::size_t count = 0;
    while (left_ > 0 && count < capacity) {
        const auto length = static_cast<std::uint64_t>(runs.lengths[run_]);
        if (offset_ < length)
            pieces[count++] = step(runs.sources[run_], runs.destinations[run_], length);
        if (offset_ == length) {
            ++run_;
            offset_ = 0;
        }
    }
    return count;
}

void PieceReader::seek(const Region &region) {
    const std::uint64_t each = region.runs_per_base();
    base_ = run_ / each;
    std::uint64_t rest = run_ % each;
    for (std::size_t i = region.axes.size(); i-- > 0;) {
        const Axis &axis = region.axes[i];
        indices_[i] = static_cast<std::int64_t>(rest % static_cast<std::uint64_t>(axis.length));
        rest /= static_cast<std::uint64_t>(axis.length);
        source_step_ += indices_[i] * axis.source_stride;
        destination_step_ += indices_[i] * axis.destination_stride;
    }
}

void PieceReader::advance(const Region &region) {
    for (std::size_t i = region.axes.size(); i-- > 0;) {
        const Axis &axis = region.axes[i];
        if (++indices_[i] < axis.length) {
            source_step_ += axis.source_stride;
            destination_step_ += axis.destination_stride;
            return;
        }
        source_step_ -= (axis.length - 1) * axis.source_stride;
        destination_step_ -= (axis.length - 1) * axis.destination_stride;
        indices_[i] = 0;
    }
    ++base_;
}

std::size_t PieceReader::read(const Region &region, Piece *pieces, std::size_t capacity) {
    const auto length = static_cast<std::uint64_t>(region.run_bytes);
    std::size_t count = 0;
    while (left_ > 0 && count < capacity) {
        pieces[count++] =
            step(region.source_bases[base_] + source_step_, region.destination_bases[base_] + destination_step_, length);
        if (offset_ == length) {
            advance(region);
            offset_ = 0;
        }
    }
    return count;
}

} // namespace kvferry
