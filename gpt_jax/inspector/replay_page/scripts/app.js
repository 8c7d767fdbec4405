// The page of a replayed batch: its sequences as text, each token on a shade for its loss.

import { decode } from './arrays.js';
import { Scale } from './colours.js';
import { choice } from './controls.js';
import { h, nats, percent, visible } from './dom.js';
import { followTheme, themeButton } from './theme.js';

const batch = decode(JSON.parse(document.getElementById('data').textContent));
const largest = batch.loss.range()[1];
const readout = h('p', { class: 'readout', 'aria-live': 'polite' }, 'Point at a token, or tap it, to see its loss.');
const list = h('div'), key = h('p', { class: 'hint legend' });
let scale, chosenToken = null;

function shade() {
  scale = new Scale(0, largest, 'surprise');
  key.replaceChildren('Shade: loss, the surprise at the token ', scale.key('nats'));
  for (const { drawn, text, row } of sequences) if (drawn) draw(text, row);
}

/** Returns what a person reads of a token: its own spaces and line ends, all else made visible. */
const readable = (text) => (text === '' ? '∅' : text.split(/([ \n])/).map((piece) =>
  piece === '\n' ? '↵\n' : piece === ' ' || piece === '' ? piece : visible(piece)).join(''));

function draw(text, row) {
  const tokens = batch.tokens.at(row).values, documents = batch.documents.at(row).values;
  const whole = tokens.filter((_, position) => documents[position]); // without padding
  text.replaceChildren(...Array.from(whole, (token, position) => {
    const loss = position ? batch.loss.at(row, position - 1) : NaN;
    const known = Number.isFinite(loss);
    const made = h('span', {
      'data-position': position, class: position && !known ? 'unlearned' : false, style: known && scale.style(loss),
    }, readable(batch.texts[token]));
    return position && documents[position] !== documents[position - 1] ? [h('hr'), made] : [made];
  }).flat());
}

function show(row, span) {
  const position = Number(span.dataset.position), token = batch.tokens.at(row, position);
  const loss = position ? batch.loss.at(row, position - 1) : NaN;
  const said = !position ? 'nothing predicts the first token'
    : Number.isFinite(loss) ? `loss ${nats(loss)}, probability ${percent(Math.exp(-loss))}` : 'not learned';
  chosenToken?.classList.remove('chosen');
  chosenToken = span;
  span.classList.add('chosen');
  readout.textContent = `${visible(batch.texts[token])}  ${said}; id ${token}, token ${position} of sequence ${row}`;
}

const sequences = batch.places.map((place, row) => {
  const text = h('div', { class: 'text' });
  for (const kind of ['pointerover', 'click']) {
    text.addEventListener(kind, (event) => event.target.dataset.position && show(row, event.target));
  }
  const mean = batch.means[row] === null ? 'no token of it is learned' : `loss ${nats(batch.means[row])}`;
  const element = h('section', { class: 'panel sequence', 'data-row': row },
    h('h2', {}, `Sequence ${row}: ${mean}`), h('p', { class: 'hint' }, place), text);
  return { row, text, element, drawn: false };
});

// A batch may have a million tokens: a sequence is drawn when it comes near the window.
const watcher = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    const each = sequences[Number(target.dataset.row)];
    if (!isIntersecting || each.drawn) continue;
    each.drawn = true;
    draw(each.text, each.row);
  }
}, { rootMargin: '1200px' });
for (const { element } of sequences) watcher.observe(element);

const arrange = (by) => list.replaceChildren(
  ...(by === 'loss' ? batch.order : [...sequences.keys()]).map((row) => sequences[row].element));

document.body.append(
  h('header', {}, h('h1', {}, batch.title),
    h('div', { class: 'buttons' }, themeButton())),
  h('dl', { class: 'facts' }, batch.facts.map(([name, value]) => [h('dt', {}, name), h('dd', {}, value)])),
  h('div', { class: 'reading' }, key, readout,
    choice('Order', [['loss', 'largest loss first'], ['row', 'as in the batch']], 'loss', arrange)),
  h('main', {}, list));
arrange('loss');
shade();
followTheme(shade);
