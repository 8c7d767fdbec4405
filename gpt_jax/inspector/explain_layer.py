"""The steps of one token through one layer."""

import jax.numpy as jnp
import numpy as np

from gpt_jax.inspector.walk import (
    Check,
    Step,
    Walk,
    number,
    quoted,
    shape,
    table,
    vector,
)
from gpt_jax.kernels.scores import MASKED, hide_masked, soften
from gpt_jax.model.attention import attend
from gpt_jax.model.block import Block
from gpt_jax.model.config import MLPKind, NormPlacement, ParallelResidual
from gpt_jax.model.mlp import MixtureOfExperts
from gpt_jax.model.mlp.activation import ACTIVATIONS, activate
from gpt_jax.model.mlp.experts import Balance, Scores
from gpt_jax.model.position import POSITIONS, rope_frequencies, rotated_width

SOURCES = 8  # tokens in the table of an attention
RANKED = 4  # neurons, experts

ACTIVATION_FORMULAS = {
    MLPKind.GELU: 'x * Phi(x)',
    MLPKind.GELU_TANH: 'x/2 * (1 + tanh(0.798 * (x + 0.0447 x³)))',
    MLPKind.RELU: 'max(x, 0)',
    MLPKind.RELU2: 'max(x, 0)²',
    MLPKind.SWIGLU: 'x / (1 + exp(-x))',
    MLPKind.GEGLU: 'x/2 * (1 + tanh(0.798 * (x + 0.0447 x³)))',
}


def layer_steps(walk: Walk) -> list[Step]:
    """Returns the steps of the layer."""
    return [
        *_norm_before(walk, 'attention'),
        _projections(walk),
        *_rotation(walk),
        *_attention(walk),
        _join(walk, 'attention', 'residual_before', 'residual_middle'),
        *(_mlp_branch(walk) if walk.has('mlp_output') else []),
    ]


def norm_step(
    walk: Walk, module: str, x: np.ndarray, normed: np.ndarray, *, title: str, about: str
) -> Step:
    """Returns the step of a norm, whose first number is computed again."""
    params, [norm], D = walk.params_of(module), walk.code(module), len(x)
    scale = float(params['scale'][0]) + walk.config.norm_zero_centered
    bias = float(params['bias'][0]) if 'bias' in params else 0.0
    centre = float(x.mean()) if norm.centred else 0.0
    size = float(np.sqrt(np.mean((x - centre) ** 2) + walk.config.norm_epsilon))
    formula = (
        'h = (x - mean(x)) / deviation(x) * scale' if norm.centred else 'h = x / rms(x) * scale'
    )
    formula += ' + bias' if 'bias' in params else ''
    minus = f'({number(x[0])} - {number(centre)})' if norm.centred else number(x[0])
    plus = f' + {number(bias)}' if 'bias' in params else ''
    text = f'h[0]: {minus} / {number(size)} * {number(scale)}{plus}'
    return Step(
        title,
        about,
        f'{formula}   {shape(D)}',
        (norm,),
        (vector('x', x), vector('h', normed)),
        (Check(text, (x[0] - centre) / size * scale + bias, normed[0]),),
    )


def _norm_before(walk: Walk, branch: str) -> list[Step]:
    c = walk.config
    if c.norm_placement not in (NormPlacement.PRE, NormPlacement.SANDWICH):
        return []
    parallel = c.parallel_residual != ParallelResidual.OFF
    if branch == 'mlp' and c.parallel_residual == ParallelResidual.ONE_NORM:
        return []
    start = 'residual_before' if branch == 'attention' or parallel else 'residual_middle'
    return [
        norm_step(
            walk,
            f'{branch}_norm',
            walk.at(start),
            walk.at(f'{branch}_input'),
            title=f'{walk.name}: norm before the {_SAID[branch]}',
            about='The branch reads the stream at a fixed scale; the stream itself is unchanged.',
        )
    ]


_SAID = {'attention': 'attention', 'mlp': 'MLP'}


def _maps(walk: Walk) -> tuple[list[int], list[int]]:
    """Returns the indices of the head's maps of weights, and of the keys that they read."""
    c, weights = walk.config, walk.at('attention.weights')
    count = len(weights) // c.num_heads  # 2 in differential attention
    group, rest = divmod(walk.head, c.num_heads // c.num_kv_heads)
    shared = c.num_heads // c.num_kv_heads
    maps = [group * count * shared + each * shared + rest for each in range(count)]
    keys = walk.all('attention.key').values.shape[1]
    return maps, [each // (len(weights) // keys) for each in maps]


def _projections(walk: Walk) -> Step:
    c, code = walk.config, (*walk.code('attention'), *walk.code('attention.query'))
    title = f'{walk.name}, head {walk.head}: query, key, value'
    if not walk.has('attention.weights'):
        return Step(f'{walk.name}: attention', 'This attention has no points inside.', code=code)
    maps, keys = _maps(walk)
    query, key = walk.at('attention.projected_query'), walk.at('attention.projected_key')
    value = walk.at('attention.value')[keys[0]]
    lines, shared = [], len(key) == 1 < len(walk.at('attention.key'))
    for i, (each, of_key) in enumerate(zip(maps, keys, strict=True)):
        sign = f'{i + 1}' if len(maps) > 1 else ''
        lines += [vector(f'q{sign}', query[each]), vector(f'k{sign}', key[0 if shared else of_key])]
    lines.append(vector('v', value))
    about = (
        'The query says what the token looks for, the key what it offers, the value what it gives.'
    )
    if c.num_kv_heads < c.num_heads:
        about += f' {c.num_heads // c.num_kv_heads} query heads share a key and a value.'
    if len(maps) > 1:
        about += ' The head has two queries and two keys, one for each of its two maps.'
    if walk.code('attention.key_norm'):
        about += ' Query and key are then normalized.'
        code = (*code, *walk.code('attention.key_norm'))
    if shared:
        about += ' Keys and values come from one small vector; k is the part that heads share.'
    formula = f'q = h W_q   {shape(query.shape[-1])} = {shape(c.d_model)} '
    formula += f'{shape(c.d_model, query.shape[-1])}, and so k, v'
    return Step(title, about, formula, code, tuple(lines))


def _rotation(walk: Walk) -> list[Step]:
    c = walk.config
    rotate = POSITIONS[c.position].rotate
    if rotate is None or not walk.has('attention.projected_key'):
        return []
    _, keys = _maps(walk)
    before = _normed(walk, walk.at('attention.projected_key'))
    before = before[min(keys[0], len(before) - 1)]
    after = walk.at('attention.key')[keys[0]][-len(before) :]
    half = rotated_width(c, len(before)) // 2
    frequencies, factor = rope_frequencies(c, len(before)), c.rope.attention_factor
    pair = min(1, half - 1)  # the angle of pair 0 is the position itself
    angle = float(walk.token * frequencies[pair])
    first, second = float(before[pair]), float(before[pair + half])
    times = '' if factor == 1 else f' * {factor}'
    text = (
        f'k[{pair}]: ({number(first)} * cos {number(angle)} '
        f'- {number(second)} * sin {number(angle)}){times}'
    )
    turned = (first * np.cos(angle) - second * np.sin(angle)) * factor
    return [
        Step(
            f'{walk.name}, head {walk.head}: position, by rotation',
            f'Pair (i, i + {half}) of queries and keys turns by position * frequency(i), so that '
            'q · k depends on the distance of two tokens.',
            f'angle = {walk.token} * {number(frequencies[pair])} = {number(angle)} of pair {pair}',
            (rotate, rope_frequencies),
            (
                f'pair {pair} of k before  {number(first)} {number(second)}',
                f'pair {pair} of k after   {number(after[pair])} {number(after[pair + half])}',
            ),
            (Check(text, turned, after[pair]),),
        )
    ]


def _normed(walk: Walk, key_GK: np.ndarray) -> np.ndarray:
    """Returns projected keys after the norm of queries and keys, if the attention has one."""
    scale = walk.params_of('attention.key_norm').get('scale')
    if scale is None:
        return key_GK
    scale = np.asarray(scale, np.float32) + walk.config.norm_zero_centered
    rows = key_GK.reshape(-1, len(scale))  # a head each, or all heads together
    size = np.sqrt(np.mean(rows**2, -1, keepdims=True) + walk.config.norm_epsilon)
    return (rows / size * scale).reshape(key_GK.shape)


def _attention(walk: Walk) -> list[Step]:
    if not walk.has('attention.weights'):
        return []
    maps, keys = _maps(walk)
    steps = [
        _scores(walk, each, of_key, i + 1 if len(maps) > 1 else 0)
        for i, (each, of_key) in enumerate(zip(maps, keys, strict=True))
    ]
    out = walk.at('attention.heads')[walk.head]
    title = f'{walk.name}, head {walk.head}: weighted sum of values'
    values = walk.all('attention.value').values[:, keys[0]]
    weights = walk.at('attention.weights')
    if len(maps) == 1:
        shown = _shown(weights[maps[0]])
        terms = ' + '.join(
            f'{number(weights[maps[0]][i])} * {number(values[i, 0])}' for i in shown[:3]
        )
        more = ' + …' if len(values) > 3 else ''
        check = (Check(f'out[0]: {terms}{more}', weights[maps[0]] @ values[:, 0], out[0]),)
        about, formula = 'The weights mix the values of the tokens.', 'out = sum of weight(i) v(i)'
    else:
        check, formula = (), 'out = norm(map 1 v - lambda map 2 v) * (1 - start of lambda)'
        about = 'The second map, times a learned lambda, is subtracted: it cancels common noise.'
    dims = f'   {shape(len(out))} = {shape(len(values))} {shape(*values.shape)}'
    code = walk.code('attention') if len(maps) > 1 else (attend,)
    steps.append(Step(title, about, formula + dims, code, (vector('out', out),), check))
    return steps + _output(walk)


def _scores(walk: Walk, index: int, key_index: int, number_of_map: int) -> Step:
    c = walk.config
    query, keys = walk.at('attention.query')[index], walk.all('attention.key').values[:, key_index]
    score, weight = walk.at('attention.scores')[index], walk.at('attention.weights')[index]
    value = walk.all('attention.value').values[:, key_index]
    products, width = keys @ query, len(query)
    shown, code = _shown(weight), [attend]
    formula = f'q · k(i) / √{width}'
    if c.attention_soft_cap:
        cap = c.attention_soft_cap
        formula, code = f'{cap} * tanh({formula} / {cap})', [*code, soften]
    slopes, slope = POSITIONS[c.position].slopes, 0.0
    if slopes is not None:
        slope = float(slopes(c)[walk.head])
        formula += f' - {number(slope)} * distance'
        code += [slopes, hide_masked]
    visible, largest = score > MASKED / 2, float(score.max())
    exponents = np.where(visible, np.exp(score.astype(np.float64) - largest), 0.0)
    rows = [
        (
            f'{i} {quoted(walk.values.texts[i])}',
            *map(number, (products[i], score[i], exponents[i], weight[i], value[i, 0])),
        )
        for i in shown
    ]
    lines = table(('token', 'q · k', 'score', 'exp(score - max)', 'weight', 'v[0]'), rows)
    hidden = int(visible.sum()) - len(shown)
    lines += [f'and {hidden} more tokens with less weight'] if hidden > 0 else []
    total = float(exponents.sum())
    lines.append(f'sum of exp(score - max) over {visible.sum()} visible tokens: {number(total)}')
    best = shown[0]
    found = products[best] * width**-0.5
    text = f'{number(products[best])} / √{width}'
    if c.attention_soft_cap:
        found = c.attention_soft_cap * np.tanh(found / c.attention_soft_cap)
        text = f'{c.attention_soft_cap} * tanh({text} / {c.attention_soft_cap})'
    if slope:
        found -= slope * (walk.token - best)
        text += f' - {number(slope)} * {walk.token - best}'
    window = walk.inspector.config.windows[walk.layer]
    about = 'A token looks at itself and earlier ones'
    about += f', {window} at most.' if window else '.'
    about += ' Softmax makes the scores positive weights that sum to 1.'
    of_map = f', map {number_of_map}' if number_of_map else ''
    return Step(
        f'{walk.name}, head {walk.head}{of_map}: scores and weights',
        about,
        f'score(i) = {formula};  weight(i) = exp(score(i) - max) / sum',
        tuple(code),
        tuple(lines),
        (
            Check(f'score({best}): {text}', found, score[best]),
            Check(
                f'weight({best}): {number(exponents[best])} / {number(total)}',
                exponents[best] / total,
                weight[best],
            ),
        ),
    )


def _shown(weights: np.ndarray) -> list[int]:
    """Returns the tokens with the largest weights, the largest first; none with weight 0."""
    order = np.argsort(-weights, kind='stable')[:SOURCES]
    return [int(i) for i in order if weights[i] > 0]


def _output(walk: Walk) -> list[Step]:
    """Returns the step of the output projection, as a sum over heads, if its kernel is known."""
    params, c = walk.params_of('attention.output'), walk.config
    if 'kernel' not in params:
        return []
    heads, kernel = walk.at('attention.heads'), np.asarray(params['kernel'], np.float32)
    shares = np.einsum('HK,HKD->HD', heads, kernel)
    bias = np.asarray(params['bias'], np.float32) if 'bias' in params else np.zeros(c.d_model)
    written = shares.sum(0) + bias
    rows = [
        (f'head {i}', number(share[0]), number(np.linalg.norm(share)))
        for i, share in enumerate(shares)
    ]
    if 'bias' in params:
        rows.append(('bias', number(bias[0]), number(np.linalg.norm(bias))))
    lines = [*table(('', 'number 0', 'norm'), rows[: SOURCES + 1]), vector('sum', written)]
    if len(rows) > SOURCES + 1:
        lines.insert(SOURCES + 2, f'and {len(rows) - SOURCES - 1} more')
    checks = ()
    if c.norm_placement not in (NormPlacement.SANDWICH, NormPlacement.OUTPUT):
        expected = walk.at('attention_output')[0]
        checks = (Check('sum[0]: the column above', written[0], expected),)
    H, K, D = kernel.shape
    return [
        Step(
            f'{walk.name}: output projection',
            'Each head writes to the stream by its own rows of W_o; the heads add up.',
            f'sum = [out of head 0, out of head 1 …] W_o   {shape(D)} = {shape(H * K)} '
            f'{shape(H * K, D)}',
            (*walk.code('attention'), *walk.code('attention.output')),
            tuple(lines),
            checks,
        )
    ]


def _mlp_branch(walk: Walk) -> list[Step]:
    return [
        *_norm_before(walk, 'mlp'),
        *_mlp(walk),
        _join(walk, 'mlp', 'residual_middle', 'residual_after'),
    ]


def _mlp(walk: Walk) -> list[Step]:
    mlp, code = walk.config.mlp, walk.code('mlp')
    if isinstance(mlp, MixtureOfExperts):
        return [_experts(walk, mlp)]
    if not walk.has('mlp.up') or not walk.has('mlp.hidden'):
        return [Step(f'{walk.name}: MLP', 'This MLP has no points inside.', code=code)]
    kind, up, hidden = mlp.activation, walk.at('mlp.up'), walk.at('mlp.hidden')
    D, F, gated = walk.config.d_model, len(up), ACTIVATIONS[kind].gated
    i = int(np.abs(hidden).argmax())
    inner = walk.at('mlp.gate') if gated else up
    lines = [
        vector('up', up),
        *([vector('gate', inner)] if gated else []),
        vector('hidden', hidden),
    ]
    order = np.argsort(-np.abs(hidden), kind='stable')[:RANKED]
    ranked = ', '.join(f'{j}: {number(hidden[j])}' for j in order)
    lines += [f'largest neurons  {ranked}', f'above 0          {np.mean(hidden > 0):.0%} of {F}']
    formula = 'hidden = f(h W_gate) * (h W_up)' if gated else 'hidden = f(h W_up)'
    text = f'neuron {i}: f({number(inner[i])})' + (f' * {number(up[i])}' if gated else '')
    found = float(ACTIVATIONS[kind].function(jnp.asarray(inner[i]))) * (
        float(up[i]) if gated else 1.0
    )
    formula += f'   {shape(F)} = {shape(D)} {shape(D, F)}\nf(x) = {ACTIVATION_FORMULAS[kind]}'
    return [
        Step(
            f'{walk.name}: MLP, up and activation',
            'Each of the neurons looks for a pattern in this token alone.',
            formula,
            (*code, activate),
            tuple(lines),
            (Check(text, found, hidden[i]),),
        ),
        _down(walk, hidden),
    ]


def _down(walk: Walk, hidden: np.ndarray) -> Step:
    params, c = walk.params_of('mlp.down'), walk.config
    out = hidden @ np.asarray(params['kernel'], np.float32)
    if 'bias' in params:
        out = out + np.asarray(params['bias'], np.float32)
    checks = ()
    if c.norm_placement not in (NormPlacement.SANDWICH, NormPlacement.OUTPUT):
        checks = (Check('out[0]: hidden · column 0', out[0], walk.at('mlp_output')[0]),)
    return Step(
        f'{walk.name}: MLP, down',
        'Each neuron adds its row of W_down, times its activation.',
        f'out = hidden W_down   {shape(len(out))} = {shape(len(hidden))} '
        f'{shape(len(hidden), len(out))}',
        walk.code('mlp.down'),
        (vector('out', out),),
        checks,
    )


def _experts(walk: Walk, mlp: MixtureOfExperts) -> Step:
    logits, gates = walk.at('mlp.router').astype(np.float64), walk.at('mlp.gates')
    if mlp.scores == Scores.SOFTMAX:
        scores = np.exp(logits - logits.max())
        scores, formula = scores / scores.sum(), 'softmax(h W_router)'
    else:
        scores, formula = 1 / (1 + np.exp(-logits)), 'sigmoid(h W_router)'
    wanted = scores
    if mlp.balance == Balance.BIAS:
        wanted = scores + np.asarray(walk.params_of('mlp')['bias'])
    chosen = [int(i) for i in np.argsort(-wanted, kind='stable')[: mlp.experts_per_token]]
    order = np.argsort(-wanted, kind='stable')[: max(RANKED, len(chosen))]
    rows = [
        (
            f'expert {i}',
            number(logits[i]),
            number(scores[i]),
            number(gates[chosen.index(i)]) if i in chosen else 'not used',
        )
        for i in order
    ]
    total = sum(scores[i] for i in chosen) if mlp.normalize_gates else 1.0
    text = number(scores[chosen[0]]) + (f' / {number(total)}' if mlp.normalize_gates else '')
    text += f' * {mlp.gate_scale}' if mlp.gate_scale != 1 else ''
    about = f'The router chooses {len(chosen)} of {mlp.num_experts} MLPs for this token. '
    about += 'Their outputs are added, each times its gate.'
    if mlp.shared_experts:
        about += ' One more MLP, the shared experts, is used by every token.'
    if mlp.balance == Balance.BIAS:
        about += ' A learned bias changes who is chosen, and not the gates.'
    return Step(
        f'{walk.name}: router and experts',
        about,
        f'score = {formula}   {shape(len(logits))} = {shape(walk.config.d_model)} '
        f'{shape(walk.config.d_model, len(logits))};  out = sum of gate(e) expert_e(h)',
        walk.code('mlp'),
        (*table(('', 'logit', 'score', 'gate'), rows), vector('out', walk.at('mlp_output'))),
        (
            Check(
                f'gate of expert {chosen[0]}: {text}',
                scores[chosen[0]] / total * mlp.gate_scale,
                gates[0],
            ),
        ),
    )


def _join(walk: Walk, branch: str, start: str, end: str) -> Step:
    c, before, after = walk.config, walk.at(start), walk.at(end)
    out = walk.at(f'{branch}_output')
    title = f'{walk.name}: the {_SAID[branch]} is added to the stream'
    lines = (vector('stream', before), vector('+ branch', out), vector('= stream', after))
    code: tuple = (Block,)
    if c.norm_placement == NormPlacement.POST:
        code += walk.code(f'{branch}_norm')
        return Step(title, '', 'x = norm(x + branch)', code, lines)
    about, formula = '', 'x = x + branch'
    if c.norm_placement in (NormPlacement.SANDWICH, NormPlacement.OUTPUT):
        code += walk.code(f'{branch}_post_norm')
        about, formula = 'A norm of its own gives the branch a fixed scale.', 'x = x + norm(branch)'
    if (
        branch == 'attention'
        and c.parallel_residual != ParallelResidual.OFF
        and walk.has('mlp_output')
    ):
        about += ' The MLP reads the stream from before this sum: the two run in parallel.'
    text = f'x[0]: {number(before[0])} + {number(out[0])}'
    check = Check(text, float(before[0]) + float(out[0]), after[0])
    return Step(title, about.strip(), f'{formula}   {shape(len(after))}', code, lines, (check,))
