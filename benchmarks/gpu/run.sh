#!/usr/bin/env bash
# Everything that wants a GPU, on a bare machine: no network, nothing installed by this script, PYTHONPATH alone.
#
#   benchmarks/gpu/run.sh OUT [PART...]
#
# OUT holds a log and a result of each part. A part that has finished is not run again, so a call that was cut off is
# called again with the same OUT; each part ends within 8 minutes ($LIMIT seconds). Without names, all parts run.
#   $BACKENDS  NAME@DEVICE of each backend                        [torch@cuda jax@gpu cupy@cuda]
#   $SCALE     factor of the sizes; small ones try it on a CPU    [1]
#   $GPUS      processes of the part on several GPUs              [as many as torch sees]
#   $PYTHON    interpreter that has numpy and the frameworks      [python3]
set -uo pipefail

out=${1:?usage: run.sh OUT [PART...]}
shift
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
scale=${SCALE:-1}
limit=${LIMIT:-470}
read -ra backends <<<"${BACKENDS:-torch@cuda jax@gpu cupy@cuda}"

# Editable installs do the same; entry points need the metadata that `entry_points` finds beside the sources.
path=$root/conformance/src
for package in stsbp-spec stsbp-cpu stsbp-torch stsbp-jax stsbp-cupy stsbp; do path=$root/packages/$package/src:$path; done
export PYTHONPATH=$out/metadata:$path${PYTHONPATH:+:$PYTHONPATH} OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1 NO_COLOR=1
export STSBP_CACHE=$out/cache XLA_PYTHON_CLIENT_PREALLOCATE=false
cd "$root" || exit 1
mkdir -p "$out/metadata"
"$python" benchmarks/gpu/metadata.py "$out/metadata" || exit 1

failed=()
part() { # NAME COMMAND...
    local name=$1
    shift
    if ((${#only[@]} > 0)) && [[ " ${only[*]} " != *" $name "* ]]; then return; fi
    if [[ -e $out/$name.done ]]; then
        printf '%s: done before\n' "$name"
        return
    fi
    printf '%s: ' "$name"
    local began=$SECONDS
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    local code=$?
    printf 'exit code %d after %d s\n' $code $((SECONDS - began))
    if ((code == 0)); then touch "$out/$name.done"; else failed+=("$name"); fi
}
only=("$@")

part machine "$python" benchmarks/gpu/machine.py "$out/machine.json"
for wanted in "${backends[@]}"; do
    name=${wanted%%@*} device=${wanted#*@}
    stem=$name-${device//:/}
    part "conformance-$stem" "$python" -m pytest -q -p no:cacheprovider -p stsbp_conformance.plugin \
        conformance/tests/test_suite.py --backend "$name" --device "$name=$device" --conformance-json "$out/conformance-$stem.json"
    for group in kernels step data; do
        part "$group-$stem" "$python" -m stsbp --backend "$name" --device "$device" benchmark "$group" \
            --scale "$scale" --json "$out/$group-$stem.json"
    done
    part "scaling-$stem" "$python" benchmarks/scaling.py --backend "$name" --device "$device" \
        --shrink "${SHRINK:-1}" --out "$out/scaling-$stem.json"
done
# One training step on one GPU and on all of them, where there are several.
gpus=${GPUS:-$("$python" -c "import torch; print(torch.cuda.device_count())" 2>/dev/null || echo 0)}
if ((gpus > 1)); then
    for wanted in "${backends[@]}"; do
        name=${wanted%%@*} device=${wanted#*@}
        part "processes-$name-${device//:/}" "$python" benchmarks/processes.py --backend "$name" --device "$device" \
            --sizes 1 "$gpus" --scale "$scale" --out "$out/processes-$name-${device//:/}.json"
    done
else
    printf 'processes: %s GPU(s), and it takes two\n' "$gpus"
fi
for peer in spikingjelly snntorch norse sinabs spyx; do
    if "$python" -c "import $peer" >/dev/null 2>&1; then
        part "peer-$peer" "$python" benchmarks/compare.py --here --peers "$peer" --own torch --scale "$scale" \
            --modes plain step neuron --patience 150 --device "${PEER_DEVICE:-cuda}" --out "$out/peer-$peer.json"
    else
        printf 'peer-%s: not installed for %s\n' "$peer" "$python"
    fi
done

printf 'results in %s; failed: %s\n' "$out" "${failed[*]:-nothing}"
exit $((${#failed[@]} > 0))
