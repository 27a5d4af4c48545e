// Moves pieces of a window over a stream socket: the kernel gathers and scatters them, nothing is copied in between.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "piece.hpp"

namespace kvferry {

// Raised from any thread to end a transfer that another one is in.
using CancelFlag = std::atomic<bool>;

// How a transfer came to its end. What it did until then stands.
enum class StreamEnd : int {
    COMPLETE = 0,
    CANCELLED = 1,
    // The other end closed the connection, or the connection failed: `error` is the errno, 0 for an orderly close.
    CLOSED = 2,
    TIMED_OUT = 3,
};

struct StreamResult {
    StreamEnd end = StreamEnd::COMPLETE;
    std::uint64_t bytes = 0;
    int error = 0;
};

// Pieces of a window, in the order in which they travel.
struct StreamPieces {
    Window window;
    const std::int64_t *offsets;
    const std::int64_t *lengths;
    std::size_t count;

    // Throws PlanError unless every piece lies inside the window. Returns the bytes of all.
    std::uint64_t check() const;
};

// What ends a wait early.
struct StreamWait {
    double limit_s;          // for the whole transfer; for ever if negative
    const CancelFlag *flag;  // may be null
    int wake_descriptor;     // an eventfd that is written to after the flag was raised; -1 for none
};

// Each uses the socket without blocking in it, whatever its mode is. Checked pieces only.
StreamResult stream_send(int socket, const std::string &prefix, const StreamPieces &pieces, const StreamWait &wait);
// `suffix` has the size of what comes after the pieces, and gets it.
StreamResult stream_receive(int socket, const StreamPieces &pieces, std::string &suffix, const StreamWait &wait);
// Throws bytes away that have come or are still to come.
StreamResult stream_discard(int socket, std::uint64_t bytes, const StreamWait &wait);

} // namespace kvferry
