"""Faster versions of the network's plain functions, each for some backends.

Each has the signature of the plain function and equals it to the tolerance stated in its test.
Nothing here imports a module of the network. The network and the training step choose from the
tables in `attention`, `norm`, `loss` and `experts`. `config.model.execution.attention_kernel`,
`config.model.execution.norm_kernel` and `config.train.loss_kernel` select one by name.

    module              replaces                     measured (benchmarks/README.md)
    attention_cudnn     model.attention.attend       6.7 times its speed on an H100, 1,024 tokens
    attention_splash    model.attention.attend       scores never reach memory; TPUs, not timed
    attention_blocked   model.attention.attend       0.7 to 0.9 of its time on CPUs
    attention_ring      model.attention.attend       sequences sharded over devices; not timed
    norm_triton         model.norm.normalize         69.4 -> 64.7 ms per step, GPT-2 124M on an H100
    matmul_cpu          x @ kernel                   7,255 -> 7,059 ms per step, 'baby' on two cores
    experts_blocked     experts.multiply_xla         cost of the rows, not rows x experts, on CPUs
    loss_triton         loss_softmax.softmax_xla     1.14 times its speed on an H100

`scores` has the attention mask; `dropout` draws the mask of a block of an array; `shard_map` calls
a kernel on each device's shard.
"""
