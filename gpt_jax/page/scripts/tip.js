// The bubble beside the pointer.

import { h } from './dom.js';

const bubble = h('div', { id: 'tip', 'aria-hidden': 'true' });

/** Shows a text or an element beside the pointer; '' hides it. */
export function tip(content, event) {
  bubble.hidden = !content;
  if (!content) return;
  if (!bubble.isConnected) document.body.append(bubble);
  bubble.replaceChildren(content);
  const { offsetWidth: wide, offsetHeight: high } = bubble;
  const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - wide - 8);
  const above = event.clientY + high + 24 > window.innerHeight;
  bubble.style.left = `${Math.max(left, 4)}px`;
  bubble.style.top = `${above ? event.clientY - high - 12 : event.clientY + 16}px`;
}
