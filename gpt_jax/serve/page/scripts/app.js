// The page on a model of the server that it came from.

import { h } from './dom.js';
import { showPage } from './page.js';
import { NeedsKey, ServerBackend } from './server_backend.js';

const KEY = 'gpt_jax key'; // kept for this tab only

async function start(key) {
  const backend = new ServerBackend(document.baseURI, key);
  try {
    await backend.connect();
  } catch (error) {
    if (error instanceof NeedsKey) return askForKey(key !== '');
  }
  sessionStorage.setItem(KEY, key);
  showPage(backend); // shows any other error
}

function askForKey(wasWrong) {
  const input = h('input', { type: 'password', id: 'key', required: true, autocomplete: 'off' });
  const form = h('form', {
    class: 'panel',
    onsubmit: (event) => {
      event.preventDefault();
      form.remove();
      start(input.value.trim());
    },
  },
  h('label', { for: 'key' }, wasWrong ? 'That is not a key of this server. Its key:' : 'The key of this server:'),
  input, h('div', { class: 'row' }, h('button', { class: 'main', type: 'submit' }, 'Open')));
  document.body.append(form);
  input.focus();
}

start(sessionStorage.getItem(KEY) ?? '');
