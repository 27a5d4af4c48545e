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
constexpr std::size_t AHEAD_BYTES_MAX = 16384;
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

#define KVFERRY_AVX512 __attribute__((target("avx512f"), always_inline)) static inline
#define KVFERRY_AVX2 __attribute__((target("avx2"), always_inline)) static inline
#define KVFERRY_SSE2 __attribute__((always_inline)) static inline

KVFERRY_AVX512 void line_avx512(char *to, const char *from) {
    _mm512_stream_si512(reinterpret_cast<__m512i *>(to), _mm512_loadu_si512(from));
}

KVFERRY_AVX512 void lines_avx512(char *to, const char *from) {
    const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + LINE);
    const __m512i c = _mm512_loadu_si512(from + 2 * LINE), d = _mm512_loadu_si512(from + 3 * LINE);
    _mm512_stream_si512(reinterpret_cast<__m512i *>(to), a);
    _mm512_stream_si512(reinterpret_cast<__m512i *>(to + LINE), b);
    _mm512_stream_si512(reinterpret_cast<__m512i *>(to + 2 * LINE), c);
    _mm512_stream_si512(reinterpret_cast<__m512i *>(to + 3 * LINE), d);
}

KVFERRY_AVX2 void line_avx2(char *to, const char *from) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i *>(to), a);
    _mm256_stream_si256(reinterpret_cast<__m256i *>(to + 32), b);
}

KVFERRY_AVX2 void lines_avx2(char *to, const char *from) {
    for (std::size_t at = 0; at < 4 * LINE; at += LINE)
        line_avx2(to + at, from + at);
}

KVFERRY_SSE2 void line_sse2(char *to, const char *from) {
    __m128i lanes[4];
    for (std::size_t i = 0; i < 4; ++i)
        lanes[i] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from + 16 * i));
    for (std::size_t i = 0; i < 4; ++i)
        _mm_stream_si128(reinterpret_cast<__m128i *>(to + 16 * i), lanes[i]);
}

KVFERRY_SSE2 void lines_sse2(char *to, const char *from) {
    for (std::size_t at = 0; at < 4 * LINE; at += LINE)
        line_sse2(to + at, from + at);
}

#define KVFERRY_KERNEL stream_avx512
#define KVFERRY_TARGET __attribute__((target("avx512f")))
#define KVFERRY_LINE line_avx512
#define KVFERRY_LINES lines_avx512
#include "streaming.inc"

#define KVFERRY_KERNEL stream_avx2
#define KVFERRY_TARGET __attribute__((target("avx2")))
#define KVFERRY_LINE line_avx2
#define KVFERRY_LINES lines_avx2
#include "streaming.inc"

#define KVFERRY_KERNEL stream_sse2
#define KVFERRY_TARGET
#define KVFERRY_LINE line_sse2
#define KVFERRY_LINES lines_sse2
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
