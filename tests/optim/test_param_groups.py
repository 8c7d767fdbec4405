import numpy as np
import pytest

from gpt_jax.parameter import Role
from tests.optim.parameters import GROUPS, SHAPES, flatten, random_tree

# path                                group      decays  inputs   outputs (axes of a hidden kernel)
TABLE = """
embedding/table                       embedding  yes
position/table                        embedding  yes
blocks/attention_norm/scale           vector     no
blocks/attention_norm/bias            vector     no
blocks/attention/query/kernel         hidden     yes     1        2,3
blocks/attention/query/bias           vector     no
blocks/attention/key/kernel           hidden     yes     1        2,3
blocks/attention/key/bias             vector     no
blocks/attention/value/kernel         hidden     yes     1        2,3
blocks/attention/value/bias           vector     no
blocks/attention/query_norm/scale     vector     no
blocks/attention/key_norm/scale       vector     no
blocks/attention/output/kernel        hidden     yes     1,2      3
blocks/attention/output/bias          vector     no
blocks/attention_post_norm/scale      vector     no
blocks/attention_post_norm/bias       vector     no
blocks/mlp_norm/scale                 vector     no
blocks/mlp_norm/bias                  vector     no
blocks/mlp/up/kernel                  hidden     yes     1        2
blocks/mlp/up/bias                    vector     no
blocks/mlp/gate/kernel                hidden     yes     1        2
blocks/mlp/gate/bias                  vector     no
blocks/mlp/down/kernel                hidden     yes     1        2
blocks/mlp/down/bias                  vector     no
blocks/mlp_post_norm/scale            vector     no
blocks/mlp_post_norm/bias             vector     no
final_norm/scale                      vector     no
final_norm/bias                       vector     no
output/table                          embedding  yes
"""
ROWS = {row.split()[0]: row.split()[1:] for row in TABLE.strip().splitlines()}


def test_every_path_has_its_group():
    params = random_tree(0)
    mask = flatten(GROUPS.decay_mask(params))
    actual = {
        path: [str(GROUPS.role(path)), 'yes' if mask[path] else 'no', *axes(path)]
        for path in SHAPES
    }
    assert actual == ROWS


def axes(path):
    if GROUPS.role(path) is not Role.HIDDEN:
        return []
    sides = GROUPS.matrix_axes(path, len(SHAPES[path]))
    return [','.join(map(str, side)) for side in sides]


def test_every_parameter_of_the_tree_is_declared():
    assert GROUPS.declared.keys() == SHAPES.keys()
    assert {path for path in SHAPES if GROUPS.is_stacked(path)} == {
        path for path in SHAPES if path.startswith('blocks/')
    }


@pytest.mark.parametrize('path', ['blocks/attention/sinks', 'head/kernel'])
def test_an_unknown_path_is_refused(path):
    with pytest.raises(KeyError, match=path):
        GROUPS.role(path)


def test_matrix_shape_joins_heads():
    assert GROUPS.matrix_shape('blocks/attention/query/kernel', (3, 8, 2, 4)) == (3, 8, 8)
    assert GROUPS.matrix_shape('blocks/attention/output/kernel', (3, 2, 5, 7)) == (3, 10, 7)
    assert GROUPS.matrix_shape('blocks/attention/query/bias', (3, 2, 4)) == (3, 8)
    assert GROUPS.matrix_shape('blocks/mlp/up/bias', (3, 16)) == (3, 16)


def test_a_matrix_is_the_layer_as_it_multiplies():
    kernel = np.random.default_rng(0).standard_normal((3, 8, 2, 4))
    x = np.ones(8)
    shape = GROUPS.matrix_shape('blocks/attention/query/kernel', kernel.shape)
    np.testing.assert_allclose(
        (x @ kernel.reshape(shape)[1]).reshape(2, 4), np.einsum('D,DHK->HK', x, kernel[1])
    )
