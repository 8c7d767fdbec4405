// Tokenizers by kind, with the ids of those in gpt_jax/tokenizer.

import { encodeBpe } from './bpe.js';
import { encodeSentencePiece } from './sentencepiece.js';

export class Tokenizer {
  constructor(description) {
    Object.assign(this, description);
    const all = Uint8Array.from(atob(description.bytes), (letter) => letter.charCodeAt(0));
    let start = 0;
    this.bytes = description.lengths.map((length) => all.subarray(start, start += length));
    this.size = this.bytes.length;
    this.names = new Map(Object.entries(description.special).map(([name, id]) => [id, name]));
    this.encodeText = ENCODERS[description.kind](this);
  }

  /** Returns the ids of a text; names of special tokens are plain text. */
  encode(text) {
    if (!text.isWellFormed()) throw new Error('the text has half of a surrogate pair, which is no Unicode');
    return text ? this.encodeText(text) : [];
  }

  /** Returns the ids of a prompt: at least one, as the model needs an input. */
  encodePrompt(text) {
    const ids = [...(this.begin == null ? [] : [this.begin]), ...this.encode(text)];
    if (ids.length) return ids;
    if (this.end == null) throw new Error('this vocabulary has no token to begin with; give a prompt');
    return [this.end];
  }

  decode(ids) {
    const stream = this.stream();
    return ids.map((id) => stream.push(id)).join('') + stream.flush();
  }

  /** Returns a decoder of one id after the other, which never returns part of a character. */
  stream() {
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
    let spaces = this.leadingSpaces; // that the tokenizer put before the text
    return {
      push: (id) => {
        let bytes = this.bytes[id];
        if (spaces && bytes.length) {
          let at = 0;
          while (at < spaces && bytes[at] === 32) at++;
          bytes = bytes.subarray(at);
          spaces = bytes.length ? 0 : spaces - at;
        }
        return decoder.decode(bytes, { stream: true });
      },
      flush: () => decoder.decode(),
    };
  }

  /** Returns the text of one token as it is shown: names of special ones, numbers of stray bytes. */
  label(id) {
    if (this.names.has(id)) return this.names.get(id);
    const bytes = this.bytes[id];
    try {
      return new TextDecoder('utf-8', { ignoreBOM: true, fatal: true }).decode(bytes);
    } catch {
      return [...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('');
    }
  }
}

/** Returns the UTF-8 bytes of a text. */
export const toBytes = (text) => new TextEncoder().encode(text);

const ENCODERS = {
  byte: () => (text) => [...toBytes(text)],
  char: (tokenizer) => {
    const ids = idsByText(tokenizer);
    return (text) => Array.from(text, (letter, at) => {
      if (ids.has(letter)) return ids.get(letter);
      throw new Error(`the character “${letter}” (number ${at + 1}) is not among the ${ids.size} of this model; remove it`);
    });
  },
  symbol: (tokenizer) => {
    const ids = idsByText(tokenizer);
    return (text) => text.split(' ').map((symbol) => {
      if (ids.has(` ${symbol}`)) return ids.get(` ${symbol}`);
      throw new Error(`“${symbol}” is not among the ${ids.size} symbols of this model, which single spaces separate`);
    });
  },
  bpe: encodeBpe,
  sentencepiece: encodeSentencePiece,
};

/** Returns the ids of tokens that are not special by their texts. */
function idsByText(tokenizer) {
  const ordinary = tokenizer.bytes.map((_, id) => id).filter((id) => !tokenizer.names.has(id));
  return new Map(ordinary.map((id) => [new TextDecoder('utf-8', { ignoreBOM: true }).decode(tokenizer.bytes[id]), id]));
}
