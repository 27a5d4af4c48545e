// Compiled, never run: proves that `abi.hpp` says what the headers of an installed UCX say.
// <compiler> -std=c++17 -fsyntax-only -I <folder with ucp/api/ucp.h> same_abi.cpp
#include <cstddef>
#include <ucp/api/ucp.h>

#include "abi.hpp"

namespace ours = kvferry::ucp;

#define SAME_FIELD(Ours, our_field, Theirs, their_field)                                                              \
    static_assert(offsetof(Ours, our_field) == offsetof(Theirs, their_field));                                        \
    static_assert(sizeof(Ours::our_field) == sizeof(Theirs::their_field))
// What we hand over has to hold all that UCX may read, and what we receive all that it may write.
#define HOLDS(Ours, Theirs)                                                                                            \
    static_assert(sizeof(Ours) >= sizeof(Theirs));                                                                     \
    static_assert(alignof(Ours) == alignof(Theirs))
#define SAME_VALUE(ours_, theirs_) static_assert(static_cast<long long>(ours_) == static_cast<long long>(theirs_))

static_assert(sizeof(ours::Status) == sizeof(ucs_status_t));
SAME_VALUE(ours::Status::OK, UCS_OK);
SAME_VALUE(ours::Status::IN_PROGRESS, UCS_INPROGRESS);
SAME_VALUE(ours::Status::LAST, UCS_ERR_LAST);
SAME_VALUE(ours::MAJOR, UCP_API_MAJOR);
static_assert(ours::MINOR_MIN <= UCP_API_MINOR);

HOLDS(ours::ContextParameters, ucp_params_t);
SAME_FIELD(ours::ContextParameters, field_mask, ucp_params_t, field_mask);
SAME_FIELD(ours::ContextParameters, features, ucp_params_t, features);
SAME_VALUE(ours::ContextParameters::FEATURES, UCP_PARAM_FIELD_FEATURES);
SAME_VALUE(ours::FEATURE_RMA, UCP_FEATURE_RMA);

HOLDS(ours::ContextAttributes, ucp_context_attr_t);
SAME_FIELD(ours::ContextAttributes, field_mask, ucp_context_attr_t, field_mask);
SAME_FIELD(ours::ContextAttributes, memory_types, ucp_context_attr_t, memory_types);
SAME_VALUE(ours::ContextAttributes::MEMORY_TYPES, UCP_ATTR_FIELD_MEMORY_TYPES);

HOLDS(ours::WorkerParameters, ucp_worker_params_t);
SAME_FIELD(ours::WorkerParameters, field_mask, ucp_worker_params_t, field_mask);
SAME_FIELD(ours::WorkerParameters, thread_mode, ucp_worker_params_t, thread_mode);
SAME_VALUE(ours::WorkerParameters::THREAD_MODE, UCP_WORKER_PARAM_FIELD_THREAD_MODE);
SAME_VALUE(ours::THREAD_MODE_SERIALIZED, UCS_THREAD_MODE_SERIALIZED);

HOLDS(ours::MemoryParameters, ucp_mem_map_params_t);
SAME_FIELD(ours::MemoryParameters, field_mask, ucp_mem_map_params_t, field_mask);
SAME_FIELD(ours::MemoryParameters, address, ucp_mem_map_params_t, address);
SAME_FIELD(ours::MemoryParameters, length, ucp_mem_map_params_t, length);
SAME_FIELD(ours::MemoryParameters, memory_type, ucp_mem_map_params_t, memory_type);
SAME_VALUE(ours::MemoryParameters::ADDRESS, UCP_MEM_MAP_PARAM_FIELD_ADDRESS);
SAME_VALUE(ours::MemoryParameters::LENGTH, UCP_MEM_MAP_PARAM_FIELD_LENGTH);
SAME_VALUE(ours::MemoryParameters::MEMORY_TYPE, UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE);
SAME_VALUE(0, UCS_MEMORY_TYPE_HOST);
SAME_VALUE(1, UCS_MEMORY_TYPE_CUDA);

HOLDS(ours::EndpointParameters, ucp_ep_params_t);
SAME_FIELD(ours::EndpointParameters, field_mask, ucp_ep_params_t, field_mask);
SAME_FIELD(ours::EndpointParameters, address, ucp_ep_params_t, address);
SAME_FIELD(ours::EndpointParameters, error_mode, ucp_ep_params_t, err_mode);
SAME_FIELD(ours::EndpointParameters, error_handler, ucp_ep_params_t, err_handler);
SAME_FIELD(ours::ErrorHandler, callback, ucp_err_handler_t, cb);
SAME_FIELD(ours::ErrorHandler, argument, ucp_err_handler_t, arg);
SAME_VALUE(ours::EndpointParameters::REMOTE_ADDRESS, UCP_EP_PARAM_FIELD_REMOTE_ADDRESS);
SAME_VALUE(ours::EndpointParameters::ERROR_MODE, UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE);
SAME_VALUE(ours::EndpointParameters::ERROR_HANDLER, UCP_EP_PARAM_FIELD_ERR_HANDLER);
SAME_VALUE(ours::ERROR_MODE_NONE, UCP_ERR_HANDLING_MODE_NONE);
SAME_VALUE(ours::ERROR_MODE_PEER, UCP_ERR_HANDLING_MODE_PEER);
SAME_VALUE(ours::CLOSE_FORCE, UCP_EP_CLOSE_FLAG_FORCE);

HOLDS(ours::RequestParameters, ucp_request_param_t);
SAME_FIELD(ours::RequestParameters, field_mask, ucp_request_param_t, op_attr_mask);
SAME_FIELD(ours::RequestParameters, flags, ucp_request_param_t, flags);
SAME_FIELD(ours::RequestParameters, callback, ucp_request_param_t, cb);
SAME_FIELD(ours::RequestParameters, user_data, ucp_request_param_t, user_data);
SAME_FIELD(ours::RequestParameters, memory_type, ucp_request_param_t, memory_type);
SAME_FIELD(ours::RequestParameters, memory, ucp_request_param_t, memh);
SAME_VALUE(ours::RequestParameters::CALLBACK, UCP_OP_ATTR_FIELD_CALLBACK);
SAME_VALUE(ours::RequestParameters::USER_DATA, UCP_OP_ATTR_FIELD_USER_DATA);
SAME_VALUE(ours::RequestParameters::FLAGS, UCP_OP_ATTR_FIELD_FLAGS);
SAME_VALUE(ours::RequestParameters::MEMORY_TYPE, UCP_OP_ATTR_FIELD_MEMORY_TYPE);
SAME_VALUE(ours::RequestParameters::MEMORY, UCP_OP_ATTR_FIELD_MEMH);
