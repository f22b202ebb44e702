#!/usr/bin/env bash
# Everything that wants a GPU, on a bare machine without a network: `benchmarks/gpu/run.sh OUT [PART...]` (docs/gpu.md).
#
# Sets the paths up for a checkout from which nothing is installed, and hands over to run.py, which says what it takes.
#   $WHEELS  folder of wheels that this machine lacks; they are unpacked into OUT/site    [none]
#   $PYTHON  interpreter that has numpy and the frameworks                                [python3]
set -euo pipefail

out=${1:?usage: run.sh OUT [PART...]}
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
mkdir -p "$out/metadata"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}

if [[ -n ${WHEELS:-} && ! -d $out/site ]]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$out/site" "$WHEELS"/*.whl
fi
# Editable installs do the same; entry points need the metadata that `entry_points` finds beside the sources.
path=$root/conformance/src
for package in stsbp-spec stsbp-cpu stsbp-torch stsbp-jax stsbp-cupy stsbp; do path=$root/packages/$package/src:$path; done
export PYTHONPATH=$out/metadata:$path${PYTHONPATH:+:$PYTHONPATH}:$out/site OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
export NO_COLOR=1 STSBP_CACHE=${STSBP_CACHE:-$out/cache} TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$out/triton}
export CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-$out/cupy} XLA_PYTHON_CLIENT_PREALLOCATE=false
cd "$root"
"$python" benchmarks/gpu/metadata.py "$out/metadata"
exec "$python" benchmarks/gpu/run.py "$out" "$@"
