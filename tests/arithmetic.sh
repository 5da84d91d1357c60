#!/usr/bin/env bash
# Runs the tests, the slow ones too, on other arithmetic than this machine's own: sums in another order,
# narrower vectors, other numbers of threads, and beside a busy process.
#
#   tests/arithmetic.sh                   both passes
#   tests/arithmetic.sh tests/layers      anything else pytest takes
#
# Environment as for tests/run.sh. A failure is traced by setting one variable of its pass alone.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pass() {
    printf '\n== %s\n' "$1"
    # torch.compile does not see in its cache that the vectors are others.
    export TORCHINDUCTOR_CACHE_DIR=$(mktemp -d)
    # shellcheck disable=SC2086
    env $1 tests/run.sh -m "slow or not slow" "${@:2}" || failed=1
    rm -rf "$TORCHINDUCTOR_CACHE_DIR"
}

failed=0
pass "MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1" "$@"
while :; do :; done &
trap "kill $!" EXIT
pass "ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=2" "$@"
exit $failed
