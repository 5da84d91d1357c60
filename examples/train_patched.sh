# Trains a patched checkout; the `run.sh` of each host sources this, and sets before:
#
#   host, script                the host's name for `muse-adapter patch`, and its main script
#   msrvtt, didemo, activity    batch and epochs of each data set
usage() {
    sed -n '2,12s/^# \{0,1\}//p' "$0" >&2
    exit 2
}
[ $# -ge 4 ] || usage
mkdir -p -- "$4"
dataset=$1 checkout=$2 data=$(realpath -- "$3") output=$(realpath -- "$4")
shift 4

case $dataset in
msrvtt)
    defaults=("${msrvtt[@]}")
    set -- --max_words 32 --max_frames 12 --expand_msrvtt_sentences \
        --train_csv "$data/MSRVTT_train.9k.csv" --val_csv "$data/MSRVTT_JSFUSION_test.csv" \
        --data_path "$data/MSRVTT_data.json" --features_path "$data/MSRVTT_Videos" "$@"
    ;;
didemo)
    defaults=("${didemo[@]}")
    set -- --max_words 64 --max_frames 64 \
        --data_path "$data" --features_path "$data/DiDeMo_Videos" "$@"
    ;;
activity)
    defaults=("${activity[@]}")
    set -- --max_words 64 --max_frames 64 \
        --data_path "$data" --features_path "$data/Activity_Videos" "$@"
    ;;
*) usage ;;
esac

cd "$checkout"
if ! grep -q 'muse_adapter.clip4clip.regroup' "$script"; then
    echo "not patched; first: muse-adapter patch $host $checkout --write" >&2
    exit 1
fi
gpus=${GPUS:-$(python -c 'import torch; print(torch.cuda.device_count())')}
# torchrun tells each process its rank in the environment alone, the script wants it as an argument.
exec python -m torch.distributed.run --standalone --nproc_per_node "$gpus" --no_python \
    bash -c 'exec python "$0" --local_rank "$LOCAL_RANK" "$@"' "$script" \
    --do_train --muse --muse_lr_scale 10 \
    --lr 1e-4 --coef_lr 1e-3 --warmup_proportion 0.1 --freeze_layer_num 0 \
    --epochs "${EPOCHS:-${defaults[1]}}" --batch_size "${BATCH_SIZE:-${defaults[0]}}" --batch_size_val 16 \
    --datatype "$dataset" --output_dir "$output" --num_thread_reader 8 --n_display 50 \
    --feature_framerate 1 --slice_framepos 2 --loose_type --linear_patch 2d --sim_header meanP \
    --pretrained_clip_name ViT-B/32 "$@"
