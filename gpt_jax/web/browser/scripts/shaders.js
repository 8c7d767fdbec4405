// The shaders: WGSL of the operations of the network. Sizes are constants of their text.
//
// Each works on `step.count` tokens, the first of which is at position `step.start` of the text.
// Rows of keys and values go into the cache at `step.start`, other rows begin at 0.

export const LANES = 16, ROWS = 8; // of a workgroup of a product: threads per row, rows
export const TILE = 4; // tokens that share each weight that is read
export const THREADS = 64; // of all other workgroups

/** Returns declarations of buffers by name; those of a type that begins with ! are also written. */
function buffers(types) {
  const lines = Object.entries(types).map(([name, type], i) => {
    const access = type.startsWith('!') ? 'read_write' : 'read';
    return `@group(0) @binding(${i + 1}) var<storage, ${access}> ${name}: array<${type.replace('!', '')}>;`;
  });
  return `struct Step { start: u32, count: u32 }
@group(0) @binding(0) var<uniform> step: Step;
${lines.join('\n')}`;
}

const REDUCE = `
var<workgroup> shared_part: array<f32, ${THREADS}>;
fn reduce(lane: u32, value: f32, is_sum: bool) -> f32 {
  shared_part[lane] = value;
  workgroupBarrier();
  for (var width = ${THREADS / 2}u; width > 0u; width >>= 1u) {
    if (lane < width) {
      let a = shared_part[lane];
      let b = shared_part[lane + width];
      shared_part[lane] = select(max(a, b), a + b, is_sum);
    }
    workgroupBarrier();
  }
  let all = shared_part[0];
  workgroupBarrier();
  return all;
}`;

/** Four weights as the file has them: the type of a word, and their values in float32. */
const WORDS = {
  float32: ['vec4<f32>', 'word'],
  float16: ['vec2<u32>', 'vec4<f32>(unpack2x16float(word.x), unpack2x16float(word.y))'],
  bfloat16: ['vec2<u32>',
    'bitcast<vec4<f32>>(vec4<u32>(word.x << 16u, word.x & 0xffff0000u, word.y << 16u, word.y & 0xffff0000u))'],
  int8: ['u32', 'vec4<f32>(vec4<i32>(vec4<u32>(word << 24u, word << 16u, word << 8u, word)) >> vec4<u32>(24u))'],
};

/**
 * Products of a matrix with the rows of tokens, `tile` of them at a time.
 *
 * The LANES threads of a row of the matrix read every LANES-th word, then add up their sums.
 * With `isLast`, only the last token is taken; its product is row 0.
 */
export function multiply({ type, rows, columns, hasScales, hasBias, tile, inCache, isLast }) {
  const [word, value] = WORDS[type], words = columns / 4;
  return `${buffers({
    weights: word, x: 'vec4<f32>', y: '!f32', ...(hasScales && { scales: 'f32' }), ...(hasBias && { bias: 'f32' }),
  })}
var<workgroup> parts: array<array<f32, ${tile}>, ${LANES * ROWS}>;

@compute @workgroup_size(${LANES}, ${ROWS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
  let row = group.x * ${ROWS}u + lane.y;
  let first = ${isLast ? 'step.count - 1u' : `group.y * ${tile}u`};
  var sums: array<f32, ${tile}>;
  if (row < ${rows}u) {
    for (var i = lane.x; i < ${words}u; i += ${LANES}u) {
      let word = weights[row * ${words}u + i];
      let value = ${value};
      for (var t = 0u; t < ${tile}u; t++) {
        sums[t] += dot(value, x[min(first + t, step.count - 1u) * ${words}u + i]);
      }
    }
  }
  parts[lane.y * ${LANES}u + lane.x] = sums;
  workgroupBarrier();
  let token = first + lane.x;
  if (row >= ${rows}u || lane.x >= ${tile}u || token >= step.count) { return; }
  var sum = 0.0;
  for (var i = 0u; i < ${LANES}u; i++) { sum += parts[lane.y * ${LANES}u + i][lane.x]; }
  let target_row = ${isLast ? '0u' : inCache ? 'step.start + token' : 'token'};
  y[target_row * ${rows}u + row] = sum${hasScales ? ' * scales[row]' : ''}${hasBias ? ' + bias[row]' : ''};
}`;
}

/** A norm of rows, `perToken` of them for each token; in place unless there is another input. */
export function norm({ kind, size, epsilon, perToken, inPlace, inCache, hasBias }) {
  const from = inPlace ? 'y' : 'x', centred = kind === 'layernorm';
  return `${buffers({ ...(!inPlace && { x: 'f32' }), y: '!f32', factors: 'f32', ...(hasBias && { bias: 'f32' }) })}
${REDUCE}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  if (group.x >= step.count * ${perToken}u) { return; }
  let row = group.x${inCache ? ` + step.start * ${perToken}u` : ''};
  let start = row * ${size}u;
  var mean = 0.0;
  ${centred ? `for (var i = lane; i < ${size}u; i += ${THREADS}u) { mean += ${from}[start + i]; }
  mean = reduce(lane, mean, true) / ${size}.0;` : ''}
  var square = 0.0;
  for (var i = lane; i < ${size}u; i += ${THREADS}u) {
    let offset = ${from}[start + i] - mean;
    square += offset * offset;
  }
  let inverse = 1.0 / sqrt(reduce(lane, square, true) / ${size}.0 + ${float(epsilon)});
  for (var i = lane; i < ${size}u; i += ${THREADS}u) {
    y[start + i] = (${from}[start + i] - mean) * inverse * factors[i]${hasBias ? ' + bias[i]' : ''};
  }
}`;
}

/** Rotates the pairs (i, i + half) of each head; `waves` has the cosine and sine of each token and pair. */
export function rotate({ heads, headDim, half, inCache }) {
  return `${buffers({ y: '!f32', waves: 'vec2<f32>' })}
@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let i = id.x % ${half}u;
  let head = id.x / ${half}u % ${heads}u;
  let token = id.x / ${half * heads}u;
  if (token >= step.count) { return; }
  let wave = waves[token * ${half}u + i];
  let at = ((${inCache ? 'step.start + ' : ''}token) * ${heads}u + head) * ${headDim}u + i;
  let first = y[at];
  let second = y[at + ${half}u];
  y[at] = first * wave.x - second * wave.y;
  y[at + ${half}u] = second * wave.x + first * wave.y;
}`;
}

/** Attention: a workgroup per head and token; `scores` keeps the weights of each, a row of the context. */
export function attend({ heads, keyHeads, headDim, context, window, scale, cap, hasSlopes }) {
  const words = headDim / 4, row = keyHeads * words;
  return `${buffers({
    query: 'vec4<f32>', keys: 'vec4<f32>', values: 'f32', scores: '!f32', mixed: '!f32', ...(hasSlopes && { slopes: 'f32' }),
  })}
${REDUCE}
@compute @workgroup_size(${THREADS})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let key_head = head / ${heads / keyHeads}u;
  let position = step.start + group.y;
  let first = ${window ? `u32(max(0, i32(position) - ${window - 1}))` : '0u'};
  let row = (group.y * ${heads}u + head) * ${context + 1}u;
  for (var s = lane; s < first; s += ${THREADS}u) { scores[row + s] = 0.0; }
  var most = -3.0e38;
  for (var s = first + lane; s <= position; s += ${THREADS}u) {
    var score = 0.0;
    for (var i = 0u; i < ${words}u; i++) {
      score += dot(query[(group.y * ${heads}u + head) * ${words}u + i], keys[s * ${row}u + key_head * ${words}u + i]);
    }
    score *= ${float(scale)};
    ${cap ? `score = ${float(cap)} * tanh(clamp(score / ${float(cap)}, -15.0, 15.0));` : ''}
    ${hasSlopes ? 'score -= slopes[head] * f32(position - s);' : ''}
    scores[row + s] = score;
    most = max(most, score);
  }
  most = reduce(lane, most, false);
  var total = 0.0;
  for (var s = first + lane; s <= position; s += ${THREADS}u) {
    let weight = exp(scores[row + s] - most);
    scores[row + s] = weight;
    total += weight;
  }
  total = reduce(lane, total, true);
  for (var s = first + lane; s <= position; s += ${THREADS}u) { scores[row + s] /= total; }
  storageBarrier();
  for (var i = lane; i < ${headDim}u; i += ${THREADS}u) {
    var sum = 0.0;
    for (var s = first; s <= position; s++) {
      sum += scores[row + s] * values[(s * ${keyHeads}u + key_head) * ${headDim}u + i];
    }
    mixed[(group.y * ${heads}u + head) * ${headDim}u + i] = sum;
  }
}`;
}

const GELU_TANH = '0.5 * x * (1.0 + tanh(clamp(0.7978845608 * (x + 0.044715 * x * x * x), -15.0, 15.0)))';
const ACTIVATIONS = {
  gelu: '0.5 * x * (1.0 + erf(x * 0.7071067812))',
  gelu_tanh: GELU_TANH,
  relu: 'max(x, 0.0)',
  relu2: 'max(x, 0.0) * max(x, 0.0)',
  swiglu: 'x / (1.0 + exp(-x))',
  geglu: GELU_TANH,
};

// To 1.5e-7: Abramowitz and Stegun, 7.1.26.
const ERF = `
fn erf(x: f32) -> f32 {
  let t = 1.0 / (1.0 + 0.3275911 * abs(x));
  let sum = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
  return sign(x) * (1.0 - sum * exp(-x * x));
}`;

/** The nonlinearity of an MLP, in place; gated ones are of `gate`, and multiply `y`. */
export function activate({ name, size, isGated }) {
  return `${buffers({ y: '!f32', ...(isGated && { gate: 'f32' }) })}
${name === 'gelu' ? ERF : ''}
@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= step.count * ${size}u) { return; }
  let x = ${isGated ? 'gate' : 'y'}[id.x];
  y[id.x] = ${isGated ? 'y[id.x] * ' : ''}(${ACTIVATIONS[name]});
}`;
}

/** Adds a branch to the residual stream. */
export function add({ size }) {
  return `${buffers({ y: '!f32', branch: 'f32' })}
@compute @workgroup_size(${THREADS})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x < step.count * ${size}u) { y[id.x] += branch[id.x]; }
}`;
}

/** Returns a number as WGSL writes it. */
const float = (value) => `f32(${value.toPrecision(9)})`;
