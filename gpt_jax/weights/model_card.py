"""The README.md of an exported model, with the metadata that the Hugging Face hub reads."""

import yaml

from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import count_params, describe_mlps
from gpt_jax.tokenizer import Tokenizer
from gpt_jax.weights.credits import NO_CREDITS, Credits

_USE = {
    'gpt_jax': """```python
from gpt_jax import GPT

gpt = GPT.from_pretrained('.')
print(gpt.generate('Once'))
```""",
    'transformers': """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained('.')
tokenizer = AutoTokenizer.from_pretrained('.')
print(tokenizer.decode(model.generate(**tokenizer('Once', return_tensors='pt'))[0]))
```""",
    'gguf': """```bash
llama-cli -m model.gguf -no-cnv -p Once
```""",
    'web': """```bash
python -m http.server
```

Then open the address that it prints.""",
    'llama2.c': """```bash
./run model.bin -z tokenizer.bin -i Once
```""",
}


_NOTE = """\
What it was trained on, how well it does and what it must not be used for is not known to the
program that wrote this page: add it before you publish the model.
"""


def is_model_card(page: bytes) -> bool:
    """Returns whether `model_card` wrote a README.md and its end is unedited."""
    return b'\n- gpt_jax\n' in page and page.endswith(_NOTE.encode())


def model_card(
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    architecture: str,
    library: str,
    credits: Credits = NO_CREDITS,
) -> str:
    """Returns a README.md that describes the model and its use; the owner adds the training data.

    Args:
      model: the architecture.
      tokenizer: the tokenizer that the model was trained with.
      architecture: the name that `library` gives the architecture.
      library: the program that reads the files: gpt_jax, transformers, gguf, llama2.c
        or web.
      credits: the credits of the exported model.
    """
    rows = {
        'architecture': architecture,
        'parameters': f'{count_params(model):,}',
        'layers': model.num_layers,
        'attention': model.attention.describe(model),
        'MLP': describe_mlps(model),
        'width': model.d_model,
        'context': f'{model.max_seq_len} tokens',
        'vocabulary': f'{model.vocab_size} tokens ({tokenizer.kind})',
    }
    table = '\n'.join(f'| {name} | {value} |' for name, value in rows.items())
    metadata = {
        'library_name': library,
        'pipeline_tag': 'text-generation',
        'tags': ['gpt_jax'],
        **credits.to_card(),
    }
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=10_000)
    return f"""---
{front}---

# {credits.name or 'A language model'}

Trained or adapted with gpt_jax, and exported from it.

| | |
|---|---|
{table}

{_USE[library]}

{_NOTE}"""
