#!/usr/bin/env bash
# Fuzzes: `fuzz/run.sh [target|all] [seconds]`. One line per target at the end; fails on a finding.
#
# What it learns is kept in fuzz/found/ (not committed); the committed corpus is only read. Findings
# lie in fuzz/artifacts/<target>/; look at one with
#     RUSTC_BOOTSTRAP=1 cargo fuzz run <target> fuzz/artifacts/<target>/<file>
# and when the bug is fixed, put the file into fuzz/regressions/<target>/: the tests of macula-fuzz
# replay it from then on.
#
# Environment: FUZZ_SANITIZER (address), FUZZ_MAX_LEN (4096).
set -uo pipefail
cd "$(dirname "$0")/.."

SECONDS_PER_TARGET=${2:-60}
SANITIZER=${FUZZ_SANITIZER:-address}
MAX_LEN=${FUZZ_MAX_LEN:-4096}

known() { sed -n 's/^name = "\([a-z]*\)"$/\1/p' fuzz/Cargo.toml; }
if [ "${1:-all}" = all ]; then
  targets=$(known)
elif known | grep -qx "$1"; then
  targets=$1
else
  echo "no target $1; there are: $(known | tr '\n' ' ')" >&2
  exit 2
fi

if ! command -v cargo-fuzz > /dev/null; then
  cargo install cargo-fuzz --locked || exit 1
fi
# It wants nightly's flags; our stable toolchain has them behind this switch, and AddressSanitizer too.
export RUSTC_BOOTSTRAP=1
mkdir -p fuzz/found
cargo fuzz build --sanitizer "$SANITIZER" || exit 1

failed=0
summary=()
for target in $targets; do
  log=fuzz/found/$target.log
  mkdir -p "fuzz/found/$target"
  corpora=("fuzz/found/$target" "fuzz/corpus/$target")
  if [ -d "fuzz/regressions/$target" ]; then
    corpora+=("fuzz/regressions/$target")
  fi
  findings=0
  cargo fuzz run --sanitizer "$SANITIZER" "$target" "${corpora[@]}" -- \
    -max_total_time="$SECONDS_PER_TARGET" -max_len="$MAX_LEN" -timeout=10 \
    -rss_limit_mb=2048 -malloc_limit_mb=256 -print_final_stats=1 > "$log" 2>&1 || findings=1
  executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  per_second=$(sed -n 's/^stat::average_exec_per_sec: *//p' "$log")
  coverage=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\).*/\1 edges, \2 features/p' "$log" | tail -1)
  line="$target: ${executions:-0} executions, ${per_second:-0}/s, ${coverage:-no coverage}"
  if [ "$findings" = 0 ]; then
    summary+=("$line, no finding")
  else
    failed=1
    summary+=("$line, FINDING, see $log")
    grep -E "panicked at|SUMMARY|Test unit written" -A1 "$log" | head -8 >&2
  fi
done

printf '%s\n' "${summary[@]}"
exit "$failed"
