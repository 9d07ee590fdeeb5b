#!/usr/bin/env bash
# Checks and times the CUDA kernels on this machine's GPU: bash check.sh OUTPUT_FOLDER [PART…]
# Parts: tests bench torch memcheck racecheck initcheck report (all). Each has a time limit; together under nine minutes.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:?an output folder}; shift
parts=${*:-tests bench torch memcheck racecheck initcheck report}
mkdir -p "$out"
export LD_LIBRARY_PATH=/usr/local/nvidia/lib64:/usr/local/nvidia/lib:/usr/local/cuda/lib64:${LD_LIBRARY_PATH:-}
export RUST_BACKTRACE=0 PYTHONUNBUFFERED=1 ATTN_CUDA=device ATTN_REQUIRE=cuda
chmod +x "$here/conformance" "$here/xtask-gpu"
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv > "$out/machine.csv" 2>&1

part() { # name, limit in seconds, command…
  local name=$1 limit=$2; shift 2
  case " $parts " in *" $name "*) ;; *) return ;; esac
  local start=$SECONDS
  timeout "$limit" "$@" > "$out/$name.log" 2>&1
  local code=$?
  echo "$name: exit $code after $((SECONDS - start)) s" | tee -a "$out/parts.txt"
  tail -n 4 "$out/$name.log"
}

# The sanitizers slow kernels down a hundredfold: small groups of one dtype each.
small="cuda::bf16::causal cuda::f32::mask cuda::bf16::gradients cuda::f16::project cuda::f32::normalize"
part tests 150 "$here/conformance" --test-threads=4
part bench 90 "$here/xtask-gpu" bench --json "$out/bench.json"
part torch 90 bash -c "'$here/xtask-gpu' cases | python3 '$here/torch_peer.py' '$out/torch.json'"
part memcheck 60 compute-sanitizer --tool memcheck --error-exitcode 9 "$here/conformance" $small --test-threads=1
part racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 9 "$here/conformance" $small --test-threads=1
part initcheck 60 compute-sanitizer --tool initcheck --error-exitcode 9 "$here/conformance" $small --test-threads=1
part report 20 "$here/xtask-gpu" report "$out"
