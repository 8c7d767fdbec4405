// Products of matrices with activations. All weights of a model are of one type, Float32Array or
// Int8Array, so that the compiler specialises these loops for it.

/** A matrix `[rows, columns]`, with a scale of each row if its values are integers, and a bias. */
export class Matrix {
  constructor(values, rows, columns, scales = null, bias = null) {
    Object.assign(this, { values, rows, columns, scales, bias });
  }

  /** Writes row `row`, scaled, to `out` from `offset` on. */
  copyRow(row, out, offset) {
    const { values, columns } = this, start = row * columns, scale = this.scales ? this.scales[row] : 1;
    for (let i = 0; i < columns; i++) out[offset + i] = values[start + i] * scale;
  }
}

/** Computes `out[t, row] = matrix[row] · x[t] * scale[row] + bias[row]` for `count` activations. */
export function multiply(matrix, x, count, out) {
  const { rows, columns, values, scales, bias } = matrix;
  let t = 0;
  for (; t + 4 <= count; t += 4) multiplyFour(values, rows, columns, x, t, out);
  for (; t < count; t++) multiplyOne(values, rows, columns, x, t, out);
  if (!scales && !bias) return;
  for (let each = 0, at = 0; each < count; each++) {
    for (let row = 0; row < rows; row++, at++) {
      out[at] = out[at] * (scales ? scales[row] : 1) + (bias ? bias[row] : 0);
    }
  }
}

/** One activation with four rows at a time: each of its numbers is read once for all of them. */
function multiplyOne(values, rows, columns, x, t, out) {
  const start = t * columns, target = t * rows;
  let row = 0;
  for (; row + 4 <= rows; row += 4) {
    const a = row * columns, b = a + columns, c = b + columns, d = c + columns;
    let p = 0, q = 0, r = 0, s = 0;
    for (let i = 0; i < columns; i++) {
      const each = x[start + i];
      p += each * values[a + i];
      q += each * values[b + i];
      r += each * values[c + i];
      s += each * values[d + i];
    }
    out[target + row] = p;
    out[target + row + 1] = q;
    out[target + row + 2] = r;
    out[target + row + 3] = s;
  }
  for (; row < rows; row++) {
    let sum = 0;
    for (let i = 0, a = row * columns; i < columns; i++) sum += x[start + i] * values[a + i];
    out[target + row] = sum;
  }
}

/** Four activations with two rows at a time. */
function multiplyFour(values, rows, columns, x, t, out) {
  const k = t * columns, l = k + columns, m = l + columns, n = m + columns;
  for (let row = 0; row < rows; row += 2) {
    const a = row * columns, b = row + 1 < rows ? a + columns : a;
    let p0 = 0, p1 = 0, p2 = 0, p3 = 0, q0 = 0, q1 = 0, q2 = 0, q3 = 0;
    for (let i = 0; i < columns; i++) {
      const u = values[a + i], v = values[b + i];
      const c = x[k + i], d = x[l + i], e = x[m + i], f = x[n + i];
      p0 += u * c; p1 += u * d; p2 += u * e; p3 += u * f;
      q0 += v * c; q1 += v * d; q2 += v * e; q3 += v * f;
    }
    const o = t * rows + row, second = o + rows, third = second + rows, fourth = third + rows;
    out[o] = p0; out[second] = p1; out[third] = p2; out[fourth] = p3;
    if (b === a) continue;
    out[o + 1] = q0; out[second + 1] = q1; out[third + 1] = q2; out[fourth + 1] = q3;
  }
}
