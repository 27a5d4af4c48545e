#include "library.hpp"

#include <dlfcn.h>

namespace kvferry::ucp {

namespace {

template <typename Function> void resolve(void *library, const char *name, Function &function) {
    void *symbol = dlsym(library, name);
    if (symbol == nullptr)
        throw LibraryUnusable(std::string("lacks ") + name);
    function = reinterpret_cast<Function>(symbol);
}

void resolve_all(void *library, Library &made) {
    resolve(library, "ucp_get_version", made.get_version);
    resolve(library, "ucs_status_string", made.status_string);
    resolve(library, "ucp_init_version", made.init);
    resolve(library, "ucp_context_query", made.query);
    resolve(library, "ucp_cleanup", made.cleanup);
    resolve(library, "ucp_worker_create", made.worker_create);
    resolve(library, "ucp_worker_destroy", made.worker_destroy);
    resolve(library, "ucp_worker_get_address", made.worker_get_address);
    resolve(library, "ucp_worker_release_address", made.worker_release_address);
    resolve(library, "ucp_worker_progress", made.worker_progress);
    resolve(library, "ucp_mem_map", made.mem_map);
    resolve(library, "ucp_mem_unmap", made.mem_unmap);
    resolve(library, "ucp_rkey_pack", made.rkey_pack);
    resolve(library, "ucp_rkey_buffer_release", made.rkey_buffer_release);
    resolve(library, "ucp_ep_create", made.ep_create);
    resolve(library, "ucp_ep_close_nbx", made.ep_close);
    resolve(library, "ucp_ep_rkey_unpack", made.ep_rkey_unpack);
    resolve(library, "ucp_rkey_destroy", made.rkey_destroy);
    resolve(library, "ucp_get_nbx", made.get);
    resolve(library, "ucp_request_free", made.request_free);
}

} // namespace

std::shared_ptr<const Library> Library::open(const std::string &file) {
    void *library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr)
        throw LibraryUnusable(dlerror());
    auto made = std::make_shared<Library>();
    resolve(library, "ucp_get_version", made->get_version);
    unsigned major = 0, minor = 0, release = 0;
    made->get_version(&major, &minor, &release);
    made->version = std::to_string(major) + "." + std::to_string(minor) + "." + std::to_string(release);
    if (major != MAJOR || minor < MINOR_MIN)
        throw LibraryUnusable("is UCX " + made->version + ", not " + std::to_string(MAJOR) + "." +
                              std::to_string(MINOR_MIN) + " or a later one of " + std::to_string(MAJOR));
    resolve_all(library, *made);
    return made;
}

void Library::check(Status status, const char *action) const {
    if (status != Status::OK)
        throw Failure(status, std::string(action) + ": " + text(status));
}

} // namespace kvferry::ucp
