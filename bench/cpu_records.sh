#!/usr/bin/env bash
# Tune this CPU's shipped records: the ladder of `bench run cpu-ops` and the bundled model's shapes,
# with one thread and with all, on a quiet machine. Half as long again as MINUTES: of large shapes
# the first three configs alone take longer than their share.
#
#     bench/cpu_records.sh [DB [MINUTES]]      # default: a database in the cache, 20 minutes
#     ARCH=x86-avx2 bench/cpu_records.sh       # a lower level; provenance names the real machine
#     ROWS="casts moe-decode" bench/cpu_records.sh       # only these lines of the list below
#
# A killed run goes on where it stopped, when it is given the same DB. The winners end up in
# tuning_db/records/ARCH.jsonl (or OUT), one file an arch, with every thread count of it. What they
# gain: python -m expertile.bench.suites.tuned tuning_db/records/ARCH.jsonl
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
ARCH=${ARCH:-$("$PYTHON" -c 'from expertile.targets.cpu.levels import host_arch; print(host_arch())')}
DB=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/expertile/records-$ARCH.sqlite}
MINUTES=${2:-20}
OUT=${OUT:-tuning_db/records/$ARCH.jsonl}
CPUS=$(nproc)
THREADS=${THREADS:-$([ "$CPUS" -gt 1 ] && echo "1 $CPUS" || echo 1)}
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
mkdir -p "$(dirname "$DB")" "$(dirname "$OUT")"

# Share of the time in 1/100, and rows of the suite's ladder (or the bundled model's operators).
WORK='
 4 tiny
 6 casts
16 moe-decode-fp8
14 moe-decode-bf16
 8 dense-fp8
12 mla-decode
 8 mla-prefill
24 moe-prefill
 8 moe-int8
'
failed=0
for threads in $THREADS; do
  while read -r share row; do
    [ -n "$share" ] || continue
    if [ -n "${ROWS:-}" ] && [[ " $ROWS " != *" $row "* ]]; then continue; fi
    seconds=$(( share * MINUTES * 60 / 100 / $(wc -w <<< "$THREADS") ))
    if [ "$row" = tiny ]; then
      what=(--preset tiny --act-dtype float32 --tokens 1,128 --batch 1 --ctx 256
            --op "fused_moe,mla_decode,moe_route")
    else
      "$PYTHON" -m expertile.bench.suites.ladder "$ARCH" --only "$row" > "$SCRATCH/$row.json"
      what=(--collected "$SCRATCH/$row.json")
    fi
    echo "== $ARCH, $threads threads, $seconds s: $row"
    "$PYTHON" -m expertile tune --device "$ARCH:$threads" "${what[@]}" --budget "${seconds}s" \
      --db "$DB" || { echo "== failed: $row on $threads threads"; failed=1; }
  done <<< "$WORK"
done
"$PYTHON" -m expertile db export "$OUT" --db "$DB"
"$PYTHON" -m expertile.bench.suites.tuned "$OUT" --no-measure | tail -n $(( $(wc -w <<< "$THREADS") + 1 ))
exit $failed
