#!/usr/bin/env bash
# Speed on the GPU at hand: every operator in criterion's table, PyTorch's convolutions of the same shapes beside it, and
# the time of a whole picture. Prints the tables last; what is measured is not measured again.
#   scripts/gpu/bench.sh OUT
set -euo pipefail
out=$(mkdir -p "${1:?usage: bench.sh OUT}" && cd "$1" && pwd)
cd "$(dirname "$0")/../.."

cargo build --release --locked
target/release/tessera devices >"$out/devices.txt"
if [ ! -s "$out/operators.txt" ]; then
  cargo bench --locked --bench ops -- '^gpu/' >"$out/operators.part"
  mv "$out/operators.part" "$out/operators.txt"
fi
if [ ! -s "$out/convolutions.txt" ]; then
  python3 scripts/gpu/convolutions.py >"$out/convolutions.part"
  mv "$out/convolutions.part" "$out/convolutions.txt"
fi
if [ ! -s "$out/generate.txt" ]; then
  for _ in 1 2 3; do
    start=$(date +%s.%N)
    target/release/tessera generate --device gpu --seed 7 --out "$out/picture.png" >/dev/null 2>&1
    echo "$start $(date +%s.%N)" | awk '{ printf "2048x1024, default steps: %.2f s\n", $2 - $1 }'
  done >"$out/generate.part"
  mv "$out/generate.part" "$out/generate.txt"
fi
cat "$out/devices.txt" "$out/operators.txt" "$out/convolutions.txt" "$out/generate.txt"
