// A text to take along, by a link whose fragment has it or by a JSON file, and to open elsewhere.

import { h } from './dom.js';

const MOST_TOKENS = 400; // of a text that a link has
const MOST_LETTERS = 8000; // of a conversation that a link has

/** Returns a link to this page with a prompt, settings by name, messages and, if they are few, the tokens. */
export function linkTo({ prompt, settings, messages, tokens }) {
  const parts = new URLSearchParams({ prompt, ...settings });
  if (messages.length) parts.set('messages', JSON.stringify(messages));
  if (parts.get('messages')?.length > MOST_LETTERS) throw new Error('this conversation is too long for a link; save it instead');
  if (tokens.length && tokens.length <= MOST_TOKENS) {
    parts.set('ids', tokens.map(({ id }) => id).join('.'));
    parts.set('given', countGiven(tokens));
  }
  const link = new URL(location.href);
  link.hash = parts;
  return link.href;
}

/** Returns what the fragment of the address has: {prompt, settings, messages, ids, given}; null if it has nothing. */
export function readLink(vocabularySize) {
  const { prompt, ids, given, messages, ...settings } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (prompt === undefined) return null;
  const found = { prompt, settings, messages: messages ? parse(messages, 'the link') : [], ids: ids ? ids.split('.').map(Number) : [] };
  if (found.ids.length > MOST_TOKENS) throw new Error('the link has too many tokens; generate the text again');
  return checked({ ...found, given: Math.floor(given) }, vocabularySize, 'the link');
}

/** Downloads a text with its tokens and their probabilities as JSON. */
export function save({ tokens, ...about }) {
  const value = {
    ...about,
    tokens: tokens.map(({ id, label, logprob = null, alternatives = [] }) => ({
      id, label, logprob, probability: logprob === null ? null : Math.exp(logprob), alternatives,
    })),
  };
  const address = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: 'application/json' }));
  h('a', { href: address, download: 'text.json' }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60e3);
}

/** Returns what a file of `save` has: as `readLink`, and the name of the model. */
export async function readFile(file, vocabularySize) {
  const { model, prompt, settings, messages = [], tokens } = parse(await file.text(), file.name);
  if (!Array.isArray(tokens)) throw notOurs(file.name);
  const found = { model, prompt, settings, messages, ids: tokens.map((each) => each?.id), given: countGiven(tokens) };
  return checked(found, vocabularySize, file.name);
}

function parse(text, source) {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    throw notOurs(source);
  }
}

function checked(found, vocabularySize, source) {
  const { prompt, settings, messages, ids, given } = found;
  const isMessage = (each) => ['user', 'assistant'].includes(each?.role) && typeof each.content === 'string';
  if (typeof prompt !== 'string' || !settings || !Array.isArray(messages) || !messages.every(isMessage)) throw notOurs(source);
  if (!ids.every((id) => Number.isInteger(id) && id >= 0 && id < vocabularySize)) {
    throw new Error(`${source} has tokens that this model does not have; generate the text again`);
  }
  return { ...found, given: Math.min(Math.max(given || 1, 1), ids.length) };
}

const notOurs = (source) => new Error(`${source} is not a text that such a page wrote`);

/** Returns how many tokens of a text were not drawn. */
function countGiven(tokens) {
  const drawn = tokens.findIndex((token) => token?.logprob != null);
  return drawn < 0 ? tokens.length : drawn;
}
