#!/usr/bin/env bash
# Every measurement of docs/measurements.md that needs no GPU, one file of JSON lines each; most of a day on 2 cores.
#
#   benchmarks/all.sh DATA RESULTS [GLOVE]
#
# DATA: the directory that the tests know as WALS_SPARK_DATA. RESULTS: what lies there already is not measured again,
# and warehouses lie there too. GLOVE: directory with the programs of a GloVe build; without it GloVe is left out.
# Run it on an idle machine: `make benchmark DATA=... RESULTS=... [GLOVE=...]`.
set -euo pipefail
data=$(realpath "$1") glove=${3:+$(realpath "$3")}
mkdir -p "$2"
results=$(realpath "$2")
cd "$(dirname "$0")"
export WALS_SPARK_LOG_LEVEL=WARNING WALS_SPARK_DATA=$data

measure() { # NAME COMMAND...
    local name=$1
    shift
    if [ -e "$results/$name.jsonl" ]; then
        echo "$name: there already"
        return
    fi
    echo "$name: $(date +%H:%M) $*"
    "$@" >"$results/$name.part"
    mv "$results/$name.part" "$results/$name.jsonl"
}

texts=("$data"/corpora/enwiki/*.parquet)
words=$results/words
if [ ! -e "$words/done" ]; then
    echo "words: $(date +%H:%M) counting"
    for stage in corpus vocabulary cooccurrence; do
        wals-spark "$stage" --warehouse "$words" --set "corpus.path=$data/corpora/enwiki/*.parquet" \
            --set corpus.id_column=doc_id --set corpus.held_out_fraction=0 --set vocabulary.kind=words \
            --set "vocabulary.pattern='[a-z]+'" --set vocabulary.case=lower --set vocabulary.min_count=5 \
            --set cooccurrence.preset=glove --set cooccurrence.window_left=10 --set cooccurrence.window_right=10 \
            --set cooccurrence.boundary=document
    done
    touch "$words/done"
fi

measure cooccurrence python cooccurrence.py --text "${texts[@]}" ${glove:+--glove-build "$glove"} \
    --cases "output,memory${glove:+,kernel,job,job4}"
measure encoding python encoding.py --corpus "$data/corpora/enwiki" --tokenizer "$data/tokenizers/roberta-base"
measure scorer python scorer.py --data "$data" --search 10000
measure wals python wals.py --warehouse "$words" --cases implicit roofline
measure wals_mllib python wals_mllib.py --warehouse "$words"
measure wals_ranks python wals_ranks.py --warehouse "$words" --cases ranks --cells 17000000
measure wals_memory python wals_ranks.py --warehouse "$words" --cases memory
measure vectors python vectors.py --warehouse "$words" --evaluate "$data"/similarity/*.txt "$data"/analogy/*.txt --k 100 200 \
    --half report --peers svd sgns ${glove:+glove --glove-build "$glove"} --texts "${texts[@]}"
measure injection python injection.py speed --data "$data"
measure compression python compression.py loss --model "$data/models/mini-roberta" --corpus "${texts[@]}"
measure pretrain python pretrain.py --steps 200
for domain in biomedical scotus; do
    arms=$results/arms/$domain
    measure "arms-$domain" python arms_prepare.py --domain "$domain" --data "$data" --work "$results/arms-work" --output "$arms"
    measure "zero-shot-$domain" python arms_score.py --directory "$arms" --results "$results/arms-losses"
    measure "continued-$domain" python arms_score.py --directory "$arms" --results "$results/arms-losses" --steps 25,100,300 \
        --seeds 1,2,3 --arms 'base;bias;blend + shift + bias'
    measure "begun-$domain" python arms_score.py --directory "$arms" --results "$results/arms-losses" --steps 25,100 --of 300 \
        --seeds 1
    measure "gains-$domain" python arms_score.py --directory "$arms" --results "$results/arms-losses" --report
done
python arms_plot.py "$results"/gains-*.jsonl --output "$results/injection.svg"
