// SentencePiece models that rewrite nothing but spaces, with bytes for unknown characters.

import { alternatives, cutAll, mergePairs } from './bpe.js';
import { toBytes } from './tokenizer.js';

const SPACE = '\u2581'; // stands for a space in pieces; as a character of a text it is its three bytes
const UNKNOWN = 10; // an unknown character is that much less likely than the least likely piece

/** Returns the encoder of a SentencePiece model. */
export function encodeSentencePiece(tokenizer) {
  const { scores, whole, byteIds, algorithm, leadingSpaces } = tokenizer;
  const pieces = new Map();
  scores.forEach((score, id) => {
    if (score !== null) pieces.set(new TextDecoder('utf-8', { ignoreBOM: true }).decode(tokenizer.bytes[id]), id);
  });
  const encodePart = { bpe: makeBpe, unigram: makeUnigram }[algorithm](pieces, scores, new Set(whole));
  const toIds = (symbol) => pieces.has(symbol) ? [pieces.get(symbol)] : Array.from(toBytes(symbol), (byte) => byteIds[byte]);
  const space = Array.from(toBytes(SPACE), (byte) => byteIds[byte]);
  return (text) => (' '.repeat(leadingSpaces) + text).split(SPACE).flatMap((part, i) =>
    [...(i ? space : []), ...encodePart(part).flatMap(toIds)]);
}

/** Merges characters to the piece of the best score; the pieces of `whole` never merge. */
function makeBpe(pieces, scores, whole) {
  const rank = (left, right) => (pieces.has(left + right) ? -scores[pieces.get(left + right)] : Infinity);
  const merge = (text) => mergePairs([...text], rank, (left, right) => left + right);
  const texts = [...pieces.keys()].filter((text) => whole.has(pieces.get(text)));
  if (!texts.length) return merge;
  const pattern = new RegExp(alternatives(texts), 'gu');
  return (text) => cutAll(text, pattern).flatMap((part) => (whole.has(pieces.get(part)) ? [part] : merge(part)));
}

/** Finds the pieces of the greatest sum of scores (Viterbi). */
function makeUnigram(pieces, scores, whole) {
  let least = Infinity, most = -Infinity, longest = 1;
  for (const [text, id] of pieces) {
    longest = Math.max(longest, text.length);
    if (whole.has(id)) continue;
    least = Math.min(least, scores[id]);
    most = Math.max(most, scores[id]);
  }
  const score = (text, id) => (whole.has(id) ? toBytes(text).length * most - 0.1 : scores[id]);
  return (text) => {
    const size = text.length, best = new Float32Array(size + 1), from = new Int32Array(size + 1).fill(-1);
    const offer = (start, end, gain) => {
      if (from[end] >= 0 && best[start] + gain <= best[end]) return;
      best[end] = best[start] + gain;
      from[end] = start;
    };
    for (let start = 0; start < size;) {
      const letter = String.fromCodePoint(text.codePointAt(start)).length;
      for (let end = start + letter; end <= Math.min(size, start + longest); end++) {
        const piece = text.slice(start, end);
        if (pieces.has(piece)) offer(start, end, score(piece, pieces.get(piece)));
      }
      if (!pieces.has(text.slice(start, start + letter))) offer(start, start + letter, least - UNKNOWN);
      start += letter;
    }
    const found = [];
    for (let end = size; end > 0; end = from[end]) found.unshift(text.slice(from[end], end));
    return found;
  };
}
