"""Parity with transformers on torch: its models come in, ours go out to a process without us."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gpt_jax.inference.config import SampleConfig, finalize_sample
from gpt_jax.inference.generate import Generator
from gpt_jax.tokenizer import (
    SentencePieceAlgorithm,
    TokenizerConfig,
    TokenizerKind,
    chat_template,
    make_tokenizer,
)
from gpt_jax.tokenizer.chat_template import ChatTemplate
from gpt_jax.weights import open_source
from gpt_jax.weights.export import export_transformers, write_tokenizer
from tests.weights.random_source import (
    GPT2,
    LLAMA,
    TEXT,
    bpe_tokenizer,
    load,
    logits,
    make_model,
    random_params,
    write_folder,
)

transformers = pytest.importorskip('transformers', reason='the reference, pinned on 3.11 only')
torch = pytest.importorskip('torch')

TOKENS = np.random.default_rng(0).integers(0, 300, (2, 32))
TOLERANCE = 1e-4  # of the largest logit

_LLAMA = dict(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
MODELS = {
    'GPT-2': lambda: transformers.GPT2Config(
        vocab_size=300, n_positions=64, n_embd=32, n_layer=3, n_head=4
    ),
    'GPT-2 untied, exact GELU, narrow MLP': lambda: transformers.GPT2Config(
        vocab_size=300,
        n_positions=32,
        n_embd=48,
        n_layer=2,
        n_head=3,
        n_inner=40,
        activation_function='gelu',
        layer_norm_epsilon=1e-3,
        tie_word_embeddings=False,
    ),
    'Llama': lambda: transformers.LlamaConfig(**_LLAMA),
    'Llama with one key/value head, tied': lambda: transformers.LlamaConfig(
        **_LLAMA | dict(num_key_value_heads=1, tie_word_embeddings=True, rms_norm_eps=1e-3)
    ),
    'Llama 1, other head dimension': lambda: transformers.LlamaConfig(
        **_LLAMA | dict(num_key_value_heads=4, head_dim=10)
    ),
    'Llama 3.1': lambda: transformers.LlamaConfig(
        **_LLAMA,
        rope_parameters={
            'rope_type': 'llama3',
            'rope_theta': 10000.0,
            'factor': 4.0,
            'low_freq_factor': 1.0,
            'high_freq_factor': 4.0,
            'original_max_position_embeddings': 16,
        },
    ),
    'Llama, linear scaling': lambda: transformers.LlamaConfig(
        **_LLAMA, rope_parameters={'rope_type': 'linear', 'rope_theta': 5000.0, 'factor': 2.0}
    ),
    'Qwen2': lambda: transformers.Qwen2Config(**_LLAMA),
    'Qwen3': lambda: transformers.Qwen3Config(**_LLAMA, head_dim=16),
}


@pytest.mark.parametrize('make', MODELS.values(), ids=MODELS)
def test_logits_of_imported_models(make, tmp_path):
    """Random weights of some size, biases and norms included, so that each of them counts."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(make()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    model.save_pretrained(tmp_path)
    source, params = load(tmp_path)
    ours = logits(source.model, params, TOKENS)
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()


# Runs without this project: what a user of the folder would write.
THEIRS = """
import json, sys
import numpy as np, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

prompt, length, *folders = sys.argv[1:]
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors='pt')
    with torch.no_grad():
        logits = model(inputs['input_ids']).logits[0].numpy()
    np.save(folder + '/theirs.npy', logits)
    drawn = model.generate(
        inputs['input_ids'], attention_mask=torch.ones_like(inputs['input_ids']),
        max_new_tokens=int(length), do_sample=False,
    )
    text = tokenizer.decode(drawn[0], skip_special_tokens=True)
    print(json.dumps({'ids': inputs['input_ids'][0].tolist(), 'text': text,
                      'gpt_jax': 'gpt_jax' in sys.modules, 'type': type(model).__name__}))
"""


def in_transformers(folders: list[pathlib.Path], prompt: str, length: int) -> list[dict]:
    """Loads folders with transformers, in a process that cannot import this project."""
    done = subprocess.run(
        [sys.executable, '-I', '-c', THEIRS, prompt, str(length), *map(str, folders)],
        cwd=folders[0],
        capture_output=True,
        text=True,
        timeout=300,
        env={'HF_HUB_OFFLINE': '1', 'HOME': str(folders[0])},
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]
    return [
        result | {'logits': np.load(folder / 'theirs.npy')}
        for result, folder in zip(results, folders, strict=True)
    ]


def test_exported_folders_load_in_a_clean_process(tmp_path):
    models = {
        'GPT2LMHeadModel': GPT2,
        'LlamaForCausalLM': LLAMA | dict(rope_scaling=4.0, rope_original_seq_len=16),
        'Qwen2ForCausalLM': LLAMA | dict(qkv_bias=True),
        'Qwen3ForCausalLM': LLAMA | dict(qk_norm=True, head_dim=16),
    }
    written = {tmp_path / kind: write_folder(tmp_path / kind, **models[kind]) for kind in models}
    prompt, tokenizer = 'The quick brown fox', bpe_tokenizer()
    sampling = SampleConfig(temperature=0.0, max_new_tokens=12)
    finalize_sample(sampling)
    for theirs, (folder, model) in zip(
        in_transformers([*written], prompt, 12), written.items(), strict=True
    ):
        assert (theirs['type'], theirs['gpt_jax']) == (folder.name, False)
        assert theirs['ids'] == tokenizer.encode(prompt)
        ours = logits(*model, np.array([theirs['ids']]))[0]
        assert np.abs(ours - theirs['logits']).max() <= TOLERANCE * np.abs(ours).max()
        [generation] = Generator(*model, tokenizer).generate([prompt], sampling)
        assert theirs['text'] == prompt + generation.text


TOKENIZERS = {
    'byte': TokenizerConfig(kind=TokenizerKind.BYTE),
    'char': TokenizerConfig(kind=TokenizerKind.CHAR),
    'bpe': TokenizerConfig(kind=TokenizerKind.BPE, vocab_size=300),
    'sentencepiece': TokenizerConfig(kind=TokenizerKind.SENTENCEPIECE, vocab_size=290),
    'sentencepiece BPE': TokenizerConfig(
        kind=TokenizerKind.SENTENCEPIECE, vocab_size=300, algorithm=SentencePieceAlgorithm.BPE
    ),
}


@pytest.mark.parametrize('config', TOKENIZERS.values(), ids=TOKENIZERS)
@pytest.mark.parametrize('begins', [False, True], ids=['', 'with a beginning'])
def test_tokenizers_travel(config, begins, tmp_path):
    tokenizer = make_tokenizer(config, lambda: [TEXT + 'é,\n\t'])
    if begins:
        tokenizer = tokenizer.with_ends(bos_id=tokenizer.eot_id, eot_id=tokenizer.eot_id)
    write_tokenizer(tmp_path, tokenizer, max_length=32)
    (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    first = [tokenizer.eot_id] if begins else []
    for text in ('The quick  brown fox.', ' é, the lazy\n\tdog ', ''):
        ids = first + tokenizer.encode(text)
        assert theirs(text)['input_ids'] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == text
    assert theirs.eos_token_id == tokenizer.eot_id
    assert theirs.model_max_length == 32


CHAT = [
    {'role': 'user', 'content': ' Why, brown fox?'},
    {'role': 'assistant', 'content': 'Over the dog.'},
    {'role': 'user', 'content': 'And then?'},
    {'role': 'assistant', 'content': 'lazy'},
]
MARKS_ANSWERS = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] | trim }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m['content'] | trim }}{% endif %}\n{% endfor %}"
    '{% if add_generation_prompt %}[assistant]\n{% endif %}'
)

# Everything else that templates are given, and the whole of what `tojson` takes.
NAMES_TOKENS = (
    '{{ bos_token }}{% if tools is not none or documents is not none %}tools{% endif %}'
    "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}"
    "{{ {'b': m['content'], 'a': 'é'} | tojson(ensure_ascii=True, sort_keys=True, "
    "separators=(',', ':')) }}{{ eos_token }}{% endgeneration %}{% else %}"
    "{{ m['content'] | tojson(indent=2) }}{{ pad_token }}{{ unk_token }}{% endif %}\n{% endfor %}"
    '{% if add_generation_prompt %}assistant: {% endif %}'
)


@pytest.mark.parametrize('template', [chat_template.DEFAULT, MARKS_ANSWERS, NAMES_TOKENS])
@pytest.mark.parametrize('begins', [False, True], ids=['named', 'put before every text'])
@pytest.mark.parametrize('kind', ['byte', 'char', 'bpe'])
def test_conversations_travel(kind, begins, template, tmp_path):
    """Ids, what is learned of them, and prompts, of the exported template."""
    letters = ''.join(map(chr, range(32, 127))) + '\n'
    tokenizer = make_tokenizer(TOKENIZERS[kind], lambda: [TEXT + letters])
    end = tokenizer.eot_id
    tokenizer = tokenizer.with_ends(bos_id=end if begins else None, eot_id=end)
    names = dict.fromkeys(('bos_token', 'eos_token', 'pad_token'), '<|endoftext|>')
    tokenizer = tokenizer.with_chat(template=template, named_tokens=names)
    config = make_model(**GPT2 | dict(vocab_size=tokenizer.vocab_size))
    params = random_params(config)
    names = export_transformers(tmp_path, config, params, tokenizer, dtype='float32')
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    source = open_source(str(tmp_path))
    assert source.chat_template == template
    assert source.tokenizer.named_tokens == tokenizer.named_tokens
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    settings = {'tokenize': True, 'return_dict': True}
    ours = ChatTemplate.of(tokenizer)
    whole = theirs.apply_chat_template(CHAT, return_assistant_tokens_mask=True, **settings)
    ids, spans = chat_template.encode(ours.segments(CHAT), tokenizer)
    assert ids.tolist() == whole['input_ids']
    mask = np.zeros(len(ids), int)
    for start, stop in spans:
        mask[start:stop] = 1
    assert mask.tolist() == whole['assistant_masks'] and 0 < mask.sum() < len(mask)
    prompt = theirs.apply_chat_template(CHAT[:3], add_generation_prompt=True, **settings)
    assert chat_template.encode(ours.prompt(CHAT[:3]), tokenizer)[0].tolist() == prompt['input_ids']
