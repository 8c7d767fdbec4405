// The backend that asks the server: the interface of page.js.

const ALTERNATIVES = 10; // or as many as the server gives
const READY_SECONDS = 1; // between two looks at a server that loads

export class NeedsKey extends Error {}

export class ServerBackend {
  constructor(address, key) {
    Object.assign(this, { address, key, model: null });
  }

  /** Waits until the server is ready. Throws NeedsKey if it wants another key. */
  async connect() {
    for (;;) {
      const response = await this.fetch('v1/models');
      if (response.ok) {
        const wanted = new URL(this.address).searchParams.get('model'), { data } = await response.json();
        this.models = data;
        this.model = wanted === null ? data[0] : data.find(({ id }) => id === wanted);
        if (!this.model) throw new Error(`there is no model ${wanted} here; this server has ${data.map(({ id }) => id).join(', ')}`);
        return;
      }
      if (response.status !== 503) throw await failure(response);
      await new Promise((resolve) => setTimeout(resolve, READY_SECONDS * 1e3));
    }
  }

  async describe() {
    if (!this.model) await this.connect();
    const { id, max_model_len: context, gpt_jax: known } = this.model;
    return {
      name: id,
      about: known.about,
      context,
      vocabularySize: known.vocab_size,
      layers: known.layers,
      heads: known.heads,
      sampling: known.sampling,
      can: { attention: known.inspects, inspect: known.explains, chat: true },
      others: this.models.map((each) => each.id).filter((each) => each !== id),
    };
  }

  of(name) {
    const other = new ServerBackend(this.address, this.key);
    return Object.assign(other, { models: this.models, model: this.models.find(({ id }) => id === name) });
  }

  get alternatives() {
    return Math.min(ALTERNATIVES, this.model.gpt_jax.alternatives);
  }

  tokenize(text) {
    return this.encode({ prompt: text });
  }

  tokenizeChat(messages) {
    return this.encode({ messages });
  }

  async encode(given) {
    const { tokens, token_strs: labels } = await this.post('tokenize', given);
    return tokens.map((id, i) => ({ id, label: labels[i] }));
  }

  async decode(ids) {
    return (await this.post('detokenize', { tokens: ids })).prompt;
  }

  async score(ids, given) {
    const seen = ids.slice(-this.model.max_model_len), [{ logprobs }] = (await this.post('v1/completions', {
      prompt: seen, max_tokens: 0, echo: true, logprobs: this.alternatives, return_token_ids: true,
    })).choices;
    const { token_strs: labels } = await this.post('detokenize', { tokens: ids });
    return ids.map((id, i) => {
      const token = logprobs.content[i - (ids.length - seen.length)];
      return i < given || token?.logprob == null ? { id, label: labels[i] } : token;
    });
  }

  async attention(ids, position) {
    const { start, layers, heads, weights } = await this.post('inspect/attention', { tokens: ids, position });
    return { start, layers, heads, weights: Float32Array.from(weights) };
  }

  explain(ids, position, analysis) {
    return this.post('inspect/token', { tokens: ids, position, analyses: [analysis] }).then((found) => found[analysis]);
  }

  async *generate({ ids, sampling, signal }) {
    const { max_new_tokens: max_tokens, prompt: _, stop, ...rest } = sampling, { max_model_len: context } = this.model;
    const seen = ids.length > context ? ids.slice(-Math.max(1, Math.floor(context / 2))) : ids;
    const body = {
      ...rest, prompt: seen, max_tokens, stop: stop.length ? stop : null,
      logprobs: this.alternatives, return_token_ids: true, stream: true,
    };
    let response;
    try {
      response = await this.send('v1/completions', body, signal);
    } catch (error) {
      if (signal?.aborted) return;
      throw error;
    }
    // Tokens wait until the next one is known, as the last one has the reason of the end.
    let waiting = null;
    for await (const event of events(response, signal)) {
      if (event.error) throw new Error(event.error.message);
      const [{ logprobs, ended }] = event.choices;
      for (const token of logprobs.content) {
        if (waiting) yield waiting;
        waiting = { ...token, ended: null };
      }
      if (waiting) waiting.ended = ended;
    }
    if (waiting && !signal?.aborted) yield waiting;
  }

  async post(path, body) {
    return (await this.send(path, body)).json();
  }

  async send(path, body, signal) {
    const response = await this.fetch(path, {
      method: 'POST', body: JSON.stringify({ model: this.model.id, ...body }), signal,
    });
    if (!response.ok) throw await failure(response);
    return response;
  }

  async fetch(path, options = {}) {
    const headers = { 'Content-Type': 'application/json' };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    let response;
    try {
      response = await fetch(new URL(path, this.address), { ...options, headers });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Error('the server does not answer; is it running?');
    }
    if (response.status === 401) throw new NeedsKey('the server wants a key; load this page again');
    return response;
  }
}

async function failure(response) {
  const text = await response.text();
  try {
    return new Error(JSON.parse(text).error.message);
  } catch {
    return new Error(`the server answers ${response.status}`);
  }
}

/** Yields the values of server-sent events until `[DONE]`. */
async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      for (let end; (end = text.indexOf('\n\n')) >= 0; text = text.slice(end + 2)) {
        const data = text.slice(0, end).replace(/^data: /, '');
        if (data === '[DONE]') return;
        yield JSON.parse(data);
      }
    }
  } catch (error) {
    if (!signal?.aborted) throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
}
