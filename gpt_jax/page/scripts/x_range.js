// The part of the x axis that is shown, which charts share.

/** A range in units of the axis, or null for all of it; `listen` hears of changes. */
export class XRange {
  constructor() {
    this.range = null;
    this.listeners = [];
  }

  listen(listener) {
    this.listeners.push(listener);
  }

  set(range) {
    this.range = range && range[1] > range[0] ? range : null;
    this.listeners.forEach((listener) => listener(this.range));
  }

  /** Shows a part around `x`: of `factor` times the width that is shown of `whole`. */
  scale(factor, x, whole) {
    const [low, high] = this.range ?? whole;
    const next = [x - (x - low) * factor, x + (high - x) * factor];
    this.set(next[0] <= whole[0] && next[1] >= whole[1] ? null
      : [Math.max(next[0], whole[0]), Math.min(next[1], whole[1])]);
  }
}
