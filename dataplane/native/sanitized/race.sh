#!/usr/bin/env bash
# Runs a stress program of the copy core under ThreadSanitizer. Usage: race.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
output=../../build/sanitized
mkdir -p "$output"
"${CXX:-g++}" -std=c++17 -O1 -g -fsanitize=thread -pthread \
    sanitized/stress.cpp copier.cpp digest.cpp kernels.cpp piece_reader.cpp plan.cpp -o "$output/stress"
# Address randomisation of newer kernels puts mappings where the runtime of older compilers does not expect them.
TSAN_OPTIONS=halt_on_error=1 setarch --addr-no-randomize "$output/stress"
