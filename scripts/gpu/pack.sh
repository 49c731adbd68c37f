#!/usr/bin/env bash
# Builds what scripts/gpu/run.sh needs on a machine with a GPU, but without Rust and network: the program, tests of the
# GPU and benchmarks, stripped, and the libraries by which programs find a Vulkan driver, in target/gpu-kit/programs.tar.xz.
# Prints the sizes; fails where the archive, or the archive with the files that git tracks, is over its limit.
# Needs Rust, on Debian or Ubuntu (for the libraries), x86-64.
#   scripts/gpu/pack.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

# MiB of the archive, and of everything that has to be copied to the other machine.
most_archive=24
most_all=64
# The Vulkan loader, and what drivers' libraries need that are made for a machine with a display.
packages=(libvulkan1 libegl1 libglvnd0 libopengl0 libgl1 libglx0 libgles2
  libx11-6 libxext6 libxcb1 libxau6 libxdmcp6 libbsd0 libmd0)
kit=target/gpu-kit
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$kit" "$stage/programs/lib" "$stage/packages"

# Executables that are built for cargo test (the program too, for the tests of its commands), as "kind-name path"; without the
# default model in each of them: it is among the tracked files.
cargo test --release --locked --no-default-features --features cli,gpu,service --no-run --message-format=json \
  --lib --test gpu --bench nets --bench ops |
  sed -n 's/.*"target":{"kind":\["\([a-z]*\)"\][^}]*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1-\2 \3/p' |
  while read -r name path; do
    case $name in
    bin-tessera) name=tessera ;;
    lib-tessera) name=unit-tests ;;
    test-*) name=${name#test-}-tests ;;
    *) name=${name#bench-} ;;
    esac
    strip -o "$stage/programs/$name" "$path"
  done

(cd "$stage/packages" && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}")
for package in "$stage"/packages/*.deb; do
  dpkg -x "$package" "$stage/unpacked"
done
cp -P "$stage"/unpacked/usr/lib/x86_64-linux-gnu/*.so.* "$stage/programs/lib"
cp -P "$stage"/unpacked/lib/x86_64-linux-gnu/*.so.* "$stage/programs/lib" 2>/dev/null || true

tar -C "$stage/programs" -c . | xz -9 >"$kit/programs.tar.xz"

(cd "$stage/programs" && stat -c '%s %n' -- *-tests nets ops tessera lib/* | awk '{ printf "%8.2f MiB  %s\n", $1 / 2^20, $2 }')
archive=$(stat -c %s "$kit/programs.tar.xz")
tracked=$(git ls-files -z | xargs -0 stat -c %s | awk '{ sum += $1 } END { print sum }')
awk -v archive="$archive" -v tracked="$tracked" -v most_archive="$most_archive" -v most_all="$most_all" 'BEGIN {
  mib = 2 ^ 20
  printf "%8.2f MiB  all of it, compressed (limit: %d)\n", archive / mib, most_archive
  printf "%8.2f MiB  files that git tracks\n", tracked / mib
  printf "%8.2f MiB  to be copied (limit: %d)\n", (archive + tracked) / mib, most_all
  exit archive > most_archive * mib || archive + tracked > most_all * mib
}' || { echo "over the limit" >&2; exit 1; }
