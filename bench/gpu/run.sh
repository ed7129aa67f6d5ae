#!/usr/bin/env bash
# Everything a GPU can tell about the kernels, in stages of less than nine minutes each.
#
#   bench/gpu/run.sh OUT_FOLDER [STAGE ...]
#
# Stages: describe numerics casts gemm moe attention correlate tune model report (all by default).
# A stage that was cut off goes on where it stopped when it is run again with the same folder.
# Needs torch with a GPU, triton >= 3.6, and the packages of `pip install -e ".[cuda,tune,model]"`.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=$(realpath -m "${1:?usage: bench/gpu/run.sh OUT_FOLDER [STAGE ...]}")
shift
mkdir -p "$out"
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
  { echo "no GPU that torch can use is here; nothing was run" >&2; exit 2; }
stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(describe numerics casts gemm moe attention correlate tune model report)
failed=0
for stage in "${stages[@]}"; do
  echo "== $stage"
  case $stage in
    tune)
      timeout 530 python3 -m expertile tune --device cuda --preset v3 --tp 8 --budget 7m \
        --op fused_moe,mla_decode,per_token_group_quant_fp8 --tokens 1,16,64,512 \
        --batch 1,32 --ctx 4096 --db "$out/records.sqlite" &&
        python3 -m expertile db export "$out/records.jsonl" --db "$out/records.sqlite" ;;
    model)
      timeout 530 python3 -m pytest -q -m gpu tests -p no:cacheprovider &&
        timeout 300 python3 -m expertile run "def add(a, b):" --device cuda --max-tokens 64 ;;
    report)
      python3 -m expertile.bench.gpu report "$out/results.jsonl" | tee "$out/report.md" ;;
    *)
      timeout 530 python3 -m expertile.bench.gpu "$stage" "$out/results.jsonl" ;;
  esac || { echo "== $stage failed or was cut off ($?)"; failed=1; }
done
exit $failed
