"""Functions that replace a plain one of the network where a backend has a faster way.

Each has the signature of the plain function and equals it to a tolerance that a test states.
Nothing here imports a module of the network. `attention`, `norm` and `loss` are the tables that
the network and the training step choose from; `config.model.attention_kernel`,
`config.model.norm_kernel` and `config.train.loss_kernel` name one.

    module              replaces                     measured (benchmarks/README.md)
    attention_cudnn     model.attention.attend       6.7 times its speed on an H100, 1,024 tokens
    attention_splash    model.attention.attend       scores never reach memory; TPUs, not timed
    attention_blocked   model.attention.attend       0.7 to 0.9 of its time on CPUs
    attention_ring      model.attention.attend       sequences split over devices; not timed
    norm_triton         model.norm.normalize         a step of GPT-2 124M 69.4 -> 64.7 ms on an H100
    matmul_cpu          x @ kernel                   a step of 'baby' 7,255 -> 7,059 ms on two cores
    loss_triton         loss_softmax.softmax_xla     1.14 times its speed on an H100

`scores` says which keys a query sees; `dropout` draws the mask of a part of an array; `shard_map`
calls a kernel on each device's part.
"""
