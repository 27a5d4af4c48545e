#include "ceiling.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvferry {
namespace {

using CopyPiece = void (*)(char *to, const char *from, std::size_t size);

void copy_plain(char *to, const char *from, std::size_t size) { std::memcpy(to, from, size); }

#if defined(__x86_64__)

std::size_t copy_head(char *to, const char *from, std::size_t size, std::size_t alignment) {
    const std::size_t head = std::min(size, (0 - reinterpret_cast<std::size_t>(to)) % alignment);
    std::memcpy(to, from, head);
    return head;
}

__attribute__((target("avx512f"))) void copy_avx512(char *to, const char *from, std::size_t size) {
    std::size_t at = copy_head(to, from, size, 64);
    for (; at + 256 <= size; at += 256) {
        const __m512i a = _mm512_loadu_si512(from + at), b = _mm512_loadu_si512(from + at + 64);
        const __m512i c = _mm512_loadu_si512(from + at + 128), d = _mm512_loadu_si512(from + at + 192);
        _mm512_stream_si512(reinterpret_cast<__m512i *>(to + at), a);
        _mm512_stream_si512(reinterpret_cast<__m512i *>(to + at + 64), b);
        _mm512_stream_si512(reinterpret_cast<__m512i *>(to + at + 128), c);
        _mm512_stream_si512(reinterpret_cast<__m512i *>(to + at + 192), d);
    }
    std::memcpy(to + at, from + at, size - at);
}

__attribute__((target("avx2"))) void copy_avx2(char *to, const char *from, std::size_t size) {
    std::size_t at = copy_head(to, from, size, 32);
    for (; at + 128 <= size; at += 128) {
        __m256i lanes[4];
        for (std::size_t i = 0; i < 4; ++i)
            lanes[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + at + 32 * i));
        for (std::size_t i = 0; i < 4; ++i)
            _mm256_stream_si256(reinterpret_cast<__m256i *>(to + at + 32 * i), lanes[i]);
    }
    std::memcpy(to + at, from + at, size - at);
}

void fence() { _mm_sfence(); }

CopyPiece non_temporal() {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return copy_avx512;
    return __builtin_cpu_supports("avx2") ? copy_avx2 : copy_plain;
}

#else

void fence() {}

CopyPiece non_temporal() { return copy_plain; }

#endif

struct Share {
    std::size_t first;
    std::size_t end;
};

// The runs cut into shares of about equally many bytes.
std::vector<Share> shares(const Runs &runs, std::uint64_t total_bytes, std::size_t count) {
    std::vector<Share> found;
    std::size_t first = 0;
    std::uint64_t before = 0;
    for (std::size_t i = 0; i < runs.lengths.size(); ++i) {
        before += static_cast<std::uint64_t>(runs.lengths[i]);
        if (found.size() + 1 < count && before * count >= total_bytes * (found.size() + 1)) {
            found.push_back({first, i + 1});
            first = i + 1;
        }
    }
    found.push_back({first, runs.lengths.size()});
    return found;
}

} // namespace

double ceiling_copy(const Runs &runs, Window source, Window destination, std::size_t thread_count, CeilingStyle style) {
    Plan plan;
    plan.add(runs);
    const std::uint64_t total_bytes = plan.check(source, destination);
    if (thread_count < 1 || thread_count > 64)
        throw PlanError("thread_count", std::to_string(thread_count), "must be from 1 to 64");
    const CopyPiece copy = style == CeilingStyle::MEMCPY ? copy_plain : non_temporal();
    const auto *from = reinterpret_cast<const char *>(source.address);
    auto *to = reinterpret_cast<char *>(destination.address);
    std::atomic<bool> started{false};
    std::vector<std::thread> threads;
    const auto run = [&](Share share) {
        while (!started.load(std::memory_order_acquire))
            std::this_thread::yield();
        for (std::size_t i = share.first; i < share.end; ++i)
            copy(to + runs.destinations[i], from + runs.sources[i], static_cast<std::size_t>(runs.lengths[i]));
        fence();
    };
    const std::vector<Share> parts = shares(runs, total_bytes, thread_count);
    for (std::size_t i = 1; i < parts.size(); ++i)
        threads.emplace_back(run, parts[i]);
    const auto start = std::chrono::steady_clock::now();
    started.store(true, std::memory_order_release);
    run(parts[0]);
    for (std::thread &thread : threads)
        thread.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

} // namespace kvferry
