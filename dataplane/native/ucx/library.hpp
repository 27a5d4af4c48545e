// UCX as it is found at run time. Nothing is linked to it: a kvferry without UCX loads and runs everything else.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "abi.hpp"

namespace kvferry::ucp {

// No UCX under that name, or none that can be used.
struct LibraryUnusable : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A call that UCX refused.
struct Failure : std::runtime_error {
    Failure(Status status_, const std::string &what) : std::runtime_error(what), status(status_) {}
    Status status;
};

struct Library {
    // `file`: a name for the dynamic loader, or a path. It stays loaded for the life of the process.
    static std::shared_ptr<const Library> open(const std::string &file);

    // Throws Failure unless `status` is OK.
    void check(Status status, const char *action) const;
    std::string text(Status status) const { return status_string(status); }

    std::string version;

    void (*get_version)(unsigned *, unsigned *, unsigned *) = nullptr;
    const char *(*status_string)(Status) = nullptr;
    Status (*init)(unsigned, unsigned, const ContextParameters *, const void *, Context *) = nullptr;
    Status (*query)(Context, ContextAttributes *) = nullptr;
    void (*cleanup)(Context) = nullptr;
    Status (*worker_create)(Context, const WorkerParameters *, Worker *) = nullptr;
    void (*worker_destroy)(Worker) = nullptr;
    Status (*worker_get_address)(Worker, Address **, std::size_t *) = nullptr;
    void (*worker_release_address)(Worker, Address *) = nullptr;
    unsigned (*worker_progress)(Worker) = nullptr;
    Status (*mem_map)(Context, const MemoryParameters *, Memory *) = nullptr;
    Status (*mem_unmap)(Context, Memory) = nullptr;
    Status (*rkey_pack)(Context, Memory, void **, std::size_t *) = nullptr;
    void (*rkey_buffer_release)(void *) = nullptr;
    Status (*ep_create)(Worker, const EndpointParameters *, Endpoint *) = nullptr;
    void *(*ep_close)(Endpoint, const RequestParameters *) = nullptr;
    Status (*ep_rkey_unpack)(Endpoint, const void *, RemoteKey *) = nullptr;
    void (*rkey_destroy)(RemoteKey) = nullptr;
    void *(*get)(Endpoint, void *, std::size_t, std::uint64_t, RemoteKey, const RequestParameters *) = nullptr;
    void (*request_free)(void *) = nullptr;
};

// What a call returned that may go on: nothing (it is done), a status, or a request.
inline bool is_request(const void *returned) {
    return returned != nullptr && reinterpret_cast<std::uintptr_t>(returned) <
                                      static_cast<std::uintptr_t>(static_cast<std::intptr_t>(Status::LAST));
}

inline Status status_of(const void *returned) {
    return static_cast<Status>(reinterpret_cast<std::intptr_t>(returned));
}

} // namespace kvferry::ucp
