// Binds the streams.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>

namespace kvferry {

// What Python knows as CancelFlag: shared by the thread that is at work and the one that ends it.
struct FlagHandle {
    std::atomic<bool> raised{false};
};

void bind_stream(nanobind::module_ &module);

} // namespace kvferry
