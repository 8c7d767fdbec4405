"""Exported models and tokenizers in the scripts of the page, called without the page."""

import numpy as np

from gpt_jax import GPT
from gpt_jax.tokenizer.byte import ByteTokenizer
from gpt_jax.weights.web_export import export_web
from tests.weights.random_source import random_params

_OPEN = """
async (name) => {
  const load = (script) => import(new URL(`scripts/${script}.js`, document.baseURI));
  const [{ Session }, { chooseModel }, { Weights }] = await Promise.all(
    ['session', 'choose_model', 'weights'].map(load));
  const read = async (file) => fetch(new URL(`../${name}/${file}`, document.baseURI));
  const description = await (await read('model.json')).json();
  const weights = new Weights(description.tensors, await (await read('model.bin')).arrayBuffer());
  return new Session(description, (await chooseModel(description.model, weights, 'BACKEND')).model);
}
"""
_LOGITS = """
async ([name, ids, prompt]) => {
  const session = await (OPEN)(name), rows = [];
  for (let length = prompt; length <= ids.length; length++) {
    for (const _ of session.see(ids, length));
    rows.push([...await session.model.nextLogits()]);
  }
  return rows;
}
"""
_GENERATE = """
async ([name, ids, sampling]) => {
  const session = await (OPEN)(name), pieces = [];
  for await (const piece of session.generate(ids, sampling)) if (piece) pieces.push(piece);
  return pieces;
}
"""
_READ = """
async ([name, ids, sampling]) => {
  const session = await (OPEN)(name), { model } = session, read = [];
  const forward = model.forward.bind(model);
  model.forward = (chunk, ...rest) => {
    read.push(chunk.length);
    return forward(chunk, ...rest);
  };
  for await (const _ of session.generate(ids, sampling));
  return read;
}
"""
_BRANCHES = """
async ([name, branches, attended]) => {
  const session = await (OPEN)(name), found = [];
  const logits = async (model, ids) => {
    for (const _ of model.see(ids, ids.length));
    return [...await model.model.nextLogits()];
  };
  for (const ids of branches) {
    found.push([await logits(session, ids), await logits(await (OPEN)(name), ids)]);
    await session.attention(ids, attended);
  }
  return found;
}
"""
_TOKENIZER = """
async ([name, texts]) => {
  const { tokenizer } = await (OPEN)(name);
  return texts.map((text) => {
    const ids = tokenizer.encode(text);
    const stream = tokenizer.stream(), parts = ids.map((id) => stream.push(id));
    return { ids, text: tokenizer.decode(ids), streamed: [...parts, stream.flush()].join('') };
  });
}
"""
_ADJUST = """
async ([name, logits, ids, drawnFrom, sampling]) => {
  const { adjust } = await import(new URL('scripts/sampling.js', document.baseURI));
  const scores = adjust(logits, ids, sampling, drawnFrom);
  return [...scores].map((each) => (each === -Infinity ? null : each));
}
"""
_DRAW = """
async ([name, logits, count, sampling]) => {
  const { chooseNext } = await import(new URL('scripts/sampling.js', document.baseURI));
  return Array.from({ length: count }, (_, i) => chooseNext(logits, Array(i).fill(0), sampling, 0));
}
"""
_LOSE = """
async ([name]) => {
  const { model } = await (OPEN)(name);
  model.close();
  await new Promise((resolve) => setTimeout(resolve, 100));
  return model.nextLogits().catch((error) => error.message);
}
"""
_ATTENTION = """
async ([name, ids, positions]) => {
  const session = await (OPEN)(name), all = [];
  for (const position of positions) {
    const found = await session.attention(ids, position);
    all.push({ ...found, weights: [...found.weights] });
  }
  return all;
}
"""
DEFAULTS = {'temperature': 0.0, 'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
DEFAULTS |= {'presence_penalty': 0.0, 'frequency_penalty': 0.0}
DEFAULTS |= {'repetition_penalty': 1.0, 'seed': 0, 'stop': [], 'max_new_tokens': 40}


class Sessions:
    """A page of the browser, with the exports in the folders beside that of the page."""

    def __init__(self, visit, folder, *, backend='cpu'):
        self.folder = folder
        self._backend = backend
        self._visit, self._page = visit, None

    def export(self, name, model, tokenizer=None, params=None, **options):
        """Exports a model under a name; returns its parameters."""
        params = random_params(model) if params is None else params
        options = {'dtype': 'float32'} | options
        export_web(self.folder / name, model, params, tokenizer or ByteTokenizer(), **options)
        return params

    def logits(self, name, ids, *, prompt):
        """Returns the logits after the first `prompt` ids, which go in at once, and each more."""
        return np.array(self._run(_LOGITS, name, [*map(int, ids)], prompt))

    def generate(self, name, ids, **sampling):
        """Returns the pieces after some ids; greedy unless `sampling` says otherwise."""
        return self._run(_GENERATE, name, ids, DEFAULTS | sampling)

    def read(self, name, ids, **sampling):
        """Returns the numbers of tokens that each call of the network reads in `generate`."""
        return self._run(_READ, name, ids, DEFAULTS | sampling)

    def tokenize(self, name, texts):
        """Returns the ids of each text, and the texts of these ids, at once and streamed."""
        return self._run(_TOKENIZER, name, texts)

    def attention(self, name, ids, positions):
        """Returns the attention of tokens."""
        return self._run(_ATTENTION, name, [*map(int, ids)], positions)

    def adjust(self, name, logits, ids, drawn_from, **sampling):
        """Returns logits after penalties, temperature and filters."""
        found = self._run(_ADJUST, name, logits, ids, drawn_from, DEFAULTS | sampling)
        return np.array([-np.inf if each is None else each for each in found])

    def draw(self, name, logits, count, **sampling):
        """Returns ids drawn from the same logits, with other numbers of tokens before them."""
        return self._run(_DRAW, name, logits, count, DEFAULTS | sampling)

    def branches(self, name, branches, *, attended):
        """Returns the logits after each text in one session, and in a new one each.

        After each, the attention of the token `attended` is asked for.
        """
        return self._run(_BRANCHES, name, branches, attended)

    def lose(self, name):
        """Returns the error after the GPU of a model is gone."""
        return self._run(_LOSE, name)

    def _run(self, code, name, *values):
        if self._page is None:
            self._page = self._visit(self.folder, path=f'{name}/')
        code = code.replace('OPEN', _OPEN).replace('BACKEND', self._backend)
        return self._page.evaluate(code, [name, *values])


def check_attention(sessions: Sessions, name: str, **options) -> None:
    """Compares the attention of some tokens of a random model with that of Python."""
    gpt = GPT(vocab_size=257, num_layers=2, num_heads=4, d_model=16, max_seq_len=16, **options)
    gpt.export(sessions.folder / name, format='web')
    ids = [*b'the quick fox']
    expected = gpt.inspect(ids, points=['attention.weights'])['attention.weights'].values
    for position, found in zip([12, 0, 5], sessions.attention(name, ids, [12, 0, 5]), strict=True):
        assert found['start'] == 0
        weights = np.array(found['weights']).reshape(2, 4, position + 1)
        np.testing.assert_allclose(weights, expected[:, :, position, : position + 1], atol=1e-5)
