#!/usr/bin/env bash
# Every benchmark that needs a GPU, in one call, on a machine that may have no network; see gpu.py.
#     examples/benchmarks/gpu.sh prepare wheels                 # beside a package index: what the GPU machine lacks
#     examples/benchmarks/gpu.sh run --wheels wheels            # on the GPU machine, in ten minutes
#     examples/benchmarks/gpu.sh run --tiny --output /tmp/tiny  # anywhere, in some minutes: does it run?
exec "${PYTHON:-python3}" "$(dirname "$0")/gpu.py" "$@"
