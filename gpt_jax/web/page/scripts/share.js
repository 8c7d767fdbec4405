// A text to take along: a link whose fragment has prompt, settings and tokens, and a JSON file.

import { h } from './dom.js';

const LONGEST = 400; // tokens of a text that a link has

/** Returns a link to this page with a prompt, settings by name and, if they are few, the tokens. */
export function linkTo({ prompt, settings, tokens }) {
  const parts = new URLSearchParams({ prompt, ...settings });
  if (tokens.length && tokens.length <= LONGEST) {
    parts.set('ids', tokens.map(({ id }) => id).join('.'));
    parts.set('given', countGiven(tokens));
  }
  const link = new URL(location.href);
  link.hash = parts;
  return link.href;
}

/** Returns what the fragment of a link has: {prompt, settings, ids, given}; null if it has nothing. */
export function readLink(vocabularySize) {
  const { prompt, ids: list = '', given, ...settings } = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (prompt === undefined) return null;
  const ids = list ? list.split('.').map(Number) : [];
  if (!ids.every((id) => Number.isInteger(id) && id >= 0 && id < vocabularySize) || ids.length > LONGEST) {
    throw new Error('the link has tokens that this model does not have; generate the text again');
  }
  return { prompt, settings, ids, given: Math.min(Math.max(Math.floor(given) || 1, 1), ids.length) };
}

/** Downloads a text with its tokens and their probabilities as JSON. */
export function save({ model, prompt, settings, text, tokens }) {
  const value = {
    model, prompt, settings, text,
    tokens: tokens.map(({ id, label, logprob = null, alternatives = [] }) => ({
      id, label, logprob, probability: logprob === null ? null : Math.exp(logprob), alternatives,
    })),
  };
  const address = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: 'application/json' }));
  h('a', { href: address, download: 'text.json' }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60e3);
}

/** Returns how many tokens of a text were not drawn. */
function countGiven(tokens) {
  const drawn = tokens.findIndex(({ logprob }) => logprob !== undefined);
  return drawn < 0 ? tokens.length : drawn;
}
