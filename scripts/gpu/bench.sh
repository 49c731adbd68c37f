#!/usr/bin/env bash
# Speed on the GPU at hand: every operator in criterion's table; operators, networks and whole pictures beside PyTorch's, with and
# without torch.compile, of the default model and of pdm-2k, with the device's ceilings; `tessera generate` from start to
# file. Prints the tables last; what is measured is not measured again.
#   scripts/gpu/bench.sh OUT [OPTION OF benches/compare_torch.py]...
set -euo pipefail
out=$(mkdir -p "${1:?usage: bench.sh OUT [OPTION]...}" && cd "$1" && pwd)
shift
cd "$(dirname "$0")/../.."

stage() {
  local name=$1
  shift
  if [ ! -s "$out/$name.txt" ]; then
    "$@" >"$out/$name.part"
    mv "$out/$name.part" "$out/$name.txt"
  fi
}

pictures() {
  local start
  for _ in 1 2 3; do
    start=$(date +%s.%N)
    target/release/tessera generate --device gpu --seed 7 --out "$out/picture.png" >/dev/null 2>&1
    echo "$start $(date +%s.%N)" | awk '{ printf "2048x1024, default steps, start to file: %.2f s\n", $2 - $1 }'
  done
}

cargo build --release --locked
target/release/tessera devices >"$out/devices.txt"
compare=(python3 benches/compare_torch.py --gpu --compile)
stage default "${compare[@]}" --model models/scenery.safetensors --variants "$@"
stage pdm-2k "${compare[@]}" --config pdm-2k --networks "$@"
stage pictures pictures
stage operators cargo bench --locked --bench ops -- '^gpu/'
cat "$out"/{devices,default,pdm-2k,pictures,operators}.txt
