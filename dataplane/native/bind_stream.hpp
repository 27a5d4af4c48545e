// Binds the streams.
#pragma once

#include <nanobind/nanobind.h>

namespace kvferry {

void bind_stream(nanobind::module_ &module);

} // namespace kvferry
