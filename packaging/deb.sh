#!/usr/bin/env bash
# Builds target/debian/tessera_*.deb: the program with the list of its crates in it, unit, completions and manual pages.
# Needs cargo-deb and cargo-auditable: cargo install --locked cargo-deb cargo-auditable
set -euo pipefail
cd "$(dirname "$0")/.."
files=target/package-files
rm -rf "$files"
mkdir -p "$files/man"
cargo auditable build --release --locked
target/release/tessera manual "$files/man"
for shell in bash zsh fish; do
  target/release/tessera completions "$shell" >"$files/tessera.$shell"
done
cargo deb --no-build --locked
