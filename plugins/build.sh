#!/usr/bin/env bash
# Builds libuniad_plugins.so with nvcc alone: plugins/build.sh [OUT_DIR]
#
# Environment: TENSORRT_INCLUDE_DIR (its headers; unset: the kernels without the TensorRT glue), ARCH (default sm_90a:
# Hopper with the kernels that need its own instructions, and PTX for later GPUs; sm_90 is without these kernels, sm_86
# an A10's), VARIANTS=1 (also the kernels that only benchmarks compare). CMakeLists.txt builds for several architectures.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/../build/plugins}
arch=${ARCH:-sm_90a}
mkdir -p "$out"
target=("-arch=$arch")
if [[ $arch == *a ]]; then # its own PTX would run nowhere else
    number=${arch#sm_}
    target=("-gencode=arch=compute_$number,code=$arch" "-gencode=arch=compute_${number%a},code=compute_${number%a}")
fi
flags=(-std=c++17 -O3 "${target[@]}" "-DUNIAD_ARCHITECTURES=$arch" -Xcompiler -fPIC,-fvisibility=hidden)
sources=("$here"/src/kernels/*.cu)
if [[ ${VARIANTS:-0} == 1 ]]; then
    flags+=(-DUNIAD_VARIANTS)
fi
if [[ -n ${TENSORRT_INCLUDE_DIR:-} ]]; then
    flags+=(-isystem "$TENSORRT_INCLUDE_DIR" "-DUNIAD_TENSORRT=$("$here/tensorrt_version.sh" "$TENSORRT_INCLUDE_DIR")")
    flags+=(-Xcompiler -Wno-deprecated-declarations)
    sources+=("$here"/src/*.cpp)
fi
objects=()
jobs=()
for source in "${sources[@]}"; do
    object=$out/$(basename "$source").o
    objects+=("$object")
    nvcc "${flags[@]}" -c "$source" -o "$object" &
    jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
nvcc "${target[@]}" -shared -cudart static "${objects[@]}" -o "$out/libuniad_plugins.so.part"
mv "$out/libuniad_plugins.so.part" "$out/libuniad_plugins.so" # a killed build leaves no half library
rm -f "${objects[@]}"
echo "$out/libuniad_plugins.so"
