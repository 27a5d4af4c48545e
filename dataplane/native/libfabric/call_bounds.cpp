// Bounds what NIXL's LIBFABRIC plugin leaves without a bound: it repeats a send, a read and a look for completions for as
// long as libfabric answers "again", which is for ever if the peer has stopped or is gone.
//
// This library is loaded before the plugin and into the global scope, so that the plugin opens its fabric through the
// fi_fabric below. From there on each object gets a copy of its table of operations. In an endpoint's and a completion
// queue's, the operations that are repeated are wrapped: once the calling thread's deadline has passed, "again" becomes
// "timed out", which the plugin takes for an error. Without a deadline nothing changes. A fabric's and a domain's copies
// only lead there: providers look at these tables, so theirs is back in place whenever a provider is at work.
//
// The structures are libfabric's public binary interface as far as it is needed here, which has not changed since 1.0.

#include <sys/types.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

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

using Clock = std::chrono::steady_clock;

thread_local bool has_deadline = false;
thread_local bool has_timed_out = false;
thread_local Clock::time_point deadline;

std::atomic<uint64_t> endpoint_count{0};
std::atomic<int (*)(void*, Fabric**, void*)> real_fabric{nullptr};

ssize_t within_bound(ssize_t result) {
  if (result != -EAGAIN || !has_deadline || Clock::now() < deadline) {
    return result;
  }
  has_timed_out = true;
  return -ETIMEDOUT;
}

// The original of a table stands right before its copy.
template <typename Ops>
const Ops* original_of(const Ops* ops) {
  return reinterpret_cast<const Ops* const*>(ops)[-1];
}

// A copy of a provider's table, made once for each table: providers have a few, and objects may outlive each other.
template <typename Ops, typename Wrap>
Ops* wrapped(Ops* ops, Wrap wrap) {
  static std::mutex mutex;
  static std::map<const Ops*, Ops*> copies;
  const std::lock_guard<std::mutex> guard(mutex);
  for (const auto& known : copies) {
    if (known.first == ops || known.second == ops) {
      return known.second;
    }
  }
  auto* room = static_cast<char*>(std::malloc(sizeof(const Ops*) + ops->size));
  if (room == nullptr) {
    return nullptr;
  }
  std::memcpy(room, &ops, sizeof ops);
  auto* copy = reinterpret_cast<Ops*>(room + sizeof ops);
  std::memcpy(copy, ops, ops->size);
  wrap(copy);
  copies[ops] = copy;
  return copy;
}

ssize_t read_queue(Queue* queue, void* entries, size_t count) {
  return within_bound(original_of(queue->ops)->read(queue, entries, count));
}

ssize_t send_data(Endpoint* ep, const void* bytes, size_t size, void* desc, uint64_t data, uint64_t to, void* context) {
  return within_bound(original_of(ep->msg)->senddata(ep, bytes, size, desc, data, to, context));
}

ssize_t read_remote(
    Endpoint* ep, void* bytes, size_t size, void* desc, uint64_t from, uint64_t address, uint64_t key, void* context) {
  return within_bound(original_of(ep->rma)->read(ep, bytes, size, desc, from, address, key, context));
}

// While this lives, a domain has its provider's own table.
class Original {
 public:
  explicit Original(Domain* domain) : domain_(domain), copy_(domain->ops) {
    domain_->ops = const_cast<DomainOps*>(original_of(copy_));
  }
  ~Original() {
    if (!stays_) {
      domain_->ops = copy_;
    }
  }
  Original(const Original&) = delete;
  Original& operator=(const Original&) = delete;
  void stays() { stays_ = true; }

 private:
  Domain* domain_;
  DomainOps* copy_;
  bool stays_ = false;
};

int open_addresses(Domain* domain, void* attributes, void** addresses, void* context) {
  const Original original(domain);
  return domain->ops->av_open(domain, attributes, addresses, context);
}

int open_queue(Domain* domain, void* attributes, Queue** queue, void* context) {
  const Original original(domain);
  const int error = domain->ops->cq_open(domain, attributes, queue, context);
  if (error == 0) {
    auto* ops = wrapped((*queue)->ops, [](QueueOps* copy) { copy->read = read_queue; });
    (*queue)->ops = ops != nullptr ? ops : (*queue)->ops;
  }
  return error;
}

// The last that the plugin opens.
int open_endpoint(Domain* domain, void* info, Endpoint** endpoint, void* context) {
  Original original(domain);
  const int error = domain->ops->endpoint(domain, info, endpoint, context);
  if (error != 0) {
    return error;
  }
  original.stays();
  auto* msg = wrapped((*endpoint)->msg, [](MessageOps* copy) { copy->senddata = send_data; });
  auto* rma = wrapped((*endpoint)->rma, [](RemoteMemoryOps* copy) { copy->read = read_remote; });
  if (msg != nullptr && rma != nullptr) {
    (*endpoint)->msg = msg;
    (*endpoint)->rma = rma;
    ++endpoint_count;
  }
  return error;
}

// A fabric has one domain.
int open_domain(Fabric* fabric, void* info, Domain** domain, void* context) {
  fabric->ops = const_cast<FabricOps*>(original_of(fabric->ops));
  const int error = fabric->ops->domain(fabric, info, domain, context);
  if (error == 0) {
    auto* ops = wrapped((*domain)->ops, [](DomainOps* copy) {
      copy->av_open = open_addresses;
      copy->cq_open = open_queue;
      copy->endpoint = open_endpoint;
    });
    (*domain)->ops = ops != nullptr ? ops : (*domain)->ops;
  }
  return error;
}

}  // namespace

// What the plugin finds in place of libfabric's own.
extern "C" int fi_fabric(void* attributes, Fabric** fabric, void* context) {
  const auto real = real_fabric.load();
  if (real == nullptr) {
    return -ENOSYS;
  }
  const int error = real(attributes, fabric, context);
  if (error == 0) {
    auto* ops = wrapped((*fabric)->ops, [](FabricOps* copy) { copy->domain = open_domain; });
    (*fabric)->ops = ops != nullptr ? ops : (*fabric)->ops;
  }
  return error;
}

// Where libfabric's own fi_fabric is. To be told once, before the plugin is loaded.
extern "C" void kvferry_set_fabric(void* address) {
  real_fabric.store(reinterpret_cast<int (*)(void*, Fabric**, void*)>(address));
}

// From now until the next call: so many nanoseconds for what this thread calls; 0: no bound.
extern "C" void kvferry_bound_calls(int64_t nanoseconds) {
  has_deadline = nanoseconds > 0;
  has_timed_out = false;
  if (has_deadline) {
    deadline = Clock::now() + std::chrono::nanoseconds(nanoseconds);
  }
}

// Whether a call of this thread has met its bound since that was set.
extern "C" int kvferry_bound_was_met() { return has_timed_out ? 1 : 0; }

// Endpoints whose calls are bounded, in the life of the process.
extern "C" uint64_t kvferry_bounded_endpoints() { return endpoint_count.load(); }
