"""Sorting a step's time: known gaps, names of every backend, and a trace of the real step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt_jax.benchmark import profile
from gpt_jax.benchmark.profile import Event
from gpt_jax.benchmark.training import TrainingBenchmark, synthetic_batches
from gpt_jax.config import finalize
from gpt_jax.errors import UserError
from gpt_jax.parallel.compiler_options import compiler_options
from gpt_jax.parallel.mesh import make_mesh
from gpt_jax.train.program import make_program
from tests.tiny_config import get_config

MODULE = """HloModule jit_train_step, is_scheduled=true
%body (p: f32[2]) -> f32[2] {
  %p = f32[2]{0} parameter(0), metadata={op_name="p"}
  ROOT %loop_add_fusion.7 = f32[2]{0} fusion(%p), kind=kLoop, metadata={op_name="UP/add"}
}
ENTRY %main (x: f32[2]) -> f32[2] {
  %while.3 = (s32[], /*index=1*/f32[2]{0}) while(%t), body=%body, metadata={op_name="jit(f)/while"}
  %dot.1 = f32[2]{0} dot(%x, %x), metadata={op_name="UP/dot_general" stack_frame_id=3}
  %copy.4 = f32[2]{0} copy(%x)
}
""".replace('UP', 'jit(train_step)/jvp(GPT.hidden)/blocks/layer_1/mlp/up')


def _event(kernel, start, end, instruction=''):
    return Event(kernel=kernel, instruction=instruction, start=start * 1e6, end=end * 1e6)


def test_gaps_and_shared_moments_add_up_to_the_window():
    events = [
        _event('dot.1', 0, 4, 'dot.1'),
        _event('copy.4', 2, 4, 'copy.4'),  # 2 to 4: shared with the product
        _event('while.3', 0, 12, 'while.3'),  # contains others: no kernel
        _event('dot.1', 7, 10, 'dot.1'),  # after a gap of 3
        _event('loop_add_fusion_7', 10, 12),
    ]
    instructions = profile.read_instructions(MODULE)
    result = profile.summarize(events, instructions, steps=2)
    assert result.step_ms == pytest.approx(6)
    expected = {'products': 3.0, 'gaps': 1.5, 'activation': 1.0, 'data movement': 0.5}
    assert result.groups == pytest.approx(expected)
    assert list(result.groups) == list(expected), 'the largest comes first'
    first = result.kernels[0]
    assert (first.name, first.group, first.count) == ('dot', 'products', 1)
    assert first.operation == 'jvp(GPT.hidden)/blocks/layer_*/mlp/up/dot_general'


def test_a_modules_text_is_read():
    instructions = profile.read_instructions(MODULE)
    assert instructions['while.3'] is None
    assert instructions['copy.4'] == ''
    assert instructions['loop_add_fusion.7'].endswith('layer_1/mlp/up/add')


STEP = 'jit(train_step)/'
FORWARD, BACKWARD = STEP + 'jvp(GPT.hidden)/', STEP + 'transpose(jvp(GPT.hidden))/'
LAYER = 'blocks/while/body/closed_call/layer_0/'
CASES = {
    # op_name, instruction, kernel -> group
    ('', '', 'ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)'): (
        'communication'
    ),
    (BACKWARD + LAYER + 'mlp/up/dot_general', 'all-reduce-start.2', ''): 'communication',
    ('', '', 'cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_32x32_128x2_tn_align8'): 'products',
    ('', '', 'nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT'): 'products',
    ('', '', 'gemm_fusion_dot_12'): 'products',
    ('', '', 'cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16'): 'attention',
    (FORWARD + LAYER + 'attention/query/dot_general', 'cublas-gemm.3', 'nvjet'): 'products',
    (BACKWARD + LAYER + 'attention/attention._heads/value/transpose', 'dot.2', ''): 'products',
    (FORWARD + LAYER + 'attention/BLGRK,BSGK->BGRLS/dot_general', 'fusion.8', ''): 'attention',
    (BACKWARD + LAYER + 'attention/reduce_sum', 'fusion.9', ''): 'attention',
    (FORWARD + LAYER + 'attention/key_norm/mul', 'fusion.1', ''): 'norm',
    (FORWARD + 'final_norm/mul', 'fusion.2', ''): 'norm',
    (BACKWARD + LAYER + 'mlp/down/dot_general', 'fusion.3', 'loop_fusion_3'): 'products',
    (BACKWARD + LAYER + 'mlp/mul', 'fusion.4', ''): 'activation',
    (FORWARD + 'dropout/jit(_bernoulli)/jit(_uniform)/add', 'fusion.3', ''): 'dropout',
    (STEP + 'jvp(loss)/dot_general', 'dot.7', ''): 'products',
    (STEP + 'jvp(loss)/jit(_where)/select_n', 'fusion.5', ''): 'loss',
    (STEP + 'transpose(jvp(loss))/mul', 'fusion.6', ''): 'loss',
    (STEP + 'optimizer/vmap()/closed_call/dot_general', 'dot.8', ''): 'optimizer',
    (STEP + 'clip/reduce_sum', 'fusion.7', ''): 'optimizer',
    (BACKWARD + 'embedding/jit(_take)/scatter-add', 'scatter.1', ''): 'embedding',
    (STEP + 'slice', 'slice_bitcast_fusion.2', 'loop_slice_fusion'): 'data movement',
    ('', 'copy.282', 'copy.282'): 'data movement',
    ('', 'transpose_copy_fusion', ''): 'other',
    ('', 'copy_fusion.2', ''): 'data movement',
    ('', '', 'MemcpyD2D'): 'data movement',
    (BACKWARD + LAYER + 'add_any', 'fusion.11', 'loop_add_fusion_11'): 'other',
}


@pytest.mark.parametrize(('names', 'group'), CASES.items(), ids=lambda each: str(each)[-60:])
def test_each_backends_names_are_sorted(names, group):
    assert profile.classify(*names) == group


@pytest.mark.slow
def test_the_real_step_is_traced(tmp_path):
    config = get_config('muon')
    config.model.position = 'rope'
    config.train.steps_per_call = 1
    config = finalize(config, vocab_size=65)
    program = make_program(config, make_mesh(config.mesh))
    with profile.exact_names():
        training = TrainingBenchmark(program, config, synthetic_batches(config))
    instructions = profile.read_instructions(training.compiled.as_text())
    results = []
    for attempt in range(3):  # other processes stretch what they interrupt
        trace = profile.record(tmp_path / f'profile-{attempt}', lambda: training.run(3))
        events = profile.read_events(trace, platform='cpu')
        results.append(profile.summarize(events, instructions, steps=3))
    result = min(results, key=lambda each: each.groups.get('other', 0.0))
    assert sum(result.groups.values()) == pytest.approx(result.step_ms)
    busy = result.step_ms - result.groups['gaps']
    assert result.groups.get('other', 0.0) < 0.2 * busy, 'most of the time has a group'
    assert {'products', 'attention', 'norm', 'optimizer', 'loss'} <= set(result.groups)
    scopes = {each.operation.split('/')[0] for each in result.kernels if each.group == 'optimizer'}
    assert {'clip', 'optimizer'} <= scopes
    assert sum(each.milliseconds for each in result.kernels) == pytest.approx(busy)
    printed = profile.format_profile(result, rows=1000)
    assert 'optimizer' in printed
    assert max(map(len, printed.splitlines())) < 200, 'long names are cut'


def test_a_product_lasts_until_other_threads_have_finished_it(tmp_path):
    x = jnp.eye(1024)
    options = compiler_options('cpu', deterministic=False)
    module = jax.jit(lambda x: x @ x @ x @ x @ x @ x, compiler_options=options).lower(x).compile()
    jax.block_until_ready(module(x))
    trace = profile.record(tmp_path, lambda: jax.block_until_ready(module(x)))
    events = profile.read_events(trace, platform='cpu')
    instructions = profile.read_instructions(module.as_text())
    result = profile.summarize(events, instructions, steps=1)
    assert result.groups['gaps'] < 0.2 * result.step_ms


def test_a_trace_without_kernels_is_refused(tmp_path):
    trace = profile.record(tmp_path, lambda: jax.block_until_ready(np.zeros(3)))
    with pytest.raises(UserError, match='/device:GPU:0; leave out --profile'):
        profile.read_events(trace, platform='gpu')


def test_names_are_those_of_this_source_and_not_of_the_cache():
    def compiled_names(scope):
        @jax.jit
        def double(x):
            with jax.named_scope(scope):
                return x * 2.0

        return double.lower(np.float32(1)).compile().as_text()

    with profile.exact_names():
        assert 'double)/before/' in compiled_names('before')
        assert 'double)/after/' in compiled_names('after')
    assert not jax.config.jax_compilation_cache_include_metadata_in_key
