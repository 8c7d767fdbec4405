// The tensors of a model: parts of one file, in the types that it was exported with.

import { Matrix } from './products.js';

/** Reads tensors by name; `has` says which there are. */
export class Weights {
  constructor(index, buffer) {
    Object.assign(this, { index, buffer });
  }

  has(name) {
    return name in this.index;
  }

  /** Returns the values of a vector in float32. */
  vector(name) {
    const { type, offset, shape } = this.index[name];
    return READERS[type](this.buffer, offset, shape.reduce((a, b) => a * b, 1));
  }

  /** Returns a matrix as the file has it: its type, and its bytes; `scales` of its rows, or null. */
  stored(name) {
    const { type, offset, shape: [rows, columns], scales } = this.index[name];
    const bytes = new Uint8Array(this.buffer, offset, rows * columns * BYTES[type]);
    return { type, rows, columns, bytes, scales: scales == null ? null : READERS.float32(this.buffer, scales, rows) };
  }

  /** Returns the number of parameters. */
  get count() {
    return Object.values(this.index).reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
  }

  /** Returns a matrix: integers keep their type, with a scale of each row. */
  matrix(name, bias = '') {
    const { shape: [rows, columns], scales } = this.index[name];
    return new Matrix(this.vector(name), rows, columns,
      scales == null ? null : READERS.float32(this.buffer, scales, rows),
      this.has(bias) ? this.vector(bias) : null);
  }
}

const BYTES = { float32: 4, float16: 2, bfloat16: 2, int8: 1 };
const READERS = {
  float32: (buffer, offset, size) => new Float32Array(buffer, offset, size),
  int8: (buffer, offset, size) => new Int8Array(buffer, offset, size),
  float16: (buffer, offset, size) => widen(new Uint16Array(buffer, offset, size), halves),
  bfloat16: (buffer, offset, size) => {
    const bits = Uint32Array.from(new Uint16Array(buffer, offset, size), (each) => each << 16);
    return new Float32Array(bits.buffer);
  },
};

function widen(bits, table) {
  const values = new Float32Array(bits.length), all = table();
  for (let i = 0; i < bits.length; i++) values[i] = all[bits[i]];
  return values;
}

let everyHalf = null;

/** Returns the values of all 65,536 numbers of 16 bits. */
function halves() {
  everyHalf ??= Float32Array.from({ length: 65536 }, (_, bits) => {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  });
  return everyHalf;
}
