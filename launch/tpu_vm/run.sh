#!/usr/bin/env bash
# Trains on a Cloud TPU slice. See README.md beside this file.
set -euo pipefail

NAME=${NAME:-gpt-jax}
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-us-west4-a}
ACCELERATOR=${ACCELERATOR:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-}
REPOSITORY=${REPOSITORY:-https://github.com/OWNER/gpt_jax.git}
SHARED=${SHARED:-/mnt/shared}

# 16 chips: the weights in 16 parts, 16 sequences at a time.
TRAIN="python -m gpt_jax.main --config configs/gpt2.py:1558m --workdir $SHARED/runs/gpt2_1558m \
--config.mesh.data=1 --config.mesh.fsdp=16 --config.train.grad_accumulation=30 \
--config.data.corpus=text --config.data.source=$SHARED/text \
--config.data.cache_dir=$SHARED/cache --config.tokenizer.path=$SHARED/tokenizer"

on_slice() { gcloud compute tpus tpu-vm "$1" "$NAME" --project "$PROJECT" --zone "$ZONE" "${@:2}"; }
on_hosts() { on_slice ssh --worker="$1" --command "$2"; }

case "${1:-}" in
  create)
    on_slice create --accelerator-type "$ACCELERATOR" --version "$VERSION" ${SPOT:+--spot}
    ;;
  install)
    # The Python of the images may be older than JAX asks for: uv brings one.
    on_hosts all "git clone $REPOSITORY gpt_jax || git -C gpt_jax pull
      curl -LsSf https://astral.sh/uv/install.sh | sh && cd gpt_jax &&
      { [ -d .venv ] || ~/.local/bin/uv venv --python 3.12 --seed .venv; } &&
      .venv/bin/pip install --quiet -r requirements.txt -r requirements-tpu.txt"
    ;;
  train)
    # Goes on after the connection ends, and again while the run says that it is unfinished.
    on_hosts all "cd gpt_jax && rm -f stopped && export PATH=\$PWD/.venv/bin:\$PATH
      nohup bash -c 'status=75; while [ \$status = 75 ] && [ ! -e stopped ]; do
        $TRAIN; status=\$?; done; exit \$status' > train.log 2>&1 < /dev/null &"
    ;;
  log)
    on_hosts 0 'tail -n 50 -f gpt_jax/train.log'
    ;;
  stop)
    on_hosts all 'touch gpt_jax/stopped && pkill -TERM -f "^python -m gpt_jax.main"'
    ;;
  delete)
    on_slice delete
    ;;
  *)
    echo "usage: $0 create|install|train|log|stop|delete" >&2
    exit 2
    ;;
esac
