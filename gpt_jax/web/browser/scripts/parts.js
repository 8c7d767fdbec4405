// Norms, nonlinearities and positions.

/** Returns a norm `(x, count, out)` over rows of the length of its scale. */
export function makeNorm(kind, scale, bias, { epsilon, normZeroCentered }) {
  const size = scale.length, centred = kind === 'layernorm';
  const factors = normZeroCentered ? scale.map((each) => 1 + each) : scale;
  return (x, count, out) => {
    for (let t = 0, start = 0; t < count; t++, start += size) {
      let mean = 0, square = 0;
      if (centred) {
        for (let i = 0; i < size; i++) mean += x[start + i];
        mean /= size;
      }
      for (let i = 0; i < size; i++) square += (x[start + i] - mean) ** 2;
      const inverse = 1 / Math.sqrt(square / size + epsilon);
      for (let i = 0; i < size; i++) {
        out[start + i] = (x[start + i] - mean) * inverse * factors[i] + (bias ? bias[i] : 0);
      }
    }
  };
}

const ROOT = Math.sqrt(2 / Math.PI);
const geluTanh = (x) => 0.5 * x * (1 + Math.tanh(ROOT * (x + 0.044715 * x ** 3)));
const relu = (x) => (x > 0 ? x : 0);

/** The nonlinearities by name: `gated` ones are of the gate, and multiply the other product. */
export const ACTIVATIONS = {
  gelu: { gated: false, of: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)) },
  gelu_tanh: { gated: false, of: geluTanh },
  relu: { gated: false, of: relu },
  relu2: { gated: false, of: (x) => relu(x) ** 2 },
  swiglu: { gated: true, of: (x) => x / (1 + Math.exp(-x)) },
  geglu: { gated: true, of: geluTanh },
};

/** Returns the error function, to about 1e-15: a series, and a continued fraction far from 0. */
export function erf(x) {
  const size = Math.abs(x);
  if (size > 6) return Math.sign(x);
  if (size < 2.5) {
    let term = x, sum = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
  }
  let fraction = 0;
  for (let n = 60; n > 0; n--) fraction = n / 2 / (size + fraction);
  return Math.sign(x) * (1 - Math.exp(-x * x) / Math.sqrt(Math.PI) / (size + fraction));
}

/** Rotates the pairs `(i, i + R/2)` of each head of `[count, heads, width]`, from a position on. */
export function rotate(x, count, heads, width, frequencies, factor, position) {
  const half = frequencies.length;
  for (let t = 0; t < count; t++) {
    for (let i = 0; i < half; i++) {
      const angle = Math.fround((position + t) * frequencies[i]);
      const sin = Math.sin(angle) * factor, cos = Math.cos(angle) * factor;
      for (let head = 0, at = t * heads * width + i; head < heads; head++, at += width) {
        const first = x[at], second = x[at + half];
        x[at] = first * cos - second * sin;
        x[at + half] = second * cos + first * sin;
      }
    }
  }
}

/** Adds the sines and cosines of a position to one embedding. */
export function addWaves(x, start, width, position) {
  const half = width / 2;
  for (let i = 0; i < half; i++) {
    const angle = Math.fround(position * Math.fround(10000 ** (-i / half)));
    x[start + i] += Math.sin(angle);
    x[start + half + i] += Math.cos(angle);
  }
}

/** Returns `cap * tanh(score / cap)`; a cap of 0 is none. */
export const soften = (score, cap) => (cap ? cap * Math.tanh(score / cap) : score);
