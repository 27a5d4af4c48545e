// One end of direct UCX: a context and a worker of its own, memory that peers may read, and reads of theirs.
//
// A read is a batch of pieces. They go out as gets of at most chunk_bytes_max, and never more than a window of them for
// one peer; what has not gone out yet can be cancelled at any time, what has goes on until UCX or the end of the worker.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <sys/types.h>

#include "../plan.hpp"
#include "library.hpp"

namespace kvferry::ucp {

struct Limits {
    std::uint32_t gets_max;       // in flight to one peer
    std::uint64_t bytes_max;      // of these; one get is always possible
    std::uint64_t chunk_bytes_max; // of one get
    std::uint32_t step_gets_max;  // posted by one call
    std::uint64_t step_bytes_max; // of these; one get is always possible
    std::uint32_t polls;          // of the worker by one call
};

// The agent is closed, or belongs to the process that this one was forked from.
struct AgentUnusable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Memory of a peer as it described it.
struct RemoteRegion {
    std::uint64_t address;
    std::uint64_t size;
    std::string key;
};

// How far a batch is. A batch that is done, or whose failure was told, is forgotten.
struct Progress {
    bool done;             // nothing of it is in flight, and no more of it goes out
    Status status;         // of the first get that failed; OK if none did
    std::uint64_t bytes;   // arrived
};

class Agent {
  public:
    Agent(std::shared_ptr<const Library> library, const Limits &limits);
    Agent(const Agent &) = delete;
    Agent &operator=(const Agent &) = delete;
    ~Agent();

    // Whether memory of a kind can be registered: 0 is the host's, 1 CUDA's.
    bool supports(int memory_type) const { return (memory_types_ >> memory_type & 1) != 0; }
    // Registers memory; returns its number.
    std::uint32_t add_region(Window window, int memory_type);
    std::string region_key(std::uint32_t region);
    std::string address();

    // `sees_failures`: have UCX watch the peer, which rules some transports out. Returns the peer's number.
    std::uint64_t connect(const std::string &address, const std::vector<RemoteRegion> &regions, bool sees_failures);
    void disconnect(std::uint64_t peer);

    // Runs: offsets from the starts of the peer's region and of one's own. Returns the batch's number.
    // Throws PlanError if one leaves its region, before anything is read.
    std::uint64_t read(std::uint64_t peer, std::uint32_t remote, std::uint32_t local, Runs runs);
    void cancel(std::uint64_t batch);
    Progress poll(std::uint64_t batch);
    void progress();
    std::uint64_t gets_in_flight();

    // Destroys the worker: nothing that it was asked for arrives after this. Does nothing in a fork.
    void close();

  private:
    struct Peer;
    struct Batch;
    struct Get;
    struct Region {
        Window window;
        int memory_type;
        Memory memory;
    };

    std::unique_lock<std::mutex> enter();
    Peer &peer_of(std::uint64_t number);
    Batch &batch_of(std::uint64_t number);
    const Region &region_of(std::uint32_t number) const;
    void step();
    void post(Peer &peer, std::uint32_t &gets_left, std::uint64_t &bytes_left);
    void post_one(Peer &peer, Batch &batch, std::uint64_t bytes);
    void ended(Get &get, Status status);
    void settle(Batch &batch);
    void close_endpoint(Peer &peer);
    static void completed(void *request, Status status, void *get);
    static void failed(void *peer, Endpoint endpoint, Status status);

    const std::shared_ptr<const Library> library_;
    const Limits limits_;
    const pid_t process_;
    std::mutex mutex_;
    Context context_ = nullptr;
    Worker worker_ = nullptr;
    std::uint64_t memory_types_ = 0;
    std::deque<Region> regions_; // batches refer to them
    std::map<std::uint64_t, std::unique_ptr<Peer>> peers_;
    // Removed while gets of theirs were in flight, which refer to them until the worker is destroyed.
    std::vector<std::unique_ptr<Peer>> removed_;
    std::map<std::uint64_t, std::unique_ptr<Batch>> batches_;
    std::uint64_t numbers_ = 0;
};

} // namespace kvferry::ucp
