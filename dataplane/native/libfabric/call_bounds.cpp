// Stands between NIXL's LIBFABRIC plugin and libfabric, and bounds what the plugin leaves without a bound.
//
// The plugin repeats a send, a read and a look for completions for as long as libfabric answers "again", which is for ever
// if the peer has stopped or is gone. After too long "again" becomes "timed out" here, which the plugin takes for an
// error. Sends and reads are bounded always, since the plugin tries nothing else in between; looks for completions only
// while a call waits for its peer, since otherwise they are ordinary polling.
//
// The plugin also fails whichever transfer it happens to be asked about when libfabric tells of a failure, for good. So
// failures are held back here during such calls, and told when the plugin is asked for nothing in particular.
//
// This library is loaded before the plugin and into the global scope, so that the plugin opens its fabric through the
// fi_fabric below. From there on each object gets a copy of its table of operations in which some are wrapped. A
// fabric's and a domain's copies only lead on: providers look at these tables, so theirs is back in place whenever a
// provider is at work.

#include "fabric_abi.hpp"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

namespace {

using Clock = std::chrono::steady_clock;

std::atomic<int64_t> bound_ns{0};
std::atomic<uint64_t> endpoint_count{0};
std::atomic<int (*)(void*, Fabric**, void*)> real_fabric{nullptr};

// What the calling thread is about, and when it gives up.
struct Call {
  bool particular = false;
  bool waits = false;
  bool repeats = false;
  bool timed_out = false;
  int held_count = 0;
  Clock::time_point wait_until;
  Clock::time_point repeat_until;
};

thread_local Call call;

Clock::time_point from_now() { return Clock::now() + std::chrono::nanoseconds(bound_ns.load()); }

ssize_t time_out() {
  call.repeats = false;
  call.timed_out = true;
  return -ETIMEDOUT;
}

ssize_t repeated(ssize_t result) {
  if (result != -EAGAIN) {
    call.repeats = false;
    return result;
  }
  if (!call.repeats) {
    call.repeats = true;
    call.repeat_until = from_now();
    return result;
  }
  return Clock::now() < call.repeat_until ? result : time_out();
}

// Failures that were held back, by their queues.
class Held {
 public:
  void add(Queue* queue, const Failure& failure) {
    const std::lock_guard<std::mutex> guard(mutex_);
    failures_[queue].push_back(failure);
    ++count_;
  }

  bool has(Queue* queue) {
    if (count_.load() == 0) {
      return false;
    }
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = failures_.find(queue);
    return found != failures_.end() && !found->second.empty();
  }

  bool take(Queue* queue, Failure* failure) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = failures_.find(queue);
    if (found == failures_.end() || found->second.empty()) {
      return false;
    }
    *failure = found->second.front();
    found->second.pop_front();
    --count_;
    return true;
  }

  // A new queue may lie where an old one was.
  void forget(Queue* queue) {
    const std::lock_guard<std::mutex> guard(mutex_);
    const auto found = failures_.find(queue);
    if (found != failures_.end()) {
      count_ -= found->second.size();
      failures_.erase(found);
    }
  }

 private:
  std::mutex mutex_;
  std::map<Queue*, std::deque<Failure>> failures_;
  std::atomic<size_t> count_{0};
};

Held held;

// The original of a table stands right before its copy.
template <typename Ops>
Ops* original_of(Ops* ops) {
  return reinterpret_cast<Ops**>(ops)[-1];
}

// A copy of a provider's table, made once for each table: providers have a few, and objects may outlive each other.
template <typename Ops, typename Wrap>
Ops* wrapped(Ops* ops, Wrap wrap) {
  static std::mutex mutex;
  static std::map<Ops*, Ops*> copies;
  const std::lock_guard<std::mutex> guard(mutex);
  for (const auto& known : copies) {
    if (known.first == ops || known.second == ops) {
      return known.second;
    }
  }
  auto* room = static_cast<char*>(std::malloc(sizeof ops + ops->size));
  if (room == nullptr) {
    return nullptr;
  }
  std::memcpy(room, &ops, sizeof ops);
  std::memcpy(room + sizeof ops, ops, ops->size);
  auto* copy = reinterpret_cast<Ops*>(room + sizeof ops);
  wrap(copy);
  copies[ops] = copy;
  return copy;
}

ssize_t read_queue(Queue* queue, void* entries, size_t count) {
  const auto* original = original_of(queue->ops);
  if (!call.particular && held.has(queue)) {
    return -failure_available;
  }
  ssize_t result = original->read(queue, entries, count);
  while (call.particular && result == -failure_available) {
    Failure failure{};
    if (original->readerr(queue, &failure, 0) <= 0) {
      break;
    }
    held.add(queue, failure);
    ++call.held_count;
    result = original->read(queue, entries, count);
  }
  return result == -EAGAIN && call.waits && Clock::now() >= call.wait_until ? time_out() : result;
}

ssize_t read_failure(Queue* queue, Failure* failure, uint64_t flags) {
  return held.take(queue, failure) ? 1 : original_of(queue->ops)->readerr(queue, failure, flags);
}

ssize_t send_data(Endpoint* ep, const void* bytes, size_t size, void* desc, uint64_t data, uint64_t to, void* context) {
  return repeated(original_of(ep->msg)->senddata(ep, bytes, size, desc, data, to, context));
}

ssize_t read_remote(
    Endpoint* ep, void* bytes, size_t size, void* desc, uint64_t from, uint64_t address, uint64_t key, void* context) {
  return repeated(original_of(ep->rma)->read(ep, bytes, size, desc, from, address, key, context));
}

// While this lives, a domain has its provider's own table.
class ProvidersOwn {
 public:
  explicit ProvidersOwn(Domain* domain) : domain_(domain), copy_(domain->ops) { domain_->ops = original_of(copy_); }
  ~ProvidersOwn() {
    if (!stays_) {
      domain_->ops = copy_;
    }
  }
  ProvidersOwn(const ProvidersOwn&) = delete;
  ProvidersOwn& operator=(const ProvidersOwn&) = delete;
  void stays() { stays_ = true; }

 private:
  Domain* domain_;
  DomainOps* copy_;
  bool stays_ = false;
};

int open_addresses(Domain* domain, void* attributes, void** addresses, void* context) {
  const ProvidersOwn table(domain);
  return domain->ops->av_open(domain, attributes, addresses, context);
}

int open_queue(Domain* domain, void* attributes, Queue** queue, void* context) {
  const ProvidersOwn table(domain);
  const int error = domain->ops->cq_open(domain, attributes, queue, context);
  if (error != 0) {
    return error;
  }
  held.forget(*queue);
  auto* ops = wrapped((*queue)->ops, [](QueueOps* copy) {
    copy->read = read_queue;
    copy->readerr = read_failure;
  });
  (*queue)->ops = ops != nullptr ? ops : (*queue)->ops;
  return error;
}

// The last that the plugin opens.
int open_endpoint(Domain* domain, void* info, Endpoint** endpoint, void* context) {
  ProvidersOwn table(domain);
  const int error = domain->ops->endpoint(domain, info, endpoint, context);
  if (error != 0) {
    return error;
  }
  table.stays();
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
  fabric->ops = original_of(fabric->ops);
  const int error = fabric->ops->domain(fabric, info, domain, context);
  if (error != 0) {
    return error;
  }
  auto* ops = wrapped((*domain)->ops, [](DomainOps* copy) {
    copy->av_open = open_addresses;
    copy->cq_open = open_queue;
    copy->endpoint = open_endpoint;
  });
  (*domain)->ops = ops != nullptr ? ops : (*domain)->ops;
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

// Where libfabric's own fi_fabric is, and the bound. To be told once, before the plugin is loaded.
extern "C" void kvferry_bound_calls(void* fabric, int64_t nanoseconds) {
  real_fabric.store(reinterpret_cast<int (*)(void*, Fabric**, void*)>(fabric));
  bound_ns.store(nanoseconds);
}

// What this thread calls now is about one peer or transfer; does it wait for that?
extern "C" void kvferry_begin_particular(int waits) {
  call.particular = true;
  call.waits = waits != 0;
  call.timed_out = false;
  call.held_count = 0;
  if (call.waits) {
    call.wait_until = from_now();
  }
}

// It no longer is. Returns how many failures were held back since.
extern "C" int kvferry_end_particular() {
  call.particular = false;
  call.waits = false;
  return call.held_count;
}

// Whether a bound was met on this thread since this was last asked.
extern "C" int kvferry_take_timed_out() {
  const bool was = call.timed_out;
  call.timed_out = false;
  return was ? 1 : 0;
}

// Endpoints whose calls are bounded, in the life of the process.
extern "C" uint64_t kvferry_bounded_endpoints() { return endpoint_count.load(); }
