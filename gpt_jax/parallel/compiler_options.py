"""XLA's options: one table for each backend, given with the program and never by a shell line."""

import os

Option = bool | int | str

# What was measured to help; see benchmarks/README.md.
OPTIONS: dict[str, dict[str, Option]] = {
    # Without YNNPACK, whose reductions and small products are slow: 8 to 15 % of a step.
    'cpu': {'xla_cpu_experimental_ynn_fusion_type': ''},
    'gpu': {
        # Together about 2 % of a GPT-2 step on an H100, and half of the time to compile it.
        'xla_gpu_enable_latency_hiding_scheduler': True,
        'xla_gpu_enable_triton_gemm': False,
        # Merging the products of queries and keys costs copies of their results: 2 to 5 % there.
        'xla_gpu_dot_merger_threshold_mb': 0,
        # Products read slices of stacked weights in place, but then without their bias: 0.6 %.
        'xla_gpu_enable_dynamic_slice_fusion': False,
    },
    'tpu': {},
}

# For products of bfloat16 in a model of float32 (`config.model.matmul_precision`).
BFLOAT16_PRODUCTS: dict[str, dict[str, Option]] = {
    # YNNPACK makes these at twice XLA's speed; for single products, and nothing else.
    'cpu': {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'},
}

# For what runs once, as the initial state: compiled in half of the time, with the same result.
ONCE: dict[str, dict[str, Option]] = {'cpu': {'xla_backend_optimization_level': 1}}

# For a profile: kernels launched one by one carry the names of their operations, those of a CUDA
# graph do not.
TRACED: dict[str, dict[str, Option]] = {'gpu': {'xla_gpu_enable_command_buffer': ''}}

# What makes a run repeat bit for bit. CPUs and TPUs do so by themselves.
DETERMINISTIC: dict[str, dict[str, Option]] = {
    'gpu': {
        # No atomics in reductions and scatters, no algorithm whose results vary (cuDNN's too).
        'xla_gpu_deterministic_ops': True,
        'xla_gpu_exclude_nondeterministic_ops': True,
    },
}


def compiler_options(
    backend: str,
    *,
    deterministic: bool,
    bfloat16_products: bool = False,
    once: bool = False,
    traced: bool = False,
) -> dict[str, Option]:
    """For `jax.jit(compiler_options=…)`: the tables' options that XLA_FLAGS does not name.

    Args:
      backend: 'cpu', 'gpu' or 'tpu'.
      deterministic: whether results must repeat bit for bit (`config.train.deterministic`).
      bfloat16_products: whether linear layers round what they multiply.
      once: whether the program will run only once.
      traced: whether a profile of it must name the operation of each kernel.
    """
    options = dict(OPTIONS.get(backend, {}))
    if once:
        options |= ONCE.get(backend, {})
    if bfloat16_products:
        options |= BFLOAT16_PRODUCTS.get(backend, {})
    if traced:
        options |= TRACED.get(backend, {})
    if deterministic:
        options |= DETERMINISTIC.get(backend, {})
    given = {flag.lstrip('-').partition('=')[0] for flag in os.environ.get('XLA_FLAGS', '').split()}
    return {name: value for name, value in options.items() if name not in given}
