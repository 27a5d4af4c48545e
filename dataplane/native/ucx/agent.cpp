#include "agent.hpp"

#include <algorithm>
#include <chrono>
#include <limits>

#include <unistd.h>

namespace kvferry::ucp {

// A get in flight. Peers have as many as the window is wide, so that none is made while bytes move.
struct Agent::Get {
    Batch *batch = nullptr;
    std::uint64_t bytes = 0;
};

struct Agent::Batch {
    Peer &peer;
    std::uint64_t number;
    const RemoteRegion &remote;
    RemoteKey key;
    const Region &local;
    Runs runs;
    std::size_t next = 0;      // run of which the next get is
    std::uint64_t posted = 0;  // bytes of that run
    std::uint32_t in_flight = 0;
    std::uint64_t arrived = 0; // bytes
    Status status = Status::OK;
    bool forgotten = false;

    bool has_more() const { return next < runs.lengths.size(); }
    void stop() { next = runs.lengths.size(); }
    void fail(Status failed) {
        status = status == Status::OK ? failed : status;
        stop();
    }
};

struct Agent::Peer {
    Peer(Agent &agent_, std::vector<RemoteRegion> regions_, bool watched_)
        : agent(agent_), regions(std::move(regions_)), watched(watched_), gets(agent.limits_.gets_max) {
        for (Get &get : gets)
            free_gets.push_back(&get);
    }

    Agent &agent;
    std::vector<RemoteRegion> regions;
    bool watched;
    Endpoint endpoint = nullptr;
    bool closed = false; // the endpoint's end is known
    Status status = Status::OK;
    std::vector<RemoteKey> keys;
    std::deque<Batch *> waiting; // with gets that have not gone out
    std::vector<Get> gets;
    std::vector<Get *> free_gets;
    std::uint64_t bytes_in_flight = 0;

    bool is_idle() const { return free_gets.size() == gets.size(); }
    void drop_keys() {
        for (const RemoteKey key : keys)
            agent.library_->rkey_destroy(key);
        keys.clear();
    }
};

namespace {

constexpr auto DRAIN_TIME_MAX = std::chrono::seconds(2);

void check_runs(const Runs &runs, std::uint64_t remote_size, std::uint64_t local_size) {
    const auto leaves = [](std::int64_t offset, std::int64_t length, std::uint64_t size) {
        return offset < 0 || static_cast<std::uint64_t>(offset) > size ||
               static_cast<std::uint64_t>(length) > size - static_cast<std::uint64_t>(offset);
    };
    if (runs.sources.size() != runs.lengths.size() || runs.destinations.size() != runs.lengths.size())
        throw PlanError("lengths", std::to_string(runs.lengths.size()), "the three arrays differ in size");
    for (std::size_t i = 0; i < runs.lengths.size(); ++i) {
        const std::string index = "[" + std::to_string(i) + "]";
        if (runs.lengths[i] <= 0)
            throw PlanError("lengths" + index, std::to_string(runs.lengths[i]), "must be positive");
        if (leaves(runs.sources[i], runs.lengths[i], remote_size))
            throw PlanError("source_offsets" + index, std::to_string(runs.sources[i]),
                            "leaves the peer's region of " + std::to_string(remote_size) + " bytes");
        if (leaves(runs.destinations[i], runs.lengths[i], local_size))
            throw PlanError("destination_offsets" + index, std::to_string(runs.destinations[i]),
                            "leaves the region of " + std::to_string(local_size) + " bytes");
    }
}

} // namespace

Agent::Agent(std::shared_ptr<const Library> library, const Limits &limits)
    : library_(std::move(library)), limits_(limits), process_(getpid()) {
    ContextParameters context;
    context.field_mask = ContextParameters::FEATURES;
    context.features = FEATURE_RMA;
    library_->check(library_->init(MAJOR, MINOR_MIN, &context, nullptr, &context_), "making a context");
    ContextAttributes attributes;
    attributes.field_mask = ContextAttributes::MEMORY_TYPES;
    WorkerParameters worker;
    worker.field_mask = WorkerParameters::THREAD_MODE;
    worker.thread_mode = THREAD_MODE_SERIALIZED;
    try {
        library_->check(library_->query(context_, &attributes), "asking for memory types");
        library_->check(library_->worker_create(context_, &worker, &worker_), "making a worker");
    } catch (...) {
        library_->cleanup(context_);
        throw;
    }
    memory_types_ = attributes.memory_types;
}

Agent::~Agent() { close(); }

std::unique_lock<std::mutex> Agent::enter() {
    // Before the lock: in a fork it may be held by a thread that is not there.
    if (getpid() != process_)
        throw AgentUnusable("this process is a fork: the agent belongs to process " + std::to_string(process_));
    std::unique_lock<std::mutex> lock(mutex_);
    if (context_ == nullptr)
        throw AgentUnusable("the agent is closed");
    return lock;
}

Agent::Peer &Agent::peer_of(std::uint64_t number) {
    const auto found = peers_.find(number);
    if (found == peers_.end())
        throw PlanError("peer", std::to_string(number), "is not connected");
    return *found->second;
}

Agent::Batch &Agent::batch_of(std::uint64_t number) {
    const auto found = batches_.find(number);
    if (found == batches_.end() || found->second->forgotten)
        throw PlanError("read", std::to_string(number), "is over, or never was");
    return *found->second;
}

const Agent::Region &Agent::region_of(std::uint32_t number) const {
    if (number >= regions_.size())
        throw PlanError("region", std::to_string(number), "there is no such region");
    return regions_[number];
}

std::uint32_t Agent::add_region(Window window, int memory_type) {
    const auto lock = enter();
    MemoryParameters memory;
    memory.field_mask = MemoryParameters::ADDRESS | MemoryParameters::LENGTH | MemoryParameters::MEMORY_TYPE;
    memory.address = reinterpret_cast<void *>(window.address);
    memory.length = window.size;
    memory.memory_type = memory_type;
    Region region{window, memory_type, nullptr};
    library_->check(library_->mem_map(context_, &memory, &region.memory), "registering memory");
    regions_.push_back(region);
    return static_cast<std::uint32_t>(regions_.size() - 1);
}

std::string Agent::region_key(std::uint32_t region) {
    const auto lock = enter();
    void *packed = nullptr;
    std::size_t size = 0;
    library_->check(library_->rkey_pack(context_, region_of(region).memory, &packed, &size), "packing a key");
    std::string key(static_cast<const char *>(packed), size);
    library_->rkey_buffer_release(packed);
    return key;
}

std::string Agent::address() {
    const auto lock = enter();
    Address *packed = nullptr;
    std::size_t size = 0;
    library_->check(library_->worker_get_address(worker_, &packed, &size), "getting the worker's address");
    std::string address(reinterpret_cast<const char *>(packed), size);
    library_->worker_release_address(worker_, packed);
    return address;
}

std::uint64_t Agent::connect(const std::string &address, const std::vector<RemoteRegion> &regions, bool sees_failures) {
    const auto lock = enter();
    auto peer = std::make_unique<Peer>(*this, regions, sees_failures);
    EndpointParameters endpoint;
    endpoint.field_mask =
        EndpointParameters::REMOTE_ADDRESS | EndpointParameters::ERROR_MODE | EndpointParameters::ERROR_HANDLER;
    endpoint.address = reinterpret_cast<const Address *>(address.data());
    endpoint.error_mode = sees_failures ? ERROR_MODE_PEER : ERROR_MODE_NONE;
    endpoint.error_handler = {&Agent::failed, peer.get()};
    library_->check(library_->ep_create(worker_, &endpoint, &peer->endpoint), "connecting");
    // From here on UCX knows the peer by its address.
    const std::uint64_t number = ++numbers_;
    Peer &made = *peers_.emplace(number, std::move(peer)).first->second;
    try {
        for (const RemoteRegion &region : made.regions) {
            RemoteKey key = nullptr;
            library_->check(library_->ep_rkey_unpack(made.endpoint, region.key.data(), &key), "unpacking a key");
            made.keys.push_back(key);
        }
    } catch (...) {
        close_endpoint(made);
        removed_.push_back(std::move(peers_.at(number)));
        peers_.erase(number);
        throw;
    }
    return number;
}

void Agent::disconnect(std::uint64_t number) {
    const auto lock = enter();
    Peer &peer = peer_of(number);
    for (auto at = batches_.begin(); at != batches_.end();) {
        Batch &batch = *at->second;
        if (&batch.peer == &peer) {
            batch.stop();
            batch.forgotten = true;
        }
        at = batch.forgotten && batch.in_flight == 0 ? batches_.erase(at) : std::next(at);
    }
    peer.waiting.clear();
    close_endpoint(peer);
    removed_.push_back(std::move(peers_.at(number)));
    peers_.erase(number);
}

void Agent::close_endpoint(Peer &peer) {
    if (peer.is_idle())
        peer.drop_keys();
    RequestParameters parameters;
    parameters.field_mask = RequestParameters::CALLBACK | RequestParameters::USER_DATA | RequestParameters::FLAGS;
    parameters.flags = peer.watched ? CLOSE_FORCE : 0;
    parameters.user_data = &peer;
    parameters.callback = [](void *request, Status, void *closing) {
        auto &ended = *static_cast<Peer *>(closing);
        ended.closed = true;
        ended.agent.library_->request_free(request);
    };
    peer.closed = !is_request(library_->ep_close(peer.endpoint, &parameters));
}

std::uint64_t Agent::read(std::uint64_t number, std::uint32_t remote, std::uint32_t local, Runs runs) {
    const auto lock = enter();
    Peer &peer = peer_of(number);
    if (remote >= peer.regions.size())
        throw PlanError("remote", std::to_string(remote), "the peer has no such region");
    const Region &region = region_of(local);
    check_runs(runs, peer.regions[remote].size, region.window.size);
    if (peer.status != Status::OK)
        throw Failure(peer.status, "reading: " + library_->text(peer.status));
    const std::uint64_t made = ++numbers_;
    auto batch = std::make_unique<Batch>(
        Batch{peer, made, peer.regions[remote], peer.keys[remote], region, std::move(runs)});
    if (batch->has_more())
        peer.waiting.push_back(batch.get());
    batches_.emplace(made, std::move(batch));
    std::uint32_t gets_left = limits_.step_gets_max;
    std::uint64_t bytes_left = limits_.step_bytes_max;
    post(peer, gets_left, bytes_left);
    return made;
}

void Agent::cancel(std::uint64_t batch) {
    const auto lock = enter();
    batch_of(batch).stop();
}

Progress Agent::poll(std::uint64_t number) {
    const auto lock = enter();
    Batch &batch = batch_of(number);
    step();
    if (batch.peer.status != Status::OK && (batch.has_more() || batch.in_flight > 0))
        batch.fail(batch.peer.status);
    const bool done = batch.in_flight == 0 && !batch.has_more();
    // Of a dead peer UCX says of some gets only that input failed.
    const bool by_peer = batch.status != Status::OK && batch.peer.status != Status::OK;
    const Progress told{done, by_peer ? batch.peer.status : batch.status, batch.arrived};
    batch.forgotten = done || batch.status != Status::OK;
    settle(batch);
    return told;
}

void Agent::progress() {
    const auto lock = enter();
    step();
}

std::uint64_t Agent::gets_in_flight() {
    const auto lock = enter();
    std::uint64_t count = 0;
    for (const auto &[number, peer] : peers_)
        count += peer->gets.size() - peer->free_gets.size();
    return count;
}

void Agent::step() {
    for (std::uint32_t poll = 0; poll < limits_.polls && library_->worker_progress(worker_) > 0; ++poll) {
    }
    std::uint32_t gets_left = limits_.step_gets_max;
    std::uint64_t bytes_left = limits_.step_bytes_max;
    for (const auto &[number, peer] : peers_)
        post(*peer, gets_left, bytes_left);
    const auto gone = [](const std::unique_ptr<Peer> &peer) { return peer->closed && peer->is_idle(); };
    removed_.erase(std::remove_if(removed_.begin(), removed_.end(), gone), removed_.end());
}

void Agent::post(Peer &peer, std::uint32_t &gets_left, std::uint64_t &bytes_left) {
    while (!peer.waiting.empty() && gets_left > 0 && bytes_left > 0 && peer.status == Status::OK) {
        Batch &batch = *peer.waiting.front();
        if (!batch.has_more()) {
            peer.waiting.pop_front();
            continue;
        }
        const std::uint64_t left = static_cast<std::uint64_t>(batch.runs.lengths[batch.next]) - batch.posted;
        const std::uint64_t bytes = std::min(left, limits_.chunk_bytes_max);
        if (peer.free_gets.empty() || (!peer.is_idle() && peer.bytes_in_flight + bytes > limits_.bytes_max))
            return;
        post_one(peer, batch, bytes);
        --gets_left;
        bytes_left -= std::min(bytes, bytes_left);
    }
}

void Agent::post_one(Peer &peer, Batch &batch, std::uint64_t bytes) {
    Get &get = *peer.free_gets.back();
    peer.free_gets.pop_back();
    get = {&batch, bytes};
    ++batch.in_flight;
    peer.bytes_in_flight += bytes;
    const std::uint64_t source = static_cast<std::uint64_t>(batch.runs.sources[batch.next]) + batch.posted;
    const std::uint64_t destination = static_cast<std::uint64_t>(batch.runs.destinations[batch.next]) + batch.posted;
    batch.posted += bytes;
    if (batch.posted == static_cast<std::uint64_t>(batch.runs.lengths[batch.next])) {
        ++batch.next;
        batch.posted = 0;
    }
    RequestParameters parameters;
    parameters.field_mask = RequestParameters::CALLBACK | RequestParameters::USER_DATA | RequestParameters::MEMORY |
                            RequestParameters::MEMORY_TYPE;
    parameters.callback = &Agent::completed;
    parameters.user_data = &get;
    parameters.memory = batch.local.memory;
    parameters.memory_type = batch.local.memory_type;
    void *returned = library_->get(batch.peer.endpoint, reinterpret_cast<void *>(batch.local.window.address + destination),
                                   bytes, batch.remote.address + source, batch.key, &parameters);
    if (!is_request(returned))
        ended(get, status_of(returned));
}

void Agent::ended(Get &get, Status status) {
    Batch &batch = *get.batch;
    Peer &peer = batch.peer;
    if (status == Status::OK)
        batch.arrived += get.bytes;
    else
        batch.fail(status);
    --batch.in_flight;
    peer.bytes_in_flight -= get.bytes;
    peer.free_gets.push_back(&get);
    settle(batch);
}

void Agent::completed(void *request, Status status, void *get_pointer) {
    Get &get = *static_cast<Get *>(get_pointer);
    Agent &agent = get.batch->peer.agent;
    agent.ended(get, status);
    agent.library_->request_free(request);
}

void Agent::failed(void *peer, Endpoint, Status status) { static_cast<Peer *>(peer)->status = status; }

void Agent::settle(Batch &batch) {
    if (batch.forgotten && batch.in_flight == 0) {
        auto &waiting = batch.peer.waiting;
        waiting.erase(std::remove(waiting.begin(), waiting.end(), &batch), waiting.end());
        batches_.erase(batch.number);
    }
}

// What needs no answer of a peer ends here: UCX aborts where copies from another process's memory are still queued as
// their worker is destroyed. Nothing more is posted, so that there is ever less of it.
void Agent::drain() {
    const auto limit = std::chrono::steady_clock::now() + DRAIN_TIME_MAX;
    while (library_->worker_progress(worker_) > 0 && std::chrono::steady_clock::now() < limit) {
    }
}

void Agent::close() {
    if (getpid() != process_)
        return;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (context_ == nullptr)
        return;
    for (const auto &[number, peer] : peers_) {
        peer->waiting.clear();
        if (peer->watched)
            close_endpoint(*peer);
    }
    // Only who reads has such copies. A source would take up requests of readers that are gone, where UCX aborts as well.
    if (std::any_of(peers_.begin(), peers_.end(), [](const auto &known) { return !known.second->is_idle(); }))
        drain();
    // Gets in flight refer to the keys: what they hold then goes with the worker.
    for (const auto &[number, peer] : peers_)
        if (peer->is_idle())
            peer->drop_keys();
    library_->worker_destroy(worker_);
    for (const Region &region : regions_)
        library_->mem_unmap(context_, region.memory);
    library_->cleanup(context_);
    context_ = nullptr;
    batches_.clear();
    peers_.clear();
    removed_.clear();
}

} // namespace kvferry::ucp
