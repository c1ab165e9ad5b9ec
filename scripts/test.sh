#!/usr/bin/env bash
# Sets everything up in .venv and runs the tests. Words are handed to pytest:
#
#   bash scripts/test.sh                      the fast tests
#   bash scripts/test.sh -m ''                all of them
#   bash scripts/test.sh tests/unit/gat -k config
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

ensure_environment test
# Tests are small: more threads only cost. The same for every process a test starts.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export MPLBACKEND=Agg
say "running the tests"
exec "$PYTHON" -m pytest "$@"
