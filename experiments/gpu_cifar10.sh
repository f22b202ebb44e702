#!/usr/bin/env bash
# The full CIFAR-10 presets on a GPU that is lent for minutes at a time: PYTHONPATH alone, no network, nothing installed.
#
#   experiments/gpu_cifar10.sh DATA OUT
#
# DATA holds cifar10/ as docs/data.md says; OUT takes checkpoints, tables and the decoded samples. Each call saves and ends
# after $MINUTES, with exit code 75 while there is more to do: call it again with the same OUT until it exits with 0. A call
# that is killed loses two minutes. The tables are OUT/PRESET/experiment.md.
#   $MINUTES   of a call; leave some for starting and saving      [9]
#   $SEEDS     of each preset                                     [1]
#   $PRESETS   in this order                                      [cifar10-tssl-1 cifar10-tssl-2]
#   $BACKEND   NAME@DEVICE                                        [torch@cuda]
#   $OPTIONS   further options, such as --epochs 1 --limit 500    []
#   $PYTHON    interpreter that has numpy and the framework       [python3]
set -euo pipefail

data=${1:?usage: gpu_cifar10.sh DATA OUT} out=${2:?usage: gpu_cifar10.sh DATA OUT}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
data=$(cd "$data" && pwd)
python=${PYTHON:-python3}
backend=${BACKEND:-torch@cuda}
read -ra presets <<<"${PRESETS:-cifar10-tssl-1 cifar10-tssl-2}"
read -ra options <<<"${OPTIONS:-}"

path=$out/metadata
for package in stsbp-spec stsbp-cpu stsbp-torch stsbp-jax stsbp-cupy stsbp; do path=$path:$root/packages/$package/src; done
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 NO_COLOR=1
export STSBP_CACHE=${STSBP_CACHE:-$out/cache}
mkdir -p "$out/metadata"
"$python" "$root/benchmarks/gpu/metadata.py" "$out/metadata"

for preset in "${presets[@]}"; do
    # Every preset is looked at: one that is over only prints its table.
    left=$("$python" -c "print(max(0.001, ${MINUTES:-9} - $SECONDS / 60))")
    code=0
    "$python" -m stsbp --backend "${backend%%@*}" --device "${backend#*@}" experiment "$preset" --data-dir "$data" \
        --out "$out/$preset" --seeds "${SEEDS:-1}" --checkpoint-every 120 --stop-after "$left" "${options[@]}" || code=$?
    if ((code == 75)); then printf 'more to do: call the same script again\n' >&2; fi
    if ((code != 0)); then exit "$code"; fi
done
