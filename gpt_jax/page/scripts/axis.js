// The places of values along an axis, linear or logarithmic, with ticks at round numbers.

const FLAT = 1e-9; // of a value: a smaller range is that of rounding

export class Axis {
  /** An axis from `low` to `high`, drawn between two places in px. */
  constructor([low, high], [from, to], log = false) {
    if (high - low <= FLAT * Math.max(Math.abs(low), Math.abs(high))) {
      const room = Math.abs(low) / 2 || 0.5;
      [low, high] = log ? [low / 2, low * 2] : [low - room, low + room];
    }
    this.map = log ? Math.log10 : (value) => value;
    Object.assign(this, { low, high, from, to, log });
    this.scale = (to - from) / (this.map(high) - this.map(low));
  }

  place(value) {
    return this.from + (this.map(value) - this.map(this.low)) * this.scale;
  }

  value(place) {
    const mapped = this.map(this.low) + (place - this.from) / this.scale;
    return this.log ? 10 ** mapped : mapped;
  }

  /** Returns about `count` round values within the axis. */
  ticks(count) {
    if (this.log && this.high / this.low > 5) return this.decades(count);
    const step = roundStep((this.high - this.low) / count), ticks = [];
    for (let i = Math.ceil(this.low / step - 1e-9); i * step <= this.high + step * 1e-9; i++) ticks.push(i * step);
    return ticks;
  }

  decades(count) {
    const first = Math.floor(Math.log10(this.low)), last = Math.ceil(Math.log10(this.high)), ticks = [];
    const skip = Math.ceil((last - first) / count), within = last - first <= count / 2 ? [1, 2, 5] : [1];
    for (let power = first; power <= last; power += skip) {
      for (const digit of within) ticks.push(Number(`${digit}e${power}`));
    }
    return ticks.filter((tick) => tick >= this.low * (1 - 1e-9) && tick <= this.high * (1 + 1e-9));
  }
}

function roundStep(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * [1, 2, 5, 10].find((each) => each * power >= least * (1 - 1e-9));
}

/** Returns the text of a tick: as short as the tick allows. */
export function tickText(value) {
  const size = Math.abs(value), plain = (number) => String(Number(number.toPrecision(6))).replace('-', '−');
  if (size >= 1e9) return `${plain(value / 1e9)}G`;
  if (size >= 1e6) return `${plain(value / 1e6)}M`;
  if (size >= 1e4) return `${plain(value / 1e3)}k`;
  return size && size < 1e-3 ? Number(value.toPrecision(3)).toExponential().replace('-', '−') : plain(value);
}

/** Returns a value in four significant digits, for reading it from a chart. */
export function precise(value) {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  const text = size >= 1e4 ? Math.round(value).toLocaleString('en')
    : size && size < 1e-3 ? value.toExponential(3) : String(Number(value.toPrecision(4)));
  return text.replace('-', '−');
}

/** Returns the range of all finite values, without those that a logarithm lacks; null for none. */
export function rangeOf(lists, log = false) {
  let low = Infinity, high = -Infinity;
  for (const list of lists) {
    for (const value of list) {
      if (!Number.isFinite(value) || (log && value <= 0)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : null;
}
