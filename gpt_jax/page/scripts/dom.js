// Elements, numbers and texts as the page shows them. Texts only ever become text nodes.

const SVG = 'http://www.w3.org/2000/svg';
const SVG_TAGS = new Set(['svg', 'path', 'line', 'circle', 'g', 'text', 'rect', 'polyline', 'clipPath']);

/** Returns an element: `on…` attributes are listeners, `false` and null leave one out. */
export function h(tag, attributes = {}, ...children) {
  const made = SVG_TAGS.has(tag)
    ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? '' : value);
  }
  made.append(...children.flat(2).filter((child) => child != null));
  return made;
}

// Characters that are invisible, move the text around them, or break the line.
const HIDDEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]/g;

/** Returns the text of a token with visible whitespace: `·hello↵`. */
export function visible(text) {
  if (text === '') return '∅';
  return text.replace(/ /g, '·').replace(/\n/g, '↵').replace(/\t/g, '⇥').replace(
    HIDDEN, (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

/** Returns a text cut to a number of characters. */
export function cut(text, length) {
  const letters = [...text];
  return letters.length > length ? `${letters.slice(0, length - 1).join('')}…` : text;
}

/** Returns a number in three significant digits. */
export function number(value) {
  if (!Number.isFinite(value)) return value == null || Number.isNaN(value) ? '–' : value > 0 ? '∞' : '−∞';
  if (Number.isInteger(value)) return value.toLocaleString('en').replace('-', '−');
  const size = Math.abs(value);
  const text = size >= 1e6 || size < 1e-3 ? value.toExponential(1)
    : size >= 100 ? Math.round(value).toLocaleString('en') : String(Number(value.toPrecision(3)));
  return text.replace('-', '−');
}

export const percent = (value) =>
  value > 0 && value < 0.001 ? '<0.1%' : `${(100 * value).toFixed(value && value < 0.0995 ? 1 : 0)}%`;

/** Returns a loss: three decimals, so that a column of them aligns. */
export const nats = (value) => value.toFixed(3);

/** Returns 'attention_output' as a heading: 'Attention output'. */
export function heading(name) {
  const words = name.replaceAll('_', ' ').replace(/\bmlp/g, 'MLP').replace(/\bflops\b/g, 'FLOPs');
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Returns a table, the first row its headings; columns of numbers are aligned to the right. */
export function table(rows, label) {
  const [head, ...body] = rows;
  const numeric = head.map((_, column) =>
    body.length > 0 && body.every((row) => /^[-−+<]?[\d.,]+( ?[%a-zA-Z/]{1,7})?$|^[–-]?$/.test(row[column])));
  const cell = (tag) => (text, column) =>
    h(tag, { class: numeric[column] ? 'number' : false, scope: tag === 'th' ? 'col' : false }, text);
  return h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': label },
    h('table', {},
      h('thead', {}, h('tr', {}, head.map(cell('th')))),
      h('tbody', {}, body.map((row) => h('tr', {}, row.map(cell('td')))))));
}
