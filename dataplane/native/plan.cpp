#include "plan.hpp"

#include <algorithm>
#include <utility>

namespace kvferry {
namespace {

using Wide = __int128;

std::string at(const std::string &list, std::size_t index) { return list + "[" + std::to_string(index) + "]"; }

std::string of_copy(std::size_t part, const std::string &field) { return at("copies", part) + "." + field; }

[[noreturn]] void leaves_window(std::string field, std::int64_t offset, Wide first, Wide end, std::size_t size) {
    auto shown = [](Wide value) {
        // Offsets beyond 64 bits arise from strides only; how far beyond does not matter.
        const Wide low = INT64_MIN, high = INT64_MAX;
        return std::to_string(static_cast<std::int64_t>(std::clamp(value, low, high)));
    };
    throw PlanError(std::move(field), std::to_string(offset),
                    "bytes " + shown(first) + " to " + shown(end) + " leave the window of " + std::to_string(size) +
                        " bytes");
}

bool inside(std::int64_t offset, std::int64_t length, std::uint64_t size) {
    const auto bytes = static_cast<std::uint64_t>(length);
    return offset >= 0 && bytes <= size && static_cast<std::uint64_t>(offset) <= size - bytes;
}

Wide checked_bytes(const Runs &runs, std::size_t part, Window source, Window destination) {
    const std::size_t count = runs.lengths.size();
    Wide total = 0;
    bool good = true;
    for (std::size_t i = 0; i < count; ++i) {
        const std::int64_t length = runs.lengths[i];
        good &= length >= 0 && inside(runs.sources[i], length, source.size) &&
                inside(runs.destinations[i], length, destination.size);
        total += length;
    }
    for (std::size_t i = 0; !good && i < count; ++i) {
        const std::int64_t length = runs.lengths[i];
        if (length < 0)
            throw PlanError(at(of_copy(part, "lengths"), i), std::to_string(length), "must not be negative");
        if (!inside(runs.sources[i], length, source.size))
            leaves_window(at(of_copy(part, "source_offsets"), i), runs.sources[i], runs.sources[i],
                          Wide{runs.sources[i]} + length, source.size);
        if (!inside(runs.destinations[i], length, destination.size))
            leaves_window(at(of_copy(part, "destination_offsets"), i), runs.destinations[i], runs.destinations[i],
                          Wide{runs.destinations[i]} + length, destination.size);
    }
    return total;
}

// How far the axes reach below and above a base. Exact: at most 16 terms below 2^126 would overflow 128 bits, so
// reaches beyond 2^100 are cut there; no window is that large.
struct Reach {
    Wide low = 0;
    Wide high = 0;

    void add(std::int64_t length, std::int64_t stride) {
        constexpr Wide LIMIT = Wide{1} << 100;
        const Wide far = Wide{length - 1} * stride;
        (far < 0 ? low : high) += std::clamp(far, -LIMIT, LIMIT);
    }
};

void check_bases(const Offsets &bases, const Reach &reach, std::int64_t run_bytes, std::size_t size,
                 const std::string &field) {
    for (std::size_t i = 0; i < bases.size(); ++i) {
        const Wide first = bases[i] + reach.low, end = bases[i] + reach.high + run_bytes;
        if (first < 0 || end > static_cast<Wide>(size))
            leaves_window(at(field, i), bases[i], first, end, size);
    }
}

Wide checked_bytes(const Region &region, std::size_t part, Window source, Window destination) {
    if (region.source_bases.empty() || region.run_bytes == 0)
        return 0;
    Reach read, written;
    Wide total = region.run_bytes;
    for (std::size_t i = 0; i < region.axes.size(); ++i) {
        const Axis &axis = region.axes[i];
        if (axis.length == 0)
            return 0;
        read.add(axis.length, axis.source_stride);
        written.add(axis.length, axis.destination_stride);
        if (__builtin_mul_overflow(total, Wide{axis.length}, &total))
            throw PlanError(at(of_copy(part, "axes"), i), std::to_string(axis.length), "more bytes than can be counted");
    }
    check_bases(region.source_bases, read, region.run_bytes, source.size, of_copy(part, "source_bases"));
    check_bases(region.destination_bases, written, region.run_bytes, destination.size,
                of_copy(part, "destination_bases"));
    if (__builtin_mul_overflow(total, static_cast<Wide>(region.source_bases.size()), &total))
        throw PlanError(of_copy(part, "source_bases"), std::to_string(region.source_bases.size()),
                        "more bytes than can be counted");
    return total;
}

void check_windows(Window source, Window destination) {
    for (const auto &[name, window] : {std::pair{"source", source}, std::pair{"destination", destination}}) {
        std::size_t end;
        if (__builtin_add_overflow(window.address, window.size, &end))
            throw PlanError(std::string(name) + ".size_bytes", std::to_string(window.size),
                            "the window does not end in the address space");
        if (window.address == 0 && window.size > 0)
            throw PlanError(std::string(name) + ".address", "0", "nothing is mapped there");
    }
    if (source.size > 0 && destination.size > 0 && source.address < destination.address + destination.size &&
        destination.address < source.address + source.size)
        throw PlanError("destination.address", std::to_string(destination.address),
                        "the windows of source and destination overlap");
}

// Drops axes of one step and joins what touches in both pools, so that runs are as long as can be.
void simplify(Region &region) {
    auto &axes = region.axes;
    axes.erase(std::remove_if(axes.begin(), axes.end(), [](const Axis &axis) { return axis.length == 1; }), axes.end());
    while (!axes.empty() && axes.back().source_stride == region.run_bytes &&
           axes.back().destination_stride == region.run_bytes &&
           !__builtin_mul_overflow(region.run_bytes, axes.back().length, &region.run_bytes))
        axes.pop_back();
}

void append_chunks(std::vector<Chunk> &chunks, const Runs &runs, std::uint32_t part, std::uint64_t chunk_bytes) {
    Chunk next{part, 0, 0, 0};
    for (std::uint64_t i = 0; i < runs.lengths.size(); ++i) {
        const auto length = static_cast<std::uint64_t>(runs.lengths[i]);
        std::uint64_t offset = 0;
        while (length - offset >= chunk_bytes - next.bytes) {
            offset += chunk_bytes - next.bytes;
            next.bytes = chunk_bytes;
            chunks.push_back(next);
            next = {part, i, offset, 0};
        }
        next.bytes += length - offset;
    }
    if (next.bytes > 0)
        chunks.push_back(next);
}

void append_chunks(std::vector<Chunk> &chunks, const Region &region, std::uint32_t part, std::uint64_t chunk_bytes) {
    const auto run_bytes = static_cast<std::uint64_t>(region.run_bytes);
    const std::uint64_t total = region.source_bases.size() * region.runs_per_base() * run_bytes;
    // Whole runs where they are short.
    if (run_bytes > 0 && run_bytes < chunk_bytes)
        chunk_bytes -= chunk_bytes % run_bytes;
    for (std::uint64_t start = 0; start < total; start += chunk_bytes)
        chunks.push_back({part, start / run_bytes, start % run_bytes, std::min(chunk_bytes, total - start)});
}

} // namespace

std::uint64_t Region::runs_per_base() const {
    std::uint64_t runs = 1;
    for (const Axis &axis : axes)
        runs *= static_cast<std::uint64_t>(axis.length);
    return runs;
}

void Plan::add(Runs runs) {
    const std::size_t count = runs.lengths.size();
    if (runs.sources.size() != count || runs.destinations.size() != count)
        throw PlanError(of_copy(parts_.size(), "lengths"), std::to_string(count),
                        "as many as the " + std::to_string(runs.sources.size()) + " source and " +
                            std::to_string(runs.destinations.size()) + " destination offsets are expected");
    parts_.emplace_back(std::move(runs));
}

void Plan::add(Region region) {
    if (region.source_bases.size() != region.destination_bases.size())
        throw PlanError(of_copy(parts_.size(), "destination_bases"), std::to_string(region.destination_bases.size()),
                        "as many as the " + std::to_string(region.source_bases.size()) + " source bases are expected");
    if (region.run_bytes < 0)
        throw PlanError(of_copy(parts_.size(), "run_bytes"), std::to_string(region.run_bytes), "must not be negative");
    if (region.axes.size() > AXES_MAX)
        throw PlanError(of_copy(parts_.size(), "axes"), std::to_string(region.axes.size()),
                        "at most " + std::to_string(AXES_MAX) + " are possible");
    for (std::size_t i = 0; i < region.axes.size(); ++i)
        if (region.axes[i].length < 0)
            throw PlanError(at(of_copy(parts_.size(), "axes"), i) + ".length", std::to_string(region.axes[i].length),
                            "must not be negative");
    simplify(region);
    parts_.emplace_back(std::move(region));
}

std::uint64_t Plan::check(Window source, Window destination) const {
    check_windows(source, destination);
    Wide total = 0;
    for (std::size_t i = 0; i < parts_.size(); ++i) {
        total += std::visit([&](const auto &part) { return checked_bytes(part, i, source, destination); }, parts_[i]);
        // This also bounds the work that a plan can ask for.
        if (total > static_cast<Wide>(destination.size))
            throw PlanError(at("copies", i), "",
                            "all copies up to here write more bytes than the " + std::to_string(destination.size) +
                                " of the destination: some byte more than once");
    }
    return static_cast<std::uint64_t>(total);
}

std::vector<Chunk> Plan::chunks(std::uint64_t chunk_bytes) const {
    std::vector<Chunk> found;
    for (std::uint32_t i = 0; i < parts_.size(); ++i)
        std::visit([&](const auto &part) { append_chunks(found, part, i, chunk_bytes); }, parts_[i]);
    return found;
}

std::uint64_t Plan::run_count() const {
    std::uint64_t count = 0;
    for (const Part &part : parts_) {
        if (const auto *runs = std::get_if<Runs>(&part))
            count += runs->lengths.size();
        else if (const auto &region = std::get<Region>(part); region.run_bytes > 0)
            count += region.source_bases.size() * region.runs_per_base();
    }
    return count;
}

} // namespace kvferry
