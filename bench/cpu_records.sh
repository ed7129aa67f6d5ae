#!/usr/bin/env bash
# Tune this CPU's shipped records: about 16 minutes on a quiet machine of two cores.
#
#     bench/cpu_records.sh [DB [MINUTES]]      # default: a database in the cache, 16 minutes
#     ARCH=x86-avx2 bench/cpu_records.sh       # a lower level; provenance names the real machine
#
# A killed run goes on where it stopped, when it is given the same DB. The winners end up in
# tuning_db/records/ARCH.jsonl (or OUT), one file an arch, with every thread count of it.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
ARCH=${ARCH:-$("$PYTHON" -c 'from expertile.targets.cpu.levels import host_arch; print(host_arch())')}
DB=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/expertile/records-$ARCH.sqlite}
MINUTES=${2:-16}
OUT=${OUT:-tuning_db/records/$ARCH.jsonl}
CPUS=$(nproc)
THREADS=$([ "$CPUS" -gt 1 ] && echo "1 $CPUS" || echo 1)
mkdir -p "$(dirname "$DB")"

# Each line: its share of the time in 1/100, then what is tuned.
WORK='
10 --preset tiny --op fused_moe,gemm_nt,mla_decode,moe_route --tokens 1 --batch 1 --ctx 256
15 --preset v2-lite --op fused_moe --weight-dtype float8_e4m3fn --tokens 1,4,16,32
12 --preset v2-lite --op fused_moe --weight-dtype bfloat16 --tokens 1,4,16,32
12 --preset v2-lite --op fused_moe --weight-dtype float8_e4m3fn --ep 4 --tokens 43,171,683
 8 --preset v3 --op fused_moe --ep 16 --tokens 1,4,32
 9 --preset v2-lite --op gemm_nt --weight-dtype float8_e4m3fn --tokens 512 --batch 1
14 --preset v2-lite --op mla_decode --batch 1,8 --ctx 1024,4096 --act-dtype bfloat16
 8 --preset v3 --op mla_decode --batch 1 --ctx 1024,4096 --act-dtype bfloat16
 8 --preset v2-lite --op mla_prefill --tokens 512,2048
 4 --preset v3 --op per_token_group_quant_fp8,silu_mul_quant_fp8,weight_dequant --tokens 4096
'
for threads in $THREADS; do
  while read -r share what; do
    [ -n "$share" ] || continue
    seconds=$(( share * MINUTES * 60 / 100 / $(wc -w <<< "$THREADS") ))
    echo "== $ARCH, $threads threads, $seconds s: $what"
    # shellcheck disable=SC2086  # what is tuned is several words
    "$PYTHON" -m expertile tune --device "$ARCH:$threads" --act-dtype float32 $what \
      --budget "${seconds}s" --db "$DB" || echo "== failed, and left out: $what"
  done <<< "$WORK"
done
"$PYTHON" -m expertile db export "$OUT" --db "$DB"
