"""From text to batches: corpora -> prepare -> shards on disk -> pipeline.

`prepare` runs once for each combination of corpus, split and tokenizer. Training reads only the
shards and the manifest that it writes.
"""
