// Binds the digest.
#pragma once

#include <nanobind/nanobind.h>

namespace kvferry {

void bind_digest(nanobind::module_ &module);

} // namespace kvferry
