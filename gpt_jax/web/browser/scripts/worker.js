// The worker: loads a model, and answers the page by messages.

import { chooseModel } from './choose_model.js';
import { Session } from './session.js';
import { Weights } from './weights.js';

let session = null;
const stopped = new Set();
const channel = new MessageChannel(), waiting = [];
channel.port1.onmessage = () => waiting.shift()();

/** Lets messages in; timers would wait for milliseconds. */
const pause = () => new Promise((resolve) => {
  waiting.push(resolve);
  channel.port2.postMessage(null);
});

let turn = Promise.resolve();

/** Runs work after all that came before: sessions do one thing at a time. */
const alone = (work) => {
  turn = turn.then(work, work);
  return turn;
};

/** Takes all values of an iterator but null; other work runs after each, and messages come in at null. */
async function take(iterator, receive, isStopped = () => false) {
  for (;;) {
    const ended = await alone(async () => {
      for (;;) {
        const { done, value } = await iterator.next();
        if (done) return 'done';
        if (value) receive(value);
        await pause();
        if (isStopped()) return 'stopped';
        if (value) return '';
      }
    });
    if (ended) return ended;
  }
}

const METHODS = {
  async load({ folder, backend: wanted }, send) {
    const description = await (await read(new URL('model.json', folder))).json();
    const buffer = await readBytes(await read(new URL('model.bin', folder)), send);
    const weights = new Weights(description.tensors, buffer);
    const { model: made, backend } = await chooseModel(description.model, weights, wanted);
    session = new Session(description, made);
    const { name, about, sampling, model } = description;
    return {
      name, about: `${about}; runs on ${backend}`, sampling, context: model.context, vocabularySize: session.tokenizer.size,
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
    await take(session.score(ids, given), (token) => tokens.push(token));
    return tokens;
  },

  generate({ ids, sampling }, send, request) {
    return take(session.generate(ids, sampling), send, () => stopped.delete(request));
  },

  attention({ ids, position }) {
    return alone(() => session.attention(ids, position));
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
