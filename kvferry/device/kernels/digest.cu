// Sums over KV that do not depend on how it lies in memory. What is summed is written in kvferry/core/checksums/formula.py.
//
// A unit is a chunk of a run. A group of lanes sums up to UNITS units of one cell in one segment: its lanes take vectors
// of 16 bytes in turns, UNITS_AT_ONCE units at a time so that as many loads are under way.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define VECTOR_BYTES 16
#define LINE_BYTES 64
#define UNITS_AT_ONCE 4
#define ALL_LANES 0xffffffffu

struct Digest {
    const unsigned char *pool;
    const i64 *bases;
    const i64 *tokens;
    const i64 *counts;
    const i64 *rows;
    const i64 *cell_offsets;
    const u64 *cell_keys;
    const u32 *word_keys;
    u64 *sums;
    i64 segment_count;
    i64 cell_count;
    i64 items_per_cell;
    i64 token_stride;
    i64 dim_stride;
    i64 run_elements;
    i64 element_bytes;
    i64 lanes; // of a group: a power of two
};

static_assert(sizeof(Digest) == ARGUMENT_BYTES, "as the host writes it");

__device__ __forceinline__ u64 mixed(u64 x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

__device__ __forceinline__ u64 nh(uint4 words, const uint4 keys) {
    return (u64)(words.x + keys.x) * (words.y + keys.y) + (u64)(words.z + keys.z) * (words.w + keys.w);
}

// Sixteen bytes of a chunk, byte by byte: for elements that are apart or lie at odd addresses.
__device__ uint4 gathered(const Digest &d, const unsigned char *run, i64 at, i64 end) {
    u32 words[4] = {0, 0, 0, 0};
    for (int i = 0; i < VECTOR_BYTES && at + i < end; ++i) {
        const i64 element = (at + i) / d.element_bytes, inside = (at + i) % d.element_bytes;
        words[i / 4] |= (u32)run[element * d.dim_stride + inside] << (8 * (i % 4));
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ __forceinline__ void load_keys(uint4 *keys, const Digest &d) {
    for (int i = threadIdx.x; i < CHUNK_BYTES / VECTOR_BYTES; i += BLOCK_THREADS)
        keys[i] = reinterpret_cast<const uint4 *>(d.word_keys)[i];
    __syncthreads();
}

// Runs of whole vectors at aligned addresses that are one chunk each, few enough for
// numbers of 32 bits: nearly all KV. Everything that differs between units is one address.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, PLAIN_BLOCKS) digest_plain(const Digest d) {
    __shared__ uint4 keys[CHUNK_BYTES / VECTOR_BYTES];
    load_keys(keys, d);
    const u32 lanes = (u32)d.lanes, lane = threadIdx.x & (lanes - 1);
    const u32 present = (u32)(d.run_elements * d.element_bytes) / VECTOR_BYTES;
    const u32 vectors = (present * VECTOR_BYTES + LINE_BYTES - 1) / LINE_BYTES * (LINE_BYTES / VECTOR_BYTES);
    const u32 cells = (u32)d.cell_count, slices = (u32)d.items_per_cell, step = (u32)d.token_stride;
    const u32 items = (u32)d.segment_count * cells * slices;
    const u32 groups = gridDim.x * (BLOCK_THREADS / lanes);
    const u32 first = (blockIdx.x * BLOCK_THREADS + threadIdx.x) / lanes;
    for (u32 round = 0; round < (items + groups - 1) / groups; ++round) {
        const u32 item = first + round * groups;
        const u32 cell = item < items ? item % cells : 0, rest = item < items ? item / cells : 0;
        const u32 segment = rest / slices, begin = rest % slices * UNITS;
        const int units = item < items ? (int)min((i64)d.counts[segment] - begin, (i64)UNITS) : 0;
        const unsigned char *run = d.pool + d.bases[segment] + d.cell_offsets[cell] + (i64)begin * step;
        u64 place = d.cell_keys[cell] + (u64)(d.tokens[segment] + begin + 1) * TOKEN_STEP;
        u64 sum = 0;
        for (int unit = 0; __any_sync(ALL_LANES, unit < units); unit += UNITS_AT_ONCE) {
            u64 hashes[UNITS_AT_ONCE] = {0, 0, 0, 0};
            for (u32 vector = lane; vector < vectors; vector += lanes) {
                uint4 words[UNITS_AT_ONCE];
#pragma unroll
                for (int j = 0; j < UNITS_AT_ONCE; ++j) {
                    words[j] = make_uint4(0, 0, 0, 0);
                    if (unit + j < units && vector < present)
                        words[j] = __ldg(reinterpret_cast<const uint4 *>(run + (u64)j * step) + vector);
                }
                const uint4 key = keys[vector];
#pragma unroll
                for (int j = 0; j < UNITS_AT_ONCE; ++j)
                    hashes[j] += nh(words[j], key);
            }
#pragma unroll
            for (int j = 0; j < UNITS_AT_ONCE; ++j) {
                for (u32 other = lanes / 2; other > 0; other /= 2)
                    hashes[j] += __shfl_xor_sync(ALL_LANES, hashes[j], other);
                if (unit + j < units)
                    sum += mixed(hashes[j] ^ mixed(place));
                place += TOKEN_STEP;
            }
            run += (u64)UNITS_AT_ONCE * step;
        }
        if (lane == 0 && units > 0)
            atomicAdd(d.sums + d.rows[segment] * d.cell_count + cell, sum);
    }
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) digest_any(const Digest d) {
    __shared__ uint4 keys[CHUNK_BYTES / VECTOR_BYTES];
    load_keys(keys, d);
    const int lanes = (int)d.lanes, lane = threadIdx.x & (lanes - 1);
    const i64 run_bytes = d.run_elements * d.element_bytes;
    const i64 chunks = (run_bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
    const i64 items = d.segment_count * d.cell_count * d.items_per_cell;
    const i64 groups = (i64)gridDim.x * BLOCK_THREADS / lanes;
    const i64 first = ((i64)blockIdx.x * BLOCK_THREADS + threadIdx.x) / lanes;
    // Every lane of a warp goes round as often, so that all can exchange their sums.
    for (i64 round = 0; round < (items + groups - 1) / groups; ++round) {
        const i64 item = first + round * groups;
        const bool has_item = item < items;
        const i64 cell = has_item ? item % d.cell_count : 0;
        const i64 rest = has_item ? item / d.cell_count : 0;
        const i64 segment = rest / d.items_per_cell;
        const i64 begin = rest % d.items_per_cell * UNITS;
        const i64 units = has_item ? min(d.counts[segment] * chunks - begin, (i64)UNITS) : 0;
        const unsigned char *base = d.pool + d.bases[segment] + d.cell_offsets[cell];
        const u64 key = d.cell_keys[cell] + (u64)(d.tokens[segment] + 1) * TOKEN_STEP;
        u64 sum = 0;
        for (int unit = 0; unit < UNITS; unit += UNITS_AT_ONCE) {
            if (!__any_sync(ALL_LANES, unit < units))
                break;
            u64 hashes[UNITS_AT_ONCE], places[UNITS_AT_ONCE];
            const unsigned char *runs[UNITS_AT_ONCE];
            i64 starts[UNITS_AT_ONCE], ends[UNITS_AT_ONCE];
            bool whole = true;
#pragma unroll
            for (int j = 0; j < UNITS_AT_ONCE; ++j) {
                const bool present = unit + j < units;
                const i64 number = present ? begin + unit + j : 0;
                const i64 token = chunks == 1 ? number : number / chunks, chunk = chunks == 1 ? 0 : number % chunks;
                hashes[j] = 0;
                places[j] = key + (u64)token * TOKEN_STEP + (u64)chunk * CHUNK_STEP;
                runs[j] = base + token * d.token_stride;
                starts[j] = chunk * CHUNK_BYTES;
                ends[j] = present ? min(run_bytes, starts[j] + CHUNK_BYTES) : starts[j];
                whole = whole && ((u64)(runs[j]) | (u64)ends[j]) % VECTOR_BYTES == 0;
            }
            whole = whole && d.dim_stride == d.element_bytes;
            const i64 longest = min(run_bytes, (i64)CHUNK_BYTES);
            const int vectors = (int)((longest + LINE_BYTES - 1) / LINE_BYTES) * (LINE_BYTES / VECTOR_BYTES);
            for (int vector = lane; vector < vectors; vector += lanes) {
                uint4 words[UNITS_AT_ONCE];
#pragma unroll
                for (int j = 0; j < UNITS_AT_ONCE; ++j) {
                    const i64 at = starts[j] + (i64)vector * VECTOR_BYTES;
                    if (at >= ends[j])
                        words[j] = make_uint4(0, 0, 0, 0);
                    else if (whole)
                        words[j] = __ldg(reinterpret_cast<const uint4 *>(runs[j] + at));
                    else
                        words[j] = gathered(d, runs[j], at, ends[j]);
                }
#pragma unroll
                for (int j = 0; j < UNITS_AT_ONCE; ++j) {
                    // A last chunk is filled up to whole lines, no further.
                    const i64 lines = (ends[j] - starts[j] + LINE_BYTES - 1) / LINE_BYTES;
                    if (vector < lines * (LINE_BYTES / VECTOR_BYTES))
                        hashes[j] += nh(words[j], keys[vector]);
                }
            }
#pragma unroll
            for (int j = 0; j < UNITS_AT_ONCE; ++j) {
                for (int other = lanes / 2; other > 0; other /= 2)
                    hashes[j] += __shfl_xor_sync(ALL_LANES, hashes[j], other);
                if (unit + j < units)
                    sum += mixed(hashes[j] ^ mixed(places[j]));
            }
        }
        if (lane == 0 && units > 0)
            atomicAdd(d.sums + d.rows[segment] * d.cell_count + cell, sum);
    }
}
