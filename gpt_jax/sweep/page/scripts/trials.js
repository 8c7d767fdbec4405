// The trials of a sweep as charts need them: the values of knobs as places along an axis, groups.

import { precise, tickText } from './axis.js';
import { cut } from './dom.js';

const MOST_GROUPS = 8, LONGEST = 14; // colours; letters of a tick

const text = (value) => (typeof value === 'number' ? precise(value) : String(value));

/** Returns the last value that a trial reported, which of a complete one is its result. */
export function lastValue(trial) {
  return trial.value ?? Object.values(trial.curve).at(-1) ?? NaN;
}

/** Returns a trial in words: 'trial 3: optimizer=muon, learning_rate=0.01'. */
export function describe(trial) {
  const knobs = Object.entries(trial.params).map(([name, value]) => `${name}=${text(value)}`);
  const ended = trial.state === 'complete' ? '' : ` (${trial.state})`;
  return `trial ${trial.trial}${ended}: ${knobs.join(', ')}`;
}

/** A knob: its axis, and the place of a trial on it, NaN where the trial does not have it. */
export class Knob {
  constructor(name, { log, choices }) {
    Object.assign(this, { name, log, choices });
    this.axis = choices ? {
      xTitle: name, formatX: (place) => this.tick(place), sayX: (place) => String(choices[place]),
    } : { xTitle: name, logX: log, sayX: precise };
  }

  place(trial) {
    const value = trial.params[this.name];
    if (value === undefined) return NaN;
    return this.choices ? this.choices.findIndex((each) => each === value) : value;
  }

  /** Returns the text of a place along the axis; '' between two choices. */
  tick(place) {
    if (!this.choices) return tickText(place);
    const nearest = Math.round(place);
    return Math.abs(place - nearest) < 1e-6 ? cut(String(this.choices[nearest] ?? ''), LONGEST) : '';
  }
}

/** Returns the ways to colour trials: {name, groups, of(trial)}; the first is the best at first. */
export function colourings(knobs) {
  const chosen = knobs.filter(({ choices }) => choices && choices.length > 1 && choices.length <= MOST_GROUPS);
  return [
    ...chosen.map((knob) => ({
      name: knob.name, groups: knob.choices.map(String), of: (trial) => Math.max(knob.place(trial), 0),
    })),
    { name: 'none', groups: [], of: () => 0 },
  ];
}
