"""Rematerialisation: layers keep some activations for the backward pass and recompute the rest.

Chen et al. 2016, https://arxiv.org/abs/1604.06174. `none` keeps everything that autodiff needs.
The table is for GPT-2 124M, 8 x 1024 tokens, bfloat16, compiled for one TPU v5e with splash
attention and scanned layers. The last column is the share of the products of a layer's forward and
backward pass that are recomputed:

    remat               temporaries   recomputed                             products
    none                  8,703 MiB   nothing                                       0
    dots_and_attention    3,089 MiB   norms, activation functions, positions        0
    dots                  2,930 MiB   the above and attention over the scores       0
    attention             1,831 MiB   everything but attention over the scores   22 %
    full                  1,384 MiB   everything                                 22 %

For an H100 with XLA's attention, unrolled: 10,440, 3,006, 2,885, 1,950 and 1,637 MiB.
"""

from collections.abc import Callable

import jax

from gpt_jax.model.options import Remat

# Names given by `checkpoint_name`: to the output of every Linear, and to that of an attention
# kernel together with its softmax statistics.
PRODUCT, ATTENTION = 'product', 'attention'
REMAT_KEEPS: dict[Remat, tuple[str, ...]] = {
    Remat.FULL: (),
    Remat.ATTENTION: (ATTENTION,),
    Remat.DOTS: (PRODUCT,),
    Remat.DOTS_AND_ATTENTION: (PRODUCT, ATTENTION),
}
# cuDNN's statistics stay inside its custom derivative, so they are found by their primitive.
CUDNN_ATTENTION = 'dot_product_attention_fwd_wrapper'


def kept_products(remat: Remat) -> bool:
    """Returns whether the backward pass recomputes no product with weights."""
    return remat == Remat.NONE or PRODUCT in REMAT_KEEPS[remat]


def remat_policy(remat: Remat) -> Callable[..., bool]:
    """Returns the policy of `jax.checkpoint`; the inputs of a layer are always kept."""
    names = REMAT_KEEPS[remat]
    is_named = jax.checkpoint_policies.save_only_these_names(*names)

    def keeps(primitive, *args, **params) -> bool:
        is_cudnn = primitive.name == CUDNN_ATTENTION and ATTENTION in names
        return is_cudnn or is_named(primitive, *args, **params)

    return keeps
