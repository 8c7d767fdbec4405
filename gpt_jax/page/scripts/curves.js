// Curves, {x, y}: smoothed, read between their points, and averaged.

/** Returns the exponential moving average of values, without the bias of its start; gaps stay. */
export function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (!Number.isFinite(value)) return NaN;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

/** Returns the index of the value that is nearest to `target` in increasing values. */
export function nearest(values, target) {
  const after = firstFrom(values, target);
  if (after === 0) return 0;
  if (after === values.length) return values.length - 1;
  return target - values[after - 1] <= values[after] - target ? after - 1 : after;
}

/** Returns the index of the first of increasing values that is at least `target`. */
export function firstFrom(values, target) {
  let low = 0, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < target) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Returns a curve's value at `x`, on the line between its points; NaN outside. */
export function interpolate({ x: places, y }, x) {
  const after = firstFrom(places, x);
  if (after === places.length) return NaN;
  if (places[after] === x) return y[after];
  if (after === 0) return NaN;
  const share = (x - places[after - 1]) / (places[after] - places[after - 1]);
  return y[after - 1] + share * (y[after] - y[after - 1]);
}

/** Returns the mean of curves, and their lowest and highest values, where any of them has one. */
export function average(curves) {
  if (curves.length === 1) return { x: curves[0].x, y: curves[0].y };
  const x = [...new Set(curves.flatMap((each) => each.x))].sort((a, b) => a - b);
  const y = [], low = [], high = [];
  for (const place of x) {
    const values = curves.map((each) => interpolate(each, place)).filter(Number.isFinite);
    y.push(values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : NaN);
    low.push(values.length ? Math.min(...values) : NaN);
    high.push(values.length ? Math.max(...values) : NaN);
  }
  return { x, y, low, high };
}
