// libfabric's public binary interface, as far as call_bounds.cpp needs it. It has not changed since libfabric 1.0; tables
// of operations say their size and grow at the end.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

struct Fid {
  size_t fclass;
  void* context;
  void* ops;
};

struct FabricOps;
struct DomainOps;
struct QueueOps;
struct MessageOps;
struct RemoteMemoryOps;

struct Fabric {
  Fid fid;
  FabricOps* ops;
};

struct Domain {
  Fid fid;
  DomainOps* ops;
  void* mr;
};

struct Queue {
  Fid fid;
  QueueOps* ops;
};

struct Endpoint {
  Fid fid;
  void* ops;
  void* cm;
  MessageOps* msg;
  RemoteMemoryOps* rma;
};

// What a completion queue tells of a failure; a later field exists for callers of newer interfaces than NIXL's.
struct Failure {
  void* op_context;
  uint64_t flags;
  size_t len;
  void* buf;
  uint64_t data;
  uint64_t tag;
  size_t olen;
  int err;
  int prov_errno;
  void* err_data;
  size_t err_data_size;
};

using Unused = void (*)();

struct FabricOps {
  size_t size;
  int (*domain)(Fabric*, void*, Domain**, void*);
};

struct DomainOps {
  size_t size;
  int (*av_open)(Domain*, void*, void**, void*);
  int (*cq_open)(Domain*, void*, Queue**, void*);
  int (*endpoint)(Domain*, void*, Endpoint**, void*);
};

struct QueueOps {
  size_t size;
  ssize_t (*read)(Queue*, void*, size_t);
  Unused readfrom;
  ssize_t (*readerr)(Queue*, Failure*, uint64_t);
};

struct MessageOps {
  size_t size;
  Unused recv, recvv, recvmsg, send, sendv, sendmsg, inject;
  ssize_t (*senddata)(Endpoint*, const void*, size_t, void*, uint64_t, uint64_t, void*);
};

struct RemoteMemoryOps {
  size_t size;
  ssize_t (*read)(Endpoint*, void*, size_t, void*, uint64_t, uint64_t, uint64_t, void*);
};

constexpr int failure_available = 259;  // FI_EAVAIL
