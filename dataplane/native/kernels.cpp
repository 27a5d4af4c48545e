#include "kernels.hpp"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvferry {
namespace {

constexpr std::size_t LINE = 64;
// How much of the next piece is fetched while the present one is copied: hardware does not foresee where it lies.
constexpr std::size_t AHEAD_BYTES_MAX = 4096;
// Short pieces are fetched so many ahead.
constexpr std::size_t PIECES_AHEAD = 8;

// Fetch the sources of the next few pieces after `index`; `prefetched` is how far that was done before.
inline std::size_t prefetch_small(const Piece *pieces, std::size_t count, std::size_t index, std::size_t prefetched) {
    const std::size_t end = std::min(count, index + 1 + PIECES_AHEAD);
    for (std::size_t i = std::max(prefetched, index + 1); i < end; ++i) {
        const std::size_t bytes = std::min<std::size_t>(pieces[i].size, 1024);
        for (std::size_t at = 0; at < bytes; at += LINE)
            __builtin_prefetch(pieces[i].source + at, 0, 3);
    }
    return std::max(prefetched, end);
}

#if defined(__x86_64__)

// Shorter pieces have too few whole lines for stores past the caches to pay.
constexpr std::size_t STREAM_BYTES_MIN = 512;

#define KVFERRY_JOIN(a, b) a##b
#define KVFERRY_NAME(a, b) KVFERRY_JOIN(a, b)

#define KVFERRY_KERNEL stream_avx512
#define KVFERRY_TARGET __attribute__((target("avx512f")))
#define KVFERRY_LINE _mm512_stream_si512(reinterpret_cast<__m512i *>(to), _mm512_loadu_si512(from))
#include "streaming.inc"

#define KVFERRY_KERNEL stream_avx2
#define KVFERRY_TARGET __attribute__((target("avx2")))
#define KVFERRY_LINE                                                                                                   \
    {                                                                                                                  \
        const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));                               \
        const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + 32));                         \
        _mm256_stream_si256(reinterpret_cast<__m256i *>(to), low);                                                     \
        _mm256_stream_si256(reinterpret_cast<__m256i *>(to + 32), high);                                               \
    }
#include "streaming.inc"

#define KVFERRY_KERNEL stream_sse2
#define KVFERRY_TARGET
#define KVFERRY_LINE                                                                                                   \
    for (int part = 0; part < 64; part += 16)                                                                          \
    _mm_stream_si128(reinterpret_cast<__m128i *>(to + part), _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + part)))
#include "streaming.inc"

std::vector<Kernel> available() {
    std::vector<Kernel> found;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        found.push_back({"avx512", stream_avx512});
    if (__builtin_cpu_supports("avx2"))
        found.push_back({"avx2", stream_avx2});
    found.push_back({"sse2", stream_sse2});
    return found;
}

#else

std::vector<Kernel> available() { return {{"portable", copy_cached}}; }

#endif

} // namespace

std::uint64_t copy_cached(const Piece *pieces, std::size_t count, const std::atomic<bool> &cancelled) {
    std::uint64_t copied = 0;
    std::size_t prefetched = 0;
    for (std::size_t i = 0; i < count && !cancelled.load(std::memory_order_relaxed); ++i) {
        prefetched = prefetch_small(pieces, count, i, prefetched);
        std::memcpy(pieces[i].destination, pieces[i].source, pieces[i].size);
        copied += pieces[i].size;
    }
    return copied;
}

const std::vector<Kernel> &kernels() {
    static const std::vector<Kernel> found = available();
    return found;
}

const Kernel *find_kernel(const std::string &name) {
    for (const Kernel &kernel : kernels())
        if (name.empty() || name == kernel.name)
            return &kernel;
    return nullptr;
}

} // namespace kvferry
