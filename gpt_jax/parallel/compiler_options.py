"""XLA's compiler options: one table per backend, passed per program instead of by XLA_FLAGS."""

import os

Option = bool | int | str

# Options with a measured benefit; see benchmarks/README.md.
OPTIONS: dict[str, dict[str, Option]] = {
    # Disable YNNPACK, whose reductions and small matmuls are slow: saves 8 to 15 % per step.
    'cpu': {'xla_cpu_experimental_ynn_fusion_type': ''},
    'gpu': {
        # Together these save about 2 % per GPT-2 step on an H100, and half of its compile time.
        'xla_gpu_enable_latency_hiding_scheduler': True,
        'xla_gpu_enable_triton_gemm': False,
        # Merging the matmuls of queries and keys copies their results: costs 2 to 5 % there.
        'xla_gpu_dot_merger_threshold_mb': 0,
        # Fused matmuls read slices of stacked weights in place, but omit the bias: costs 0.6 %.
        'xla_gpu_enable_dynamic_slice_fusion': False,
    },
    'tpu': {},
}

# For bfloat16 matmuls in a float32 model (`config.model.precision.matmul`).
BFLOAT16_PRODUCTS: dict[str, dict[str, Option]] = {
    # YNNPACK runs these at twice XLA's speed; use it for single matmuls only.
    'cpu': {'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT'},
}

# For programs that run once, such as the initial state: half the compile time, same result.
ONCE: dict[str, dict[str, Option]] = {'cpu': {'xla_backend_optimization_level': 1}}

# For a profile: kernels launched one by one have the names of their operations; kernels of a CUDA
# graph do not.
TRACED: dict[str, dict[str, Option]] = {'gpu': {'xla_gpu_enable_command_buffer': ''}}

# For bitwise reproducible runs. CPUs and TPUs are reproducible by default.
DETERMINISTIC: dict[str, dict[str, Option]] = {
    'gpu': {
        # No atomics in reductions and scatters, and no nondeterministic algorithm (cuDNN's too).
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
    """Returns the options for `jax.jit(compiler_options=…)`; XLA_FLAGS takes precedence.

    Args:
      backend: 'cpu', 'gpu' or 'tpu'.
      deterministic: whether results must repeat bit for bit (`config.train.deterministic`).
      bfloat16_products: whether linear layers round their operands to bfloat16.
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
