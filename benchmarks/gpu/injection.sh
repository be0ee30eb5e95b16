#!/usr/bin/env bash
# The table of injection on a GPU: fitted rows, head bias and trainings at equal data, from the plain and the adapted base.
#
#   python benchmarks/gpu/injection.py prepare --checkpoint DIR --corpora DIR --output TEXTS      once, anywhere
#   benchmarks/gpu/injection.sh CHECKPOINT TEXTS RESULTS [DEVICE] [SEQUENCES]
#
# CHECKPOINT: a masked-LM checkpoint, such as bert-base-uncased. TEXTS: what `prepare` wrote. RESULTS: a directory; lines
# that are in RESULTS/injection.jsonl are not computed again. Needs torch and transformers, neither Spark, Java nor a
# network. The first seed comes first from both bases, then the others.
set -euo pipefail
checkpoint=$1 texts=$2 results=$3 device=${4:-cuda} sequences=${5:-2000}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH=$here/../..${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
mkdir -p "$results"
lines=$results/injection.jsonl
precision=(--precision tf32 --training-precision bf16)
if [ "$device" = cpu ]; then precision=(); fi

for seeds in 0 1,2; do
    for base in "" --adapted; do
        python "$here/injection.py" run --checkpoint "$checkpoint" --data "$texts" --output "$lines" --device "$device" \
            --sequences "$sequences" --seeds "$seeds" ${precision[@]+"${precision[@]}"} $base
    done
done
python "$here/injection.py" table "$lines" --plot "$results/injection.png" >"$results/injection.md"
