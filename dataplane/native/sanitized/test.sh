#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer beside the installed one and runs the tests
# of the native core with it. Usage: test.sh <python>
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."
python="$1"
[[ $python == /* ]] || python="$PWD/$python"
tree="build/sanitized"
rm -rf "$tree"
mkdir -p "$tree"
# A copy of the packages in which the extension is the sanitized one; the installed one stays what it is.
cp -R kvferry tests pyproject.toml "$tree"
rm -f "$tree"/kvferry/device/*.so
export CXXFLAGS="-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
export PYTHONPATH="$PWD/$tree"
dataplane/native/build_plain.sh "$python" "$tree/kvferry/device"
libraries=("$("${CXX:-g++}" -print-file-name=libasan.so)" "$("${CXX:-g++}" -print-file-name=libstdc++.so)")
cd "$tree"
# The interpreter keeps memory until its process ends, which is no leak of the extension: leaks are not looked for.
# numpy and the interpreter are not instrumented, so the runtime has to be there before them.
LD_PRELOAD="${libraries[*]}" ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
    "$python" -m pytest -q -p no:cacheprovider tests/unit/native tests/unit/checksums tests/unit/ucx
