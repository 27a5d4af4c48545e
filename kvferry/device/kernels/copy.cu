// Copies byte runs from one window of memory into another: a whole plan in one launch.
//
// A plan is a table of regions. A region is runs of one size, found from pairs of bases by stepping along its axes, or
// runs of sizes of their own without axes. Its work is cut into tiles of at most TILE_BYTES_MAX bytes: some whole runs,
// or a chunk of one. A warp takes one tile after the other until none is left or the job is cancelled.
//
// The structures are written by kvferry/device/copy_table.py, byte for byte.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr u32 AXES_MAX = 8;
constexpr u32 LANES = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
constexpr u32 NO_TILE = 0xffffffffu;

// Flags of a region.
constexpr u32 BULK = 1;        // every run can be copied by the bulk copy engine
constexpr u32 MIXED = 2;       // runs start or end off the unit, or differ in size: each is copied by the whole warp
constexpr u32 WIDE_BASES = 4;  // pairs of 64-bit offsets; else of 32-bit multiples of 1 << base_shift

// n / value for n < 2^31: no division instruction.
struct Divisor {
  u32 value, magic, shift;
};

struct Axis {
  i64 source_stride, destination_stride;
  Divisor length;
  u32 reserved;
};

struct Region {
  u64 source, destination;  // addresses that the bases are relative to
  u64 bases;                // of the pairs in the plan, in bytes
  u64 lengths;              // of the runs' own sizes in the plan, in bytes; 0: all are run_bytes long
  u64 run_bytes;            // at most this
  u32 first_tile;
  u32 run_count;
  u32 runs_per_tile;
  u32 chunk_bytes;          // of a run that is cut; 0: tiles hold whole runs
  Divisor chunks_per_run;
  Divisor units_per_run;    // units of one run, or of a chunk
  u32 unit_bytes;
  u32 flags;
  u32 base_shift;
  u32 axis_count;
  Axis axes[AXES_MAX];
  u64 reserved;
};

// In device memory, one for each slot of the copier. The last block to end leaves the first three at zero; the others
// are written by the host, with the number of the launch that they are about.
struct Control {
  u32 taken;
  u32 ended_blocks;
  u64 copied_bytes;
  u32 cancelled_launch;
  u32 uploaded_launch;
  u64 reserved;
};

struct __align__(16) Launch {
  const u8* plan;   // in host memory, regions first; null: the plan comes with the launch
  Control* control;
  volatile u64* copied_bytes;  // in host memory
  u32 region_count;
  u32 tile_count;
  u32 number;
  u32 reserved;
  const u8* uploaded_plan;  // in device memory, once it is there; null: it does not come
  u8 carried_plan[CARRIED_BYTES_MAX];
};

static_assert(sizeof(Region) == REGION_BYTES, "the table is written with this size");
static_assert(sizeof(Launch) == LAUNCH_BYTES, "the parameters are written with this size");
static_assert(sizeof(Control) == CONTROL_BYTES, "the control is allocated with this size");

struct Piece {
  u64 source, destination;
  u32 bytes;
  u32 reserved;
};

// A piece that lies in a slot.
struct Held {
  u64 destination;
  u32 bytes;
  u32 slot_offset;
};

struct Tile {
  u32 first_run;
  u32 run_count;
  u64 offset;  // into the run
  u32 bytes;   // of each run
};

// A warp's next tile, asked for before it is needed.
struct Ticket {
  u32 tile;
  u32 cancelled_launch;
  u32 uploaded_launch;
};

__device__ __forceinline__ u32 divide(u32 n, const Divisor& by) {
  return static_cast<u32>((static_cast<u64>(n) * by.magic) >> (31 + by.shift));
}

__device__ __forceinline__ void read_news(const Launch& launch, Ticket& ticket) {
  asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(ticket.cancelled_launch), "=r"(ticket.uploaded_launch)
               : "l"(&launch.control->cancelled_launch)
               : "memory");
}

__device__ __forceinline__ Ticket first_ticket(const Launch& launch, u32 lane, u32 warp_in_all) {
  Ticket ticket{warp_in_all, 0, 0};
  if (lane == 0) read_news(launch, ticket);
  return ticket;
}

__device__ __forceinline__ Ticket take_ticket(const Launch& launch, u32 lane, u32 warps_in_all) {
  Ticket ticket{NO_TILE, 0, 0};
  if (lane == 0) {
    ticket.tile = warps_in_all + atomicAdd(&launch.control->taken, 1u);
    read_news(launch, ticket);
  }
  return ticket;
}

__device__ __forceinline__ const u8* first_plan(const Launch& launch) {
  return launch.plan ? launch.plan : launch.carried_plan;
}

// The tile of a ticket, for all lanes; NO_TILE at the end. The copy begins with the plan in host memory and goes on with
// the uploaded one as soon as that is there.
__device__ __forceinline__ u32 tile_of(const Launch& launch, const Ticket& ticket, const u8*& plan) {
  bool none = ticket.tile >= launch.tile_count || ticket.cancelled_launch == launch.number;
  u32 tile = __shfl_sync(ALL_LANES, none ? NO_TILE : ticket.tile, 0);
  if (launch.uploaded_plan != nullptr && plan != launch.uploaded_plan) {
    if (__shfl_sync(ALL_LANES, ticket.uploaded_launch, 0) == launch.number) {
      __threadfence();
      plan = launch.uploaded_plan;
    }
  }
  return tile;
}

__device__ __forceinline__ const Region& region_of(const Region* regions, u32 count, u32 tile, u32 lane) {
  bool begun = lane < count && regions[lane].first_tile <= tile;
  return regions[31 - __clz(__ballot_sync(ALL_LANES, begun))];
}

__device__ __forceinline__ Tile cut_tile(const Region& region, u32 tile) {
  u32 index = tile - region.first_tile;
  if (region.chunk_bytes == 0) {
    u32 first = index * region.runs_per_tile;
    return {first, min(region.runs_per_tile, region.run_count - first), 0, static_cast<u32>(region.run_bytes)};
  }
  u32 run = divide(index, region.chunks_per_run);
  u64 offset = static_cast<u64>(index - run * region.chunks_per_run.value) * region.chunk_bytes;
  u64 left = region.run_bytes - offset;
  return {run, 1, offset, left < region.chunk_bytes ? static_cast<u32>(left) : region.chunk_bytes};
}

// A run, or its part in the tile. What was read from the plan is only added up when it is needed, so that reading it can
// take its time.
struct Place {
  u64 source, destination;
  ulonglong2 bases;
  u32 bytes;

  __device__ __forceinline__ Piece piece(const Region& region) const {
    return {source + (bases.x << region.base_shift), destination + (bases.y << region.base_shift), bytes, 0};
  }
};

__device__ __forceinline__ Place locate(const u8* plan, const Region& region, const Tile& tile, u32 run) {
  Place place{region.source + tile.offset, region.destination + tile.offset, {0, 0}, tile.bytes};
  u32 left = run;
  for (u32 axis = region.axis_count; axis-- > 0;) {
    const Axis& step = region.axes[axis];
    u32 next = divide(left, step.length);
    i64 index = left - next * step.length.value;
    place.source += index * step.source_stride;
    place.destination += index * step.destination_stride;
    left = next;
  }
  const u8* bases = plan + region.bases;
  if (region.flags & WIDE_BASES) {
    place.bases = reinterpret_cast<const ulonglong2*>(bases)[left];
  } else {
    uint2 narrow = reinterpret_cast<const uint2*>(bases)[left];
    place.bases = {narrow.x, narrow.y};
  }
  if (region.lengths) place.bytes = reinterpret_cast<const u32*>(plan + region.lengths)[run];
  return place;
}

__device__ __forceinline__ void load(uint4& value, u64 at) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(at));
}

template <typename Unit>
__device__ __forceinline__ void load(Unit& value, u64 at) {
  value = *reinterpret_cast<const volatile Unit*>(at);
}

__device__ __forceinline__ void load(uint2& value, u64 at) {
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(at));
}

// Lanes are dealt out over the units of all pieces, so that short runs share an instruction.
template <typename Unit>
__device__ __noinline__ void copy_units(const Piece* pieces, u32 count, const Divisor& units_per_run, u32 units, u32 lane) {
  constexpr u32 IN_FLIGHT = 8;
  u32 total = count * units;
  for (u32 first = lane; first < total; first += LANES * IN_FLIGHT) {
    Unit values[IN_FLIGHT];
#pragma unroll
    for (u32 step = 0; step < IN_FLIGHT; ++step) {
      u32 unit = first + step * LANES;
      if (unit < total) {
        u32 run = divide(unit, units_per_run);
        load(values[step], pieces[run].source + (unit - run * units_per_run.value) * sizeof(Unit));
      }
    }
#pragma unroll
    for (u32 step = 0; step < IN_FLIGHT; ++step) {
      u32 unit = first + step * LANES;
      if (unit < total) {
        u32 run = divide(unit, units_per_run);
        u64 at = pieces[run].destination + (unit - run * units_per_run.value) * sizeof(Unit);
        *reinterpret_cast<Unit*>(at) = values[step];
      }
    }
  }
}

template <typename Unit>
__device__ void copy_body(u64 source, u64 destination, u32 bytes, u32 lane) {
  constexpr u32 IN_FLIGHT = 4;
  u32 units = bytes / sizeof(Unit);
  for (u32 first = lane; first < units; first += LANES * IN_FLIGHT) {
    Unit values[IN_FLIGHT];
#pragma unroll
    for (u32 step = 0; step < IN_FLIGHT; ++step) {
      u32 unit = first + step * LANES;
      if (unit < units) load(values[step], source + unit * sizeof(Unit));
    }
#pragma unroll
    for (u32 step = 0; step < IN_FLIGHT; ++step) {
      u32 unit = first + step * LANES;
      if (unit < units) reinterpret_cast<Unit*>(destination)[unit] = values[step];
    }
  }
}

// One run of any size and alignment, by the whole warp: bytes up to the widest unit that both sides share, then units,
// then bytes.
__device__ __noinline__ void copy_mixed(const Piece& piece, u32 lane) {
  u32 apart = static_cast<u32>(piece.source ^ piece.destination) & 15;
  u32 unit = apart ? apart & (0u - apart) : 16;
  u32 head = min(static_cast<u32>(0 - piece.destination) & (unit - 1), piece.bytes);
  u32 body = (piece.bytes - head) & ~(unit - 1);
  copy_body<u8>(piece.source, piece.destination, head, lane);
  u64 source = piece.source + head, destination = piece.destination + head;
  switch (unit) {
    case 16: copy_body<uint4>(source, destination, body, lane); break;
    case 8: copy_body<uint2>(source, destination, body, lane); break;
    case 4: copy_body<u32>(source, destination, body, lane); break;
    case 2: copy_body<u16>(source, destination, body, lane); break;
    default: copy_body<u8>(source, destination, body, lane);
  }
  copy_body<u8>(source + body, destination + body, piece.bytes - head - body, lane);
}

// A tile through registers. `pieces` is room for one piece of each lane.
__device__ u64 copy_tile(const u8* plan, const Region& region, const Tile& tile, Piece* pieces, u32 lane) {
  u64 copied = 0;
  for (u32 done = 0; done < tile.run_count; done += LANES) {
    u32 count = min(LANES, tile.run_count - done);
    __syncwarp();
    if (lane < count) {
      pieces[lane] = locate(plan, region, tile, tile.first_run + done + lane).piece(region);
      copied += pieces[lane].bytes;
    }
    __syncwarp();
    if (region.flags & MIXED) {
      for (u32 run = 0; run < count; ++run) copy_mixed(pieces[run], lane);
      continue;
    }
    u32 units = tile.bytes / region.unit_bytes;
    switch (region.unit_bytes) {
      case 16: copy_units<uint4>(pieces, count, region.units_per_run, units, lane); break;
      case 8: copy_units<uint2>(pieces, count, region.units_per_run, units, lane); break;
      case 4: copy_units<u32>(pieces, count, region.units_per_run, units, lane); break;
      case 2: copy_units<u16>(pieces, count, region.units_per_run, units, lane); break;
      default: copy_units<u8>(pieces, count, region.units_per_run, units, lane);
    }
  }
  return copied;
}

__device__ __forceinline__ Region* load_regions(const Launch& launch, u8* shared) {
  const u32* from = reinterpret_cast<const u32*>(first_plan(launch));
  u32* to = reinterpret_cast<u32*>(shared);
  u32 words = launch.region_count * (sizeof(Region) / sizeof(u32));
  for (u32 word = threadIdx.x; word < words; word += blockDim.x) to[word] = from[word];
  return reinterpret_cast<Region*>(shared);
}

// Adds up what was copied; the last block passes it on and leaves the control as it was found.
__device__ void end_block(const Launch& launch, u64 copied, u64* block_copied) {
  atomicAdd(block_copied, copied);
  __syncthreads();
  if (threadIdx.x != 0) return;
  Control* control = launch.control;
  atomicAdd(&control->copied_bytes, *block_copied);
  __threadfence();
  if (atomicAdd(&control->ended_blocks, 1u) != gridDim.x - 1) return;
  __threadfence();
  *launch.copied_bytes = atomicExch(&control->copied_bytes, 0ull);
  atomicExch(&control->taken, 0u);
  atomicExch(&control->ended_blocks, 0u);
  __threadfence_system();
}

extern "C" __global__ void __launch_bounds__(PLAIN_WARPS * 32, 1) copy_plain(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ u64 block_copied;
  u32 lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  u32 warps_in_all = gridDim.x * PLAIN_WARPS;
  Ticket ticket = first_ticket(launch, lane, warp * gridDim.x + blockIdx.x);
  if (threadIdx.x == 0) block_copied = 0;
  const Region* regions = load_regions(launch, shared);
  Piece* pieces = reinterpret_cast<Piece*>(shared + launch.region_count * sizeof(Region)) + warp * LANES;
  __syncthreads();
  const u8* plan = first_plan(launch);
  u64 copied = 0;
  for (;;) {
    u32 number = tile_of(launch, ticket, plan);
    if (number == NO_TILE) break;
    ticket = take_ticket(launch, lane, warps_in_all);
    const Region& region = region_of(regions, launch.region_count, number, lane);
    copied += copy_tile(plan, region, cut_tile(region, number), pieces, lane);
  }
  end_block(launch, copied, &block_copied);
}

#if __CUDA_ARCH__ >= 900

// Bulk asynchronous copies through shared memory. Each warp has a ring of slots of its own: a tile is loaded into the
// next one while earlier ones are still being loaded or stored; no other warp is waited for.
constexpr u32 RUNS_PER_LANE = BULK_RUNS_MAX / LANES;
constexpr u32 STORES_PENDING = BULK_SLOTS - 1 - BULK_LOADS;

static_assert(BULK_LOADS < BULK_SLOTS, "a slot that is loaded cannot be one that waits for its store");

__device__ __forceinline__ u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void bulk_load(u32 slot, u64 source, u32 bytes, u32 barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(slot),
               "l"(source), "r"(bytes), "r"(barrier)
               : "memory");
}

__device__ __forceinline__ void bulk_store(u64 destination, u32 slot, u32 bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination), "r"(slot), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void wait_loaded(u32 barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred loaded;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 loaded, [%0], %1;\n"
      "@!loaded bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// What a warp does next.
struct Work {
  u32 number;
  const Region* region;
  Tile tile;
  Place places[RUNS_PER_LANE];
};

__device__ __forceinline__ Work next_work(
    const Launch& launch, const Region* regions, const u8*& plan, Ticket& ticket, u32 lane, u32 warps_in_all) {
  Work work;
  work.number = tile_of(launch, ticket, plan);
  if (work.number == NO_TILE) return work;
  ticket = take_ticket(launch, lane, warps_in_all);
  work.region = &region_of(regions, launch.region_count, work.number, lane);
  work.tile = cut_tile(*work.region, work.number);
  if (!(work.region->flags & BULK)) return work;
#pragma unroll
  for (u32 step = 0; step < RUNS_PER_LANE; ++step) {
    u32 run = lane + step * LANES;
    if (run < work.tile.run_count) {
      work.places[step] = locate(plan, *work.region, work.tile, work.tile.first_run + run);
    } else {
      work.places[step] = Place{0, 0, {0, 0}, 0};
    }
  }
  return work;
}

__device__ __forceinline__ u64 load_slot(const Work& work, Held* held, u32 slot, u32 barrier, u32 lane) {
  Piece mine[RUNS_PER_LANE];
  u32 bytes = 0;
#pragma unroll
  for (u32 step = 0; step < RUNS_PER_LANE; ++step) {
    u32 run = lane + step * LANES;
    mine[step] = work.places[step].piece(*work.region);
    bytes += mine[step].bytes;
    held[run] = Held{mine[step].destination, mine[step].bytes, run * work.tile.bytes};
  }
  u32 expected = __reduce_add_sync(ALL_LANES, bytes);
  if (lane == 0) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(expected) : "memory");
  }
  __syncwarp();
#pragma unroll
  for (u32 step = 0; step < RUNS_PER_LANE; ++step) {
    u32 offset = (lane + step * LANES) * work.tile.bytes;
    if (mine[step].bytes) bulk_load(slot + offset, mine[step].source, mine[step].bytes, barrier);
  }
  return bytes;
}

__device__ __forceinline__ void store_slot(const Held* held, u32 slot, u32 lane) {
#pragma unroll
  for (u32 step = 0; step < RUNS_PER_LANE; ++step) {
    Held piece = held[lane + step * LANES];
    if (piece.bytes) bulk_store(piece.destination, slot + piece.slot_offset, piece.bytes);
  }
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

struct Ring {
  u64 barriers[BULK_SLOTS];
  Held held[BULK_SLOTS][BULK_RUNS_MAX];
  Piece plain[LANES];
};

extern "C" __global__ void __launch_bounds__(BULK_WARPS * 32, 1) copy_bulk(const __grid_constant__ Launch launch) {
  extern __shared__ __align__(128) u8 shared[];
  __shared__ u64 block_copied;
  __shared__ Ring rings[BULK_WARPS];
  u32 lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  u32 warps_in_all = gridDim.x * BULK_WARPS;
  Ticket ticket = first_ticket(launch, lane, warp * gridDim.x + blockIdx.x);
  Ring& ring = rings[warp];
  u32 slots = shared_address(shared) + warp * BULK_SLOTS * TILE_BYTES_MAX;
  if (lane < BULK_SLOTS) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&ring.barriers[lane])) : "memory");
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  if (threadIdx.x == 0) block_copied = 0;
  const Region* regions = load_regions(launch, shared + BULK_WARPS * BULK_SLOTS * TILE_BYTES_MAX);
  __syncthreads();

  u64 copied = 0;
  u32 loading = 0, storing = 0;  // tiles put into the ring, and tiles stored from it
  const u8* plan = first_plan(launch);
  Work work = next_work(launch, regions, plan, ticket, lane, warps_in_all);
  for (;;) {
    bool more = work.number != NO_TILE;
    if (more && !(work.region->flags & BULK)) {
      copied += copy_tile(plan, *work.region, work.tile, ring.plain, lane);
      work = next_work(launch, regions, plan, ticket, lane, warps_in_all);
      continue;
    }
    if (more) {
      asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(STORES_PENDING) : "memory");
      __syncwarp();
      u32 at = loading % BULK_SLOTS;
      copied += load_slot(work, ring.held[at], slots + at * TILE_BYTES_MAX, shared_address(&ring.barriers[at]), lane);
      ++loading;
      work = next_work(launch, regions, plan, ticket, lane, warps_in_all);
    } else if (storing == loading) {
      break;
    }
    if (!more || loading - storing > BULK_LOADS) {
      u32 at = storing % BULK_SLOTS;
      wait_loaded(shared_address(&ring.barriers[at]), storing / BULK_SLOTS % 2);
      store_slot(ring.held[at], slots + at * TILE_BYTES_MAX, lane);
      ++storing;
    }
  }
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
  end_block(launch, copied, &block_copied);
}

#endif
