#!/usr/bin/env bash
# GPT-2 1558M on all GPUs of this machine. See README.md beside this file.
set -uo pipefail

export PATH="$PWD/.venv/bin:$PATH"

stopped=
trap 'stopped=1; kill -TERM "$run" 2>/dev/null' TERM INT
arguments=("$@")
while true; do
  python -m gpt_jax.main --config configs/gpt2.py:1558m \
    --config.mesh.data=1 --config.mesh.fsdp=-1 --config.train.grad_accumulation=15 \
    --config.data.corpus=text --config.data.source="${DATA:?the folder of the text}" \
    --config.tokenizer.path="${TOKENIZER:?the folder of the tokenizer}" \
    ${arguments[@]+"${arguments[@]}"} &
  run=$!
  wait "$run"
  status=$?
  while kill -0 "$run" 2>/dev/null; do # a signal ended the wait, not the run
    wait "$run"
    status=$?
  done
  if [[ $status != 75 || -n $stopped ]]; then
    exit "$status"
  fi
  for i in "${!arguments[@]}"; do # begins anew once
    [[ ${arguments[i]} =~ ^--?fresh(=|$) ]] && unset "arguments[i]"
  done
done
