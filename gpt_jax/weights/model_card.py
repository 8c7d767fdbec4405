"""The README.md of an exported model, with the metadata that the Hugging Face hub reads."""

from typing import Any

from gpt_jax.model.config import ModelConfig
from gpt_jax.model.gpt import count_params
from gpt_jax.tokenizer import Tokenizer


def model_card(model: ModelConfig, tokenizer: Tokenizer, config: dict[str, Any]) -> str:
    """What the model is and how it is used; what it was trained on is for its owner to add."""
    ours = config['model_type'] == 'gpt_jax'
    use = (
        "from gpt_jax import GPT\n\ngpt = GPT.from_pretrained('.')\nprint(gpt.generate('Once'))"
        if ours
        else 'from transformers import AutoModelForCausalLM, AutoTokenizer\n\n'
        "model = AutoModelForCausalLM.from_pretrained('.')\n"
        "tokenizer = AutoTokenizer.from_pretrained('.')\n"
        "print(tokenizer.decode(model.generate(**tokenizer('Once', return_tensors='pt'))[0]))"
    )
    rows = {
        'architecture': config['model_type'],
        'parameters': f'{count_params(model):,}',
        'layers': model.num_layers,
        'heads': f'{model.num_heads} (key/value: {model.num_kv_heads})',
        'width': model.d_model,
        'context': f'{model.max_seq_len} tokens',
        'vocabulary': f'{model.vocab_size} tokens ({tokenizer.kind})',
    }
    table = '\n'.join(f'| {name} | {value} |' for name, value in rows.items())
    library = 'gpt_jax' if ours else 'transformers'
    return f"""---
library_name: {library}
pipeline_tag: text-generation
tags:
- gpt_jax
---

# A language model

Trained or adapted with gpt_jax, and exported from it.

| | |
|---|---|
{table}

```python
{use}
```

What it was trained on, how well it does and what it must not be used for is not known to the
program that wrote this page: add it before you publish the model.
"""
