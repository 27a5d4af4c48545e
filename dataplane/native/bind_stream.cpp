// The Python side of the streams.
#include "bind_stream.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "stream.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvferry {

namespace {

using Array = nb::ndarray<const std::int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using WindowTuple = std::tuple<std::size_t, std::size_t>;
using Outcome = std::tuple<int, std::uint64_t, int>;

constexpr std::size_t SUFFIX_BYTES_MAX = std::size_t{1} << 20;

// Copies of the arrays: what was checked is what is used, whatever Python does to its own meanwhile.
class Checked {
  public:
    Checked(const WindowTuple &window, const Array &offsets, const Array &lengths)
        : offsets_(offsets.data(), offsets.data() + offsets.shape(0)),
          lengths_(lengths.data(), lengths.data() + lengths.shape(0)),
          pieces_{{std::get<0>(window), std::get<1>(window)}, offsets_.data(), lengths_.data(), offsets_.size()} {
        if (offsets_.size() != lengths_.size())
            throw nb::value_error("offsets and lengths differ in size");
        pieces_.check();
    }
    Checked(const Checked &) = delete;
    Checked &operator=(const Checked &) = delete;

    const StreamPieces &pieces() const { return pieces_; }

  private:
    const std::vector<std::int64_t> offsets_;
    const std::vector<std::int64_t> lengths_;
    const StreamPieces pieces_;
};

StreamWait wait_of(double limit_s, const FlagHandle *flag, int wake_descriptor) {
    return {limit_s, flag == nullptr ? nullptr : &flag->raised, wake_descriptor};
}

Outcome outcome_of(const StreamResult &result) { return {static_cast<int>(result.end), result.bytes, result.error}; }

Outcome send(int socket, const nb::bytes &prefix, const WindowTuple &window, const Array &offsets,
             const Array &lengths, double limit_s) {
    const Checked checked(window, offsets, lengths);
    const std::string head(prefix.c_str(), prefix.size());
    const nb::gil_scoped_release released;
    return outcome_of(stream_send(socket, head, checked.pieces(), wait_of(limit_s, nullptr, -1)));
}

std::tuple<Outcome, nb::bytes> receive(int socket, const WindowTuple &window, const Array &offsets,
                                       const Array &lengths, std::size_t suffix_size, double limit_s, const FlagHandle *flag,
                                       int wake_descriptor) {
    const Checked checked(window, offsets, lengths);
    if (suffix_size > SUFFIX_BYTES_MAX)
        throw nb::value_error("the suffix is too long");
    std::string suffix(suffix_size, '\0');
    StreamResult result;
    {
        const nb::gil_scoped_release released;
        result = stream_receive(socket, checked.pieces(), suffix, wait_of(limit_s, flag, wake_descriptor));
    }
    return {outcome_of(result), nb::bytes(suffix.data(), suffix.size())};
}

Outcome discard(int socket, std::uint64_t bytes, double limit_s) {
    const nb::gil_scoped_release released;
    return outcome_of(stream_discard(socket, bytes, wait_of(limit_s, nullptr, -1)));
}

} // namespace

void bind_stream(nb::module_ &module) {
    nb::class_<FlagHandle>(module, "CancelFlag")
        .def(nb::init<>())
        .def("raise_", [](FlagHandle &self) { self.raised.store(true, std::memory_order_release); })
        .def_prop_ro("raised", [](const FlagHandle &self) { return self.raised.load(std::memory_order_acquire); });
    module.def("stream_send", &send, "socket"_a, "prefix"_a, "window"_a, "offsets"_a, "lengths"_a, "limit_s"_a);
    module.def("stream_receive", &receive, "socket"_a, "window"_a, "offsets"_a, "lengths"_a, "suffix_size"_a,
               "limit_s"_a, "flag"_a = nb::none(), "wake_descriptor"_a = -1);
    module.def("stream_discard", &discard, "socket"_a, "size_bytes"_a, "limit_s"_a);
}

} // namespace kvferry
