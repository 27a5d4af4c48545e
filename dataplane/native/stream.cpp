#include "stream.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>

#include "plan.hpp"

namespace kvferry {

namespace {

using Clock = std::chrono::steady_clock;

// As many as the kernel takes in one call.
constexpr std::size_t VECTORS_MAX = 1024;
// One call moves at most so much, so that a cancel is noticed in between.
constexpr std::size_t CALL_BYTES_MAX = std::size_t{1} << 20;
// Going to sleep costs a wake-up, often on the other end's core: while bytes flow, asking again is cheaper.
constexpr std::chrono::microseconds SPIN{50};
constexpr std::uint64_t BYTES_MAX = std::uint64_t{1} << 62;

// The pieces that are left, with a run of bytes of our own before or after them.
class Cursor {
  public:
    Cursor(const StreamPieces &pieces, char *edge, std::size_t edge_size, bool edge_first)
        : pieces_(pieces), edge_(edge), edge_size_(edge_size), edge_at_(edge_first ? 0 : pieces.count),
          count_(pieces.count + 1) {}

    // Fills vectors with what comes next; 0 when nothing is left.
    std::size_t fill(std::array<iovec, VECTORS_MAX> &vectors) {
        std::size_t filled = 0, bytes = 0, within = within_;
        for (std::size_t index = index_; index < count_ && filled < VECTORS_MAX && bytes < CALL_BYTES_MAX; ++index) {
            const auto [address, size] = run(index);
            const std::size_t left = std::min(size - within, CALL_BYTES_MAX - bytes);
            if (left > 0)
                vectors[filled++] = {address + within, left};
            bytes += left;
            within = 0;
        }
        return filled;
    }

    void advance(std::size_t bytes) {
        while (index_ < count_) {
            const std::size_t left = run(index_).second - within_;
            if (bytes < left) {
                within_ += bytes;
                return;
            }
            bytes -= left;
            within_ = 0;
            ++index_;
        }
    }

  private:
    std::pair<char *, std::size_t> run(std::size_t index) const {
        if (index == edge_at_)
            return {edge_, edge_size_};
        const std::size_t piece = index - (index > edge_at_ ? 1 : 0);
        return {reinterpret_cast<char *>(pieces_.window.address) + pieces_.offsets[piece],
                static_cast<std::size_t>(pieces_.lengths[piece])};
    }

    const StreamPieces &pieces_;
    char *edge_;
    std::size_t edge_size_;
    std::size_t edge_at_;
    std::size_t count_;
    std::size_t index_ = 0;
    std::size_t within_ = 0;
};

// Waits for a socket as StreamWait says.
class Waiter {
  public:
    Waiter(int socket, short events, const StreamWait &wait) : socket_(socket), events_(events), wait_(wait) {
        if (wait.limit_s >= 0)
            until_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(std::min(wait.limit_s, 1e9)));
    }

    bool is_cancelled() const { return wait_.flag != nullptr && wait_.flag->load(std::memory_order_acquire); }

    void moved() { idle_since_ = {}; }

    // False if nothing moved in time.
    bool wait() {
        const Clock::time_point now = Clock::now();
        if (now >= until_)
            return false;
        if (idle_since_ == Clock::time_point{})
            idle_since_ = now;
        if (now - idle_since_ >= SPIN)
            sleep(now);
        return true;
    }

  private:
    void sleep(Clock::time_point now) const {
        std::array<pollfd, 2> polled{pollfd{socket_, events_, 0}, pollfd{wait_.wake_descriptor, POLLIN, 0}};
        int timeout_ms = -1;
        if (until_ != Clock::time_point::max()) {
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(until_ - now).count();
            timeout_ms = static_cast<int>(std::min<std::int64_t>(left, 1 << 30));
        }
        ::poll(polled.data(), wait_.wake_descriptor < 0 ? 1 : 2, timeout_ms);
        if (polled[1].revents != 0 && !is_cancelled()) {
            // Meant for another transfer on this connection, which looks at its own flag.
            eventfd_t ignored = 0;
            ::eventfd_read(wait_.wake_descriptor, &ignored);
        }
    }

    int socket_;
    short events_;
    const StreamWait &wait_;
    Clock::time_point until_ = Clock::time_point::max();
    Clock::time_point idle_since_{};
};

// Calls `step` until it returns no bytes to move; it returns what the system call did, 0 for the end of the stream.
template <class Remaining, class Step>
StreamResult run(int socket, short events, const StreamWait &wait, Remaining remaining, Step step) {
    StreamResult result;
    Waiter waiter(socket, events, wait);
    while (remaining()) {
        if (waiter.is_cancelled())
            return {StreamEnd::CANCELLED, result.bytes, 0};
        const ssize_t moved = step();
        if (moved > 0) {
            result.bytes += static_cast<std::uint64_t>(moved);
            waiter.moved();
        } else if (moved == 0) {
            return {StreamEnd::CLOSED, result.bytes, 0};
        } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
            return {StreamEnd::CLOSED, result.bytes, errno};
        } else if (!waiter.wait()) {
            return {StreamEnd::TIMED_OUT, result.bytes, 0};
        }
    }
    return result;
}

template <class Call>
StreamResult run_pieces(int socket, short events, const StreamWait &wait, Cursor cursor, Call call) {
    std::array<iovec, VECTORS_MAX> vectors;
    msghdr message{};
    message.msg_iov = vectors.data();
    return run(
        socket, events, wait, [&] { return (message.msg_iovlen = cursor.fill(vectors)) > 0; },
        [&] {
            const ssize_t moved = call(&message);
            if (moved > 0)
                cursor.advance(static_cast<std::size_t>(moved));
            return moved;
        });
}

} // namespace

std::uint64_t StreamPieces::check() const {
    std::uint64_t bytes = 0;
    for (std::size_t piece = 0; piece < count; ++piece) {
        const std::int64_t offset = offsets[piece], length = lengths[piece];
        if (length < 0)
            throw PlanError("lengths", std::to_string(length), "a length is negative");
        if (offset < 0 || static_cast<std::uint64_t>(offset) > window.size ||
            static_cast<std::uint64_t>(length) > window.size - static_cast<std::uint64_t>(offset))
            throw PlanError("offsets", std::to_string(offset), "a piece leaves the window");
        bytes += static_cast<std::uint64_t>(length);
        if (bytes > BYTES_MAX)
            throw PlanError("lengths", std::to_string(bytes), "too many bytes");
    }
    return bytes;
}

StreamResult stream_send(int socket, const std::string &prefix, const StreamPieces &pieces, const StreamWait &wait) {
    // The kernel does not write to what it sends.
    Cursor cursor(pieces, const_cast<char *>(prefix.data()), prefix.size(), true);
    return run_pieces(socket, POLLOUT, wait, cursor,
                      [&](msghdr *message) { return ::sendmsg(socket, message, MSG_NOSIGNAL | MSG_DONTWAIT); });
}

StreamResult stream_receive(int socket, const StreamPieces &pieces, std::string &suffix, const StreamWait &wait) {
    Cursor cursor(pieces, suffix.data(), suffix.size(), false);
    return run_pieces(socket, POLLIN, wait, cursor,
                      [&](msghdr *message) { return ::recvmsg(socket, message, MSG_DONTWAIT); });
}

StreamResult stream_discard(int socket, std::uint64_t bytes, const StreamWait &wait) {
    std::uint64_t left = bytes;
    return run(
        socket, POLLIN, wait, [&] { return left > 0; },
        [&] {
            // MSG_TRUNC: the kernel drops the bytes without copying them.
            const ssize_t moved = ::recv(socket, nullptr, std::min<std::uint64_t>(left, CALL_BYTES_MAX),
                                         MSG_TRUNC | MSG_DONTWAIT);
            if (moved > 0)
                left -= static_cast<std::uint64_t>(moved);
            return moved;
        });
}

} // namespace kvferry
