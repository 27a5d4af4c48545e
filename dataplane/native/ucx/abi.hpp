// The few declarations of UCP that are used here, so that nothing of UCX is needed to build. UCP keeps them compatible
// within a major version: structures say by a mask which of their fields are set, and only ever grow at the end.
// A test compiles `same_abi.cpp` against the headers of the UCX that is installed, which proves them equal.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvferry::ucp {

// Which releases were tried: the declarations hold for all of a major version.
inline constexpr unsigned MAJOR = 1;
inline constexpr unsigned MINOR_MIN = 13;

enum class Status : std::int8_t {
    OK = 0,
    IN_PROGRESS = 1,
    LAST = -100,
};

using Context = struct OpaqueContext *;
using Worker = struct OpaqueWorker *;
using Endpoint = struct OpaqueEndpoint *;
using Memory = struct OpaqueMemory *;
using RemoteKey = struct OpaqueRemoteKey *;
using Address = struct OpaqueAddress;

using RequestCallback = void (*)(void *request, Status status, void *user_data);
using ErrorCallback = void (*)(void *argument, Endpoint endpoint, Status status);

inline constexpr std::uint64_t FEATURE_RMA = 1u << 1;
inline constexpr int THREAD_MODE_SERIALIZED = 1;
inline constexpr int ERROR_MODE_NONE = 0;
inline constexpr int ERROR_MODE_PEER = 1;
inline constexpr std::uint32_t CLOSE_FORCE = 1u << 0;

struct ContextParameters {
    static constexpr std::uint64_t FEATURES = 1u << 0;
    std::uint64_t field_mask = 0;
    std::uint64_t features = 0;
    std::uint64_t rest[14] = {};
};

struct ContextAttributes {
    static constexpr std::uint64_t MEMORY_TYPES = 1u << 2;
    std::uint64_t field_mask = 0;
    std::size_t request_size = 0;
    int thread_mode = 0;
    std::uint64_t memory_types = 0;
    std::uint64_t rest[32] = {};
};

struct WorkerParameters {
    static constexpr std::uint64_t THREAD_MODE = 1u << 0;
    std::uint64_t field_mask = 0;
    int thread_mode = 0;
    std::uint64_t rest[32] = {};
};

struct MemoryParameters {
    static constexpr std::uint64_t ADDRESS = 1u << 0;
    static constexpr std::uint64_t LENGTH = 1u << 1;
    static constexpr std::uint64_t MEMORY_TYPE = 1u << 4;
    std::uint64_t field_mask = 0;
    void *address = nullptr;
    std::size_t length = 0;
    unsigned flags = 0;
    unsigned protection = 0;
    int memory_type = 0;
    std::uint64_t rest[8] = {};
};

struct ErrorHandler {
    ErrorCallback callback = nullptr;
    void *argument = nullptr;
};

struct EndpointParameters {
    static constexpr std::uint64_t REMOTE_ADDRESS = 1u << 0;
    static constexpr std::uint64_t ERROR_MODE = 1u << 1;
    static constexpr std::uint64_t ERROR_HANDLER = 1u << 2;
    std::uint64_t field_mask = 0;
    const Address *address = nullptr;
    int error_mode = ERROR_MODE_NONE;
    ErrorHandler error_handler;
    std::uint64_t rest[16] = {};
};

struct RequestParameters {
    static constexpr std::uint32_t CALLBACK = 1u << 1;
    static constexpr std::uint32_t USER_DATA = 1u << 2;
    static constexpr std::uint32_t FLAGS = 1u << 4;
    static constexpr std::uint32_t MEMORY_TYPE = 1u << 6;
    static constexpr std::uint32_t MEMORY = 1u << 8;
    std::uint32_t field_mask = 0;
    std::uint32_t flags = 0;
    void *request = nullptr;
    RequestCallback callback = nullptr;
    std::uint64_t datatype = 0;
    void *user_data = nullptr;
    void *reply_buffer = nullptr;
    int memory_type = 0;
    void *received = nullptr;
    Memory memory = nullptr;
    std::uint64_t rest[8] = {};
};

} // namespace kvferry::ucp
