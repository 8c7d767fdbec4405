// From the curves of runs to the lines of charts: the x axis, smoothing, groups of seeds.

import { precise, tickText } from './axis.js';
import { average, interpolate, smooth } from './curves.js';

const FEWEST = 40; // points of a curve that is smoothed

/** The units of the time axis: [name, seconds, seconds up to which it is used]. */
const UNITS = [['s', 1, 300], ['min', 60, 3 * 3600], ['h', 3600, Infinity]];

/** Returns the unit for times in seconds, and the seconds in it. */
export function timeUnit(times) {
  return UNITS.find(([, , end]) => Math.max(...times) <= end);
}

/** Returns what charts can have as their x axis: {key, name, of(run, steps), axis}. */
export function xAxes(runs) {
  const times = runs.map((run) => run.seconds ?? 0);
  const [unit, seconds] = timeUnit(times);
  const axes = [
    { key: 'step', name: 'steps', of: (_, steps) => steps,
      axis: { xTitle: 'step', sayX: (x) => `step ${Math.round(x).toLocaleString('en')}` } },
    { key: 'tokens', name: 'tokens', of: (run, steps) => steps.map((step) => step * run.tokens_per_step),
      axis: { xTitle: 'training tokens', sayX: (x) => `${tickText(Math.round(x))} tokens` } },
  ];
  const time = { key: 'time', name: 'time', of: (run, steps) => timesOf(run, steps, seconds),
    axis: { xTitle: `time of the training steps, ${unit}`, sayX: (x) => `${precise(x)} ${unit}` } };
  return times.some((each) => each > 0) ? [...axes, time] : axes;
}

function timesOf(run, steps, unit) {
  const known = run.curves['train/seconds'];
  if (!known) return steps.map(() => NaN);
  const curve = { x: [0, ...known.steps], y: [0, ...known.values] }, last = curve.y.at(-1);
  return steps.map((step) => (step >= curve.x.at(-1) ? last : interpolate(curve, step)) / unit);
}

/** Returns the line of a metric for a group; null if none of its runs has the metric. */
export function lineOf(group, metric, { xAxis, weight, ...look }) {
  const runs = group.runs.filter((run) => run.curves[metric]);
  if (!runs.length) return null;
  const curves = runs.map((run) => {
    const { steps, values, low, high } = run.curves[metric];
    const y = values.map((value) => value ?? NaN);
    const smoothed = weight > 0 && steps.length > FEWEST ? smooth(y, weight) : y;
    return { x: xAxis.of(run, steps), y: smoothed, raw: smoothed === y ? null : y, low, high };
  });
  if (curves.length === 1) return { ...look, ...curves[0] };
  const mean = average(curves);
  return { ...look, ...mean, text: (i) => ` (${precise(mean.low[i])} to ${precise(mean.high[i])})` };
}
