// Byte-level BPE: texts are split by rules, and the bytes of each part are merged.

import { toBytes } from './tokenizer.js';

/** Returns the encoder of a byte-level BPE. */
export function encodeBpe(tokenizer) {
  const { byteIds, merges, splits, added, normalize, wholeFirst } = tokenizer;
  const rules = splits.map((pattern) => new RegExp(pattern, 'gu'));
  const ranks = new Map(), results = [];
  for (let i = 0; i < merges.length; i += 3) {
    ranks.set(merges[i] * PAIR + merges[i + 1], results.length);
    results.push(merges[i + 2]);
  }
  const whole = wholeFirst ? new Map(tokenizer.bytes.map((bytes, id) => [String(bytes), id])) : null;
  const rank = (left, right) => ranks.get(left * PAIR + right) ?? Infinity;
  const encodePart = (part) => {
    const bytes = toBytes(part);
    if (whole?.has(String(bytes))) return [whole.get(String(bytes))];
    return mergePairs(Array.from(bytes, (byte) => byteIds[byte]), rank, (left, right, each) => results[each]);
  };
  const cache = new Map(); // of the parts of texts, which repeat
  const encodePlain = (text) => {
    const parts = rules.reduce((all, rule) => all.flatMap((part) => cutAll(part, rule)), [text]);
    return parts.flatMap((part) => {
      if (!cache.has(part)) cache.set(part, encodePart(part));
      return cache.get(part);
    });
  };
  const names = Object.keys(added);
  const between = names.length ? new RegExp(alternatives(names), 'gu') : null;
  const normal = (text) => (normalize ? text.normalize(normalize) : text);
  return (text) => (between ? cutAll(text, between) : [text]).flatMap((part) =>
    Object.hasOwn(added, part) ? [added[part]] : encodePlain(normal(part)));
}

const PAIR = 2 ** 24; // more than there are ids

/** Returns a pattern of any of these texts, the longest that fits. */
export function alternatives(texts) {
  const escaped = texts.map((text) => text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&'));
  return escaped.sort((a, b) => b.length - a.length).join('|');
}

/** Returns the matches of a pattern and the parts between them, in order. */
export function cutAll(text, pattern) {
  const parts = [];
  let end = 0;
  for (const { 0: match, index } of text.matchAll(pattern)) {
    if (index > end) parts.push(text.slice(end, index));
    parts.push(match);
    end = index + match.length;
  }
  if (end < text.length) parts.push(text.slice(end));
  return parts;
}

/** Merges the neighbours of least rank, the first of equals, until no pair has a rank. */
export function mergePairs(symbols, rank, join) {
  const ranks = symbols.map((_, i) => (i + 1 < symbols.length ? rank(symbols[i], symbols[i + 1]) : Infinity));
  for (;;) {
    let at = 0;
    for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[at]) at = i;
    if (!(ranks[at] < Infinity)) return symbols;
    symbols.splice(at, 2, join(symbols[at], symbols[at + 1], ranks[at]));
    ranks.splice(at, 1);
    if (at > 0) ranks[at - 1] = rank(symbols[at - 1], symbols[at]);
    ranks[at] = at + 1 < symbols.length ? rank(symbols[at], symbols[at + 1]) : Infinity;
  }
}
