#include "digest.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace kvferry {
namespace {

constexpr std::size_t THREADS_MAX = 64;
constexpr std::int64_t NUMBER_MAX = std::int64_t{1} << 50;
// Starting a thread takes as long as summing some hundred KiB.
constexpr std::uint64_t BYTES_PER_THREAD_MIN = std::uint64_t{1} << 20;
constexpr std::size_t ITEMS_AT_ONCE = 4;
// How much is fetched of what is summed after the present cell or item: hardware does not foresee where it lies.
constexpr std::size_t AHEAD_BYTES = 1024;

constexpr std::uint64_t TOKEN_STEP = 0x9e3779b97f4a7c15;
constexpr std::uint64_t CHUNK_STEP = 0xd1342543de82ef95;

// Stafford's variant 13 of the finaliser of MurmurHash3, as in SplitMix64.
inline std::uint64_t mixed(std::uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

inline std::uint64_t term(std::uint64_t hash, std::uint64_t key) { return mixed(hash ^ mixed(key)); }

inline void fetch(const char *data) {
    for (std::size_t at = 0; at < AHEAD_BYTES; at += LINE_BYTES)
        __builtin_prefetch(data + at, 0, 3);
}

// The neighbouring cells of one segment.
struct Item {
    const char *base;
    std::uint64_t number; // of the first token, from 1
    std::int64_t count;
    std::size_t first_cell;
    std::size_t first_sum;

    const char *data(const DigestRegion &region, std::size_t cell, std::int64_t token) const {
        return base + region.cell_offsets[first_cell + cell] + token * region.token_stride;
    }

    std::uint64_t key(const DigestRegion &region, std::size_t cell, std::int64_t token) const {
        return region.cell_keys[first_cell + cell] + (number + static_cast<std::uint64_t>(token)) * TOKEN_STEP;
    }

    bool heads_first(const DigestRegion &region) const {
        const auto &offsets = region.cell_offsets;
        return region.inner > 1 && offsets[first_cell + 1] - offsets[first_cell] < region.token_stride;
    }
};

// What the threads of one digest share.
struct Work {
    const DigestRegion &region;
    const char *window;
    const std::uint32_t *keys;
    std::uint64_t *sums;
    const std::atomic<bool> *cancelled;
    std::size_t outer;
    std::size_t item_count;
    std::atomic<std::size_t> next{0};

    bool is_cancelled() const { return cancelled != nullptr && cancelled->load(std::memory_order_relaxed); }

    Item item(std::size_t index) const {
        const std::size_t segment = index / outer;
        const std::size_t first_cell = index % outer * static_cast<std::size_t>(region.inner);
        const std::size_t row = static_cast<std::size_t>(region.rows[segment]);
        return {window + region.bases[segment], static_cast<std::uint64_t>(region.tokens[segment]) + 1,
                region.counts[segment], first_cell, row * region.cell_count() + first_cell};
    }
};

using Execute = void (*)(Work &);

inline std::uint64_t nh_portable(const char *data, std::size_t lines, const std::uint32_t *keys) {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < lines * (LINE_BYTES / 8); ++i) {
        std::uint32_t words[2];
        std::memcpy(words, data + 8 * i, sizeof words);
        words[0] += keys[2 * i];
        words[1] += keys[2 * i + 1];
        sum += std::uint64_t{words[0]} * words[1];
    }
    return sum;
}

#define KVFERRY_JOIN(a, b) a##b
#define KVFERRY_NAMED(a, b) KVFERRY_JOIN(a, b)

#define KVFERRY_SET portable
#define KVFERRY_TARGET
#include "digesting.inc"

#if defined(__x86_64__)

#define KVFERRY_INLINE __attribute__((always_inline)) static inline

__attribute__((target("avx512f"))) KVFERRY_INLINE std::uint64_t nh_avx512(const char *data, std::size_t lines,
                                                                          const std::uint32_t *keys) {
    __m512i sum = _mm512_setzero_si512();
    for (std::size_t i = 0; i < lines; ++i) {
        const __m512i words =
            _mm512_add_epi32(_mm512_loadu_si512(data + LINE_BYTES * i), _mm512_loadu_si512(keys + 16 * i));
        // The masked forms are the same instructions; the others make some compilers warn of their own headers.
        const __m512i high = _mm512_maskz_srli_epi64(0xff, words, 32);
        sum = _mm512_add_epi64(sum, _mm512_maskz_mul_epu32(0xff, words, high));
    }
    alignas(LINE_BYTES) std::uint64_t lanes[LINE_BYTES / 8];
    _mm512_store_si512(lanes, sum);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3] + lanes[4] + lanes[5] + lanes[6] + lanes[7];
}

__attribute__((target("avx2"))) KVFERRY_INLINE std::uint64_t nh_avx2(const char *data, std::size_t lines,
                                                                     const std::uint32_t *keys) {
    __m256i sum = _mm256_setzero_si256();
    for (std::size_t i = 0; i < 2 * lines; ++i) {
        const __m256i words = _mm256_add_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(data + 32 * i)),
                                               _mm256_loadu_si256(reinterpret_cast<const __m256i *>(keys + 8 * i)));
        sum = _mm256_add_epi64(sum, _mm256_mul_epu32(words, _mm256_srli_epi64(words, 32)));
    }
    const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_add_epi64(half, _mm_unpackhi_epi64(half, half))));
}

KVFERRY_INLINE std::uint64_t nh_sse2(const char *data, std::size_t lines, const std::uint32_t *keys) {
    __m128i sum = _mm_setzero_si128();
    for (std::size_t i = 0; i < 4 * lines; ++i) {
        const __m128i words = _mm_add_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(data + 16 * i)),
                                            _mm_loadu_si128(reinterpret_cast<const __m128i *>(keys + 4 * i)));
        sum = _mm_add_epi64(sum, _mm_mul_epu32(words, _mm_srli_epi64(words, 32)));
    }
    return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_add_epi64(sum, _mm_unpackhi_epi64(sum, sum))));
}

#define KVFERRY_SET avx512
#define KVFERRY_TARGET __attribute__((target("avx512f")))
#include "digesting.inc"

#define KVFERRY_SET avx2
#define KVFERRY_TARGET __attribute__((target("avx2")))
#include "digesting.inc"

#define KVFERRY_SET sse2
#define KVFERRY_TARGET
#include "digesting.inc"

#endif

struct Named {
    const char *name;
    Execute execute;
};

std::vector<Named> available() {
    std::vector<Named> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        found.push_back({"avx512", execute_avx512});
    if (__builtin_cpu_supports("avx2"))
        found.push_back({"avx2", execute_avx2});
    found.push_back({"sse2", execute_sse2});
#endif
    found.push_back({"portable", execute_portable});
    return found;
}

Execute find(const std::string &name) {
    for (const Named &named : available())
        if (name.empty() || name == named.name)
            return named.execute;
    throw std::invalid_argument("instruction_set");
}

void require(bool holds, const char *field, std::int64_t value, const char *why) {
    if (!holds)
        throw PlanError(field, std::to_string(value), why);
}

void require_number(const char *field, std::int64_t value, std::int64_t least) {
    require(value >= least && value <= NUMBER_MAX, field, value, "out of range");
}

} // namespace

std::uint64_t DigestRegion::check(Window window) const {
    require_number("inner", inner, 1);
    require_number("token_stride", token_stride, 1);
    require_number("dim_stride", dim_stride, 1);
    require_number("run_elements", run_elements, 1);
    require_number("element_bytes", element_bytes, 1);
    require_number("row_count", row_count, 0);
    const bool known_size = element_bytes == 1 || element_bytes == 2 || element_bytes == 4 || element_bytes == 8;
    require(known_size, "element_bytes", element_bytes, "must be 1, 2, 4 or 8");
    require(cell_keys.size() == cell_count() && cell_count() % static_cast<std::size_t>(inner) == 0, "cell_offsets",
            static_cast<std::int64_t>(cell_count()), "must be as many as keys, and a multiple of inner");
    for (const Offsets *list : {&tokens, &counts, &rows})
        require(list->size() == bases.size(), "bases", static_cast<std::int64_t>(bases.size()), "lists differ in length");
    std::int64_t farthest = 0;
    for (const std::int64_t offset : cell_offsets) {
        require_number("cell_offsets", offset, 0);
        farthest = std::max(farthest, offset);
    }
    const __int128 run_span = static_cast<__int128>(run_elements - 1) * dim_stride + element_bytes;
    __int128 runs = 0;
    for (std::size_t i = 0; i < bases.size(); ++i) {
        require_number("bases", bases[i], 0);
        require_number("tokens", tokens[i], 0);
        require_number("counts", counts[i], 1);
        require(rows[i] >= 0 && rows[i] < row_count, "rows", rows[i], "no such row");
        const __int128 end = bases[i] + static_cast<__int128>(counts[i] - 1) * token_stride + farthest + run_span;
        require(cell_count() == 0 || end <= static_cast<__int128>(window.size), "bases", bases[i], "leaves the window");
        runs += counts[i];
    }
    const __int128 bytes = runs * static_cast<__int128>(cell_count()) * run_elements * element_bytes;
    return static_cast<std::uint64_t>(std::min<__int128>(bytes, UINT64_MAX));
}

bool digest(const DigestRegion &region, Window window, const WordKeys &keys, std::uint64_t *sums,
            const DigestOptions &options) {
    if (options.thread_count < 1 || options.thread_count > THREADS_MAX)
        throw std::invalid_argument("thread_count");
    const Execute execute = find(options.instruction_set);
    const std::uint64_t bytes = region.check(window);
    const std::size_t outer = region.cell_count() / static_cast<std::size_t>(region.inner);
    Work work{region,
              reinterpret_cast<const char *>(window.address),
              keys.data(),
              sums,
              options.cancelled,
              outer,
              region.bases.size() * outer};
    const std::uint64_t wanted = std::min<std::uint64_t>(options.thread_count, bytes / BYTES_PER_THREAD_MIN);
    std::vector<std::thread> helpers;
    const auto join = [&helpers] {
        for (std::thread &helper : helpers)
            helper.join();
    };
    try {
        for (std::uint64_t i = 1; i < wanted; ++i)
            helpers.emplace_back(execute, std::ref(work));
    } catch (...) {
        join();
        throw;
    }
    execute(work);
    join();
    return !work.is_cancelled();
}

std::vector<std::string> digest_instruction_sets() {
    std::vector<std::string> names;
    for (const Named &named : available())
        names.emplace_back(named.name);
    return names;
}

} // namespace kvferry
