// Arrays with named dimensions, from base64.

/** An array whose dimensions have names. */
export class NamedArray {
  constructor(values, dims, shape) {
    Object.assign(this, { values, dims, shape });
  }

  /** Returns the length of a dimension; 0 if there is none of this name. */
  size(dim) {
    return this.shape[this.dims.indexOf(dim)] ?? 0;
  }

  /** Returns the part at indices of the first dimensions: a number if all are given. */
  at(...indices) {
    let size = this.values.length, offset = 0;
    indices.forEach((index, axis) => {
      size /= this.shape[axis];
      offset += index * size;
    });
    if (indices.length === this.shape.length) return this.values[offset];
    return new NamedArray(this.values.subarray(offset, offset + size),
      this.dims.slice(indices.length), this.shape.slice(indices.length));
  }

  /** Returns the part at an index of the last dimension. */
  select(index) {
    const size = this.shape.at(-1);
    return new NamedArray(this.values.filter((_, at) => at % size === index), this.dims.slice(0, -1), this.shape.slice(0, -1));
  }

  /** Returns column `index` of a matrix. */
  column(index) {
    const [rows, columns] = this.shape;
    return Float32Array.from({ length: rows }, (_, row) => this.values[row * columns + index]);
  }

  /** Returns the least and the largest finite value. */
  range() {
    let low = Infinity, high = -Infinity;
    for (const value of this.values) {
      if (!Number.isFinite(value)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return low > high ? [0, 0] : [low, high];
  }
}

/** Returns a value of the data with its arrays decoded. */
export function decode(value) {
  if (Array.isArray(value)) return value.map(decode);
  if (value === null || typeof value !== 'object') return value;
  if (typeof value.base64 === 'string') {
    return new NamedArray(numbers(value), value.dims, value.shape);
  }
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, decode(each)]));
}

function numbers({ base64, type }) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  if (type === 'uint8') return Float32Array.from(bytes, (byte) => byte / 255);
  if (type === 'float32') return new Float32Array(bytes.buffer);
  if (type === 'int32') return new Int32Array(bytes.buffer);
  return Float32Array.from(new Uint16Array(bytes.buffer), half);
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
