#!/usr/bin/env bash
# Builds the extensions without CMake, for a machine that has a compiler and the interpreter's headers alone; without an
# output folder also what NIXL's LIBFABRIC plugin needs.
# Usage: build_plain.sh [python] [output folder]; nanobind must be importable in that interpreter.
# CXX and CXXFLAGS are honoured.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python="${1:-python3}"
output="${2:-$here/../../kvferry/device}"
read -r suffix headers nanobind < <("$python" -c '
import nanobind, pathlib, sysconfig
print(sysconfig.get_config_var("EXT_SUFFIX"), sysconfig.get_path("include"), pathlib.Path(nanobind.__file__).parent)')
read -ra flags <<<"${CXXFLAGS:--O2 -DNDEBUG -DNB_COMPACT_ASSERTIONS}"
if [[ $# -lt 2 ]]; then
    transports="$here/../kvferry_dataplane/transports"
    "${CXX:-g++}" -std=c++17 -shared -fPIC "${flags[@]}" "$here/libfabric/call_bounds.cpp" \
        -o "$transports/libkvferry_call_bounds.so"
    "${CXX:-g++}" -std=c++17 -shared -fPIC "${flags[@]}" -Wl,-soname,libcuda.so.1 "$here/libfabric/no_cuda.cpp" \
        -o "$transports/libkvferry_no_cuda.so"
fi
mkdir -p "$output"
build() { # <extension> <source>...
    "${CXX:-g++}" -std=c++17 -shared -fPIC -fvisibility=hidden -fno-strict-aliasing -pthread "${flags[@]}" \
        "-DNB_DOMAIN=kvferry$1" -I "$headers" -I "$nanobind/include" -I "$nanobind/ext/robin_map/include" \
        "${@:2}" "$nanobind/src/nb_combined.cpp" -ldl -o "$output/$1$suffix"
    echo "$output/$1$suffix"
}
build _core "$here"/*.cpp
build _ucx "$here"/ucx/{agent,library,module}.cpp
