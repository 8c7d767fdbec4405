"""A mixture of experts and its dense rival on a CPU: the quickstart's run with another MLP.

    python -m gpt_jax.main --config configs/moe_cpu.py:moe

`:moe`, the default, has 8 experts of width 256, of which a token uses 2. `:dense` has the same
FLOPs per token. Compare their validation losses by step and by time.
"""

from configs import quickstart
from gpt_jax.config import RunConfig, unknown_variant
from gpt_jax.model.config import MLPKind
from gpt_jax.model.mlp import MixtureOfExperts


def get_config(variant: str = 'moe') -> RunConfig:
    """Returns the run of a variant."""
    config = quickstart.get_config()
    config.model.d_ff = 512
    if variant in ('', 'moe'):
        config.model.mlp = MixtureOfExperts(
            activation=MLPKind.RELU2,
            num_experts=8,
            experts_per_token=2,
            d_expert=256,
            router_z_loss=1e-3,
        )
    elif variant != 'dense':
        raise unknown_variant(variant, ['moe', 'dense'])
    return config
