// The worker: loads a model, and answers the page by messages.

import { Session } from './session.js';

let session = null;
const stopped = new Set();
const channel = new MessageChannel(), waiting = [];
channel.port1.onmessage = () => waiting.shift()();

/** Lets messages in; timers would wait for milliseconds. */
const pause = () => new Promise((resolve) => {
  waiting.push(resolve);
  channel.port2.postMessage(null);
});

const METHODS = {
  async load({ folder }, send) {
    const description = await (await read(new URL('model.json', folder))).json();
    const buffer = await readBytes(await read(new URL('model.bin', folder)), send);
    session = new Session(description, buffer);
    const { name, about, sampling, model } = description;
    return {
      name, about, sampling, context: model.context, vocabularySize: session.tokenizer.size,
      layers: model.layers.length, heads: model.heads,
    };
  },

  tokenize({ text }) {
    return session.tokenizer.encodePrompt(text).map((id) => ({ id, label: session.tokenizer.label(id) }));
  },

  decode({ ids }) {
    return session.tokenizer.decode(ids);
  },

  async score({ ids, given }) {
    const tokens = ids.slice(0, given).map((id) => ({ id, label: session.tokenizer.label(id) }));
    for (const token of session.score(ids, given)) {
      if (token) tokens.push(token);
      await pause();
    }
    return tokens;
  },

  async generate({ ids, sampling }, send, request) {
    for (const piece of session.generate(ids, sampling)) {
      if (piece) send(piece);
      await pause();
      if (stopped.delete(request)) return 'stopped';
    }
    return 'done';
  },

  attention({ ids, position }) {
    return session.attention(ids, position);
  },

  stop({ request }) {
    stopped.add(request);
  },
};

async function read(address) {
  const answer = await fetch(address).catch(() => null);
  if (answer?.ok) return answer;
  const name = address.pathname.split('/').at(-1);
  throw new Error(`${name} cannot be read; run “python -m http.server” in the folder of this page, or export it again`);
}

/** Returns the body of an answer; sends the share that has arrived. */
async function readBytes(answer, send) {
  const total = Number(answer.headers.get('content-length')), parts = [];
  let size = 0;
  for (let reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    size += value.length;
    if (total) send({ loaded: size / total });
  }
  return new Blob(parts).arrayBuffer();
}

onmessage = async ({ data: { request, method, values } }) => {
  const send = (piece) => postMessage({ request, piece });
  try {
    postMessage({ request, result: await METHODS[method](values, send, request) });
  } catch (error) {
    postMessage({ request, error: error.message });
  }
};
