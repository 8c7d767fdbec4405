// The page that generates text. It talks to a backend, an object with:
//
//   describe(progress) -> {name, about, context, vocabularySize, layers, heads, sampling, can, others};
//     `progress` gets the share that is loaded; `sampling` has defaults by the names of
//     config.sample; `can.attention` says that there is `attention`, `can.inspect` that there is
//     `explain`, `can.chat` that there is `tokenizeChat`; `others`, which may be missing, are the names of further models
//   of(name) -> the backend of another model
//   tokenize(text) -> [{id, label}] of a prompt, at least one token
//   tokenizeChat(messages) -> the same of a conversation [{role, content}] up to its next answer
//   decode(ids) -> their text
//   score(ids, given) -> [{id, label, logprob, alternatives}] of a text; the first `given` tokens
//     have an id and a label only
//   generate({ids, sampling, signal}) -> async iterator of the tokens that follow, each
//     {id, label, text, logprob, alternatives: [{id, label, logprob}], seconds, ended}: `label` is
//     the text of the token alone, `text` what it adds to the text so far, `alternatives` the
//     likeliest tokens in its place, itself among them if it is one (or none), `seconds` the time
//     that the model took, `ended` null before the last; without `sampling.use_cache` the model
//     reads the whole text again for each token
//   attention(ids, position) -> {start, layers, heads, weights}: how much the token at a position
//     attends to those from `start` to itself, a Float32Array [layers, heads, tokens]
//   explain(ids, position, analysis) -> what an analysis, one of 'lens', 'attribution' and
//     'ablation', says about the token at a position (`explanation.js`), or {obstacle}
//
// All but `of` and `generate` return promises; errors have a message for the reader.

import { AttentionColours } from './attention_colours.js';
import { CacheTiming } from './cache_timing.js';
import { Comparison } from './comparison.js';
import { choice } from './controls.js';
import { Conversation } from './conversation.js';
import { Distribution } from './distribution.js';
import { h } from './dom.js';
import { Explanation } from './explanation.js';
import { Settings } from './settings.js';
import { linkTo, readFile, readLink, save } from './share.js';
import { followTheme, themeButton, toggleTheme } from './theme.js';
import { TokenPanel } from './token_panel.js';
import { TokenText } from './token_text.js';
import { Writer } from './writer.js';

/** Loads the model of a backend, then draws the page. */
export async function showPage(backend) {
  const bar = h('progress', { max: 1, 'aria-label': 'Loading the model' });
  const loading = h('p', { class: 'loading' }, 'loading the model ', bar);
  document.body.append(loading);
  try {
    const model = await backend.describe((share) => { bar.value = share; });
    drawPage(backend, model);
  } catch (error) {
    const notice = document.getElementById('notice');
    notice.hidden = false;
    notice.textContent = error.message;
  }
  loading.remove();
}

function drawPage(backend, model) {
  const settings = new Settings(model.sampling);
  const prompt = h('textarea', { id: 'prompt', rows: 2, spellcheck: 'false' });
  prompt.value = model.sampling.prompt ?? '';
  const text = new TokenText(), status = h('p', { class: 'hint', role: 'status' });
  const writer = new Writer(backend, text, status);
  const explanation = model.can.inspect ? new Explanation(backend, text) : null;
  const panel = new TokenPanel(text, {
    pick: (position, alternative) => start(async () => {
      await writer.branch(position, alternative, settings.read());
      if (conversation?.on) await conversation.take();
    }),
    explain: explanation && ((position) => explanation.show(position)),
  });
  const colours = model.can.attention ? new AttentionColours(backend, model, text) : null;
  const distribution = new Distribution(text, settings);
  const timing = new CacheTiming(settings, { rewrite: () => start(rewrite) });
  const write = h('button', { class: 'main', type: 'submit', title: 'Ctrl Enter' }, 'Generate');
  const goOn = h('button', { type: 'button', onclick: () => start(more) }, 'Continue');
  const stop = h('button', { type: 'button', title: 'Esc', onclick: () => halt() }, 'Stop');
  const copy = navigator.clipboard && // browsers have none for other machines' pages without TLS
    h('button', { type: 'button', onclick: () => navigator.clipboard.writeText(text.plain) }, 'Copy text');
  const link = h('button', { type: 'button', onclick: () => start(copyLink) }, 'Copy link');
  const keep = h('button', { type: 'button', title: 'the tokens and their probabilities, as JSON', onclick: () => save(taken()) }, 'Save');
  const file = h('input', { type: 'file', accept: '.json', hidden: true, 'aria-label': 'Saved text', onchange: () => start(openFile) });
  const open = h('button', { type: 'button', title: 'a text that was saved', onclick: () => file.click() }, 'Open');

  const comparison = model.others?.length
    ? new Comparison(backend, model.others, { settings, start, onchange: () => showButtons() }) : null;
  const conversation = model.can.chat ? new Conversation(backend, text, writer, { again: () => start(answerAgain) }) : null;
  async function more() {
    await Promise.all([writer.more(settings.read()), comparison?.more()]);
    if (conversation?.on) await conversation.take();
  }
  async function rewrite() {
    const { use_cache } = settings.values;
    halt();
    await writer.finished;
    await writer.again({ use_cache });
    if (conversation?.on) await conversation.take();
  }
  function answerAgain() {
    settings.fill({ seed: (Number(settings.shown().seed) + 1) % 2 ** 32 });
    return conversation.answerAgain(settings.read());
  }
  async function submit() {
    const sampling = settings.read(), content = prompt.value;
    if (!conversation?.on) return Promise.all([writer.write(content, sampling), comparison?.write(content)]);
    if (!content.trim()) throw new Error('write a message first');
    prompt.value = '';
    await conversation.send(content, sampling).catch((error) => {
      prompt.value ||= content;
      throw error;
    });
  }
  const modes = conversation && choice('Mode', [['complete', 'Complete'], ['chat', 'Chat']], 'complete', setMode);
  function setMode(mode) {
    const isChat = mode === 'chat';
    halt();
    conversation.element.hidden = !isChat;
    label.textContent = isChat ? 'Message' : 'Prompt';
    write.textContent = isChat ? 'Send' : 'Generate';
    prompt.value = isChat ? '' : model.sampling.prompt ?? '';
    if (comparison) comparison.menu.hidden = isChat;
    if (isChat) comparison?.close();
  }
  const halt = () => [writer, comparison].forEach((each) => each?.stop());

  const taken = () => ({
    model: model.name, prompt: prompt.value, settings: settings.shown(), messages: conversation?.on ? conversation.messages : [],
    text: text.plain, tokens: text.tokens,
  });
  async function copyLink() {
    const address = linkTo(taken());
    history.replaceState(null, '', address);
    await navigator.clipboard?.writeText(address);
    status.textContent = navigator.clipboard ? 'the link is copied' : 'the link is in the address bar';
  }
  async function openLink() {
    const found = readLink(model.vocabularySize);
    if (found) await show(found, 'the link');
  }
  async function openFile() {
    const [chosen] = file.files;
    file.value = ''; // the same file may be chosen again
    const found = await readFile(chosen, model.vocabularySize);
    await show(found, chosen.name);
    if (found.model !== model.name) status.textContent += `, which ${found.model} wrote; the probabilities are those of ${model.name}`;
  }
  async function show({ prompt: content, settings: values, messages, ids, given }, source) {
    const isChat = Boolean(conversation && messages.length);
    if (conversation && conversation.on !== isChat) modes.querySelectorAll('button')[Number(isChat)].click();
    prompt.value = content;
    settings.fill(values);
    halt();
    await writer.finished;
    if (isChat) conversation.resume(messages, given);
    if (ids.length) await writer.show(ids, given, source);
  }

  async function start(action) {
    try {
      await action();
    } catch (error) {
      status.textContent = error.message;
    }
  }
  const showButtons = () => {
    const busy = writer.busy || Boolean(comparison?.busy);
    write.disabled = link.disabled = open.disabled = busy;
    stop.disabled = !busy;
    for (const each of [goOn, copy, keep]) if (each) each.disabled = busy || !text.tokens.length;
    if (!busy) distribution.draw();
    conversation?.draw();
    if (comparison) heading.hidden = comparison.column.hidden;
  };
  const label = h('label', { for: 'prompt' }, 'Prompt'), heading = h('h2', { hidden: true }, model.name);
  writer.onchange = showButtons;
  writer.onrun = (run) => timing.take(run);
  showButtons();

  const form = h('form', {
    class: 'panel', novalidate: true,
    onsubmit: (event) => {
      event.preventDefault();
      if (!write.disabled) start(submit);
    },
  },
  modes, conversation?.element,
  label, prompt,
  h('div', { class: 'row' }, write, stop, goOn, copy ?? null, link, keep, open, file, comparison?.menu), settings.element, distribution.element, status);
  prompt.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  document.title = model.name;
  document.body.append(
    h('header', {},
      h('div', {}, h('h1', {}, model.name), h('p', { class: 'model' }, model.about)),
      h('div', { class: 'buttons' }, themeButton())),
    h('main', {},
      form,
      h('div', { class: 'writing' },
        h('section', { class: 'panel result', 'aria-label': 'Text' }, heading,
          h('div', { class: 'row' }, colours?.element, timing.choice), text.element, timing.element),
        comparison?.column,
        h('section', { class: 'panel side', 'aria-label': 'Token' }, panel.element, comparison?.side)),
      explanation?.element ?? null));
  comparison?.listen((chosen) => showSide(chosen !== null));
  if (comparison) text.listen((chosen) => chosen !== null && showSide(false));
  function showSide(other) {
    comparison.side.hidden = !other;
    panel.element.hidden = other;
  }
  followTheme(() => {
    text.draw();
    comparison?.draw();
  });
  window.addEventListener('hashchange', () => start(openLink));
  start(openLink);
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') halt();
    if (event.key !== 't' || event.ctrlKey || event.metaKey || event.altKey) return;
    if (!/INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) toggleTheme();
  });
}
