// What is chosen on the page; views redraw when it changes.

const listeners = [];

/** The choice: `pinned` and `pointed` tokens, a head, a view. */
export const state = { pinned: 0, pointed: null, layer: 0, head: 0, view: '' };

/** Returns the token that is shown: the one under the pointer, else the pinned one. */
export const chosen = () => state.pointed ?? state.pinned;

export function listen(listener) {
  listeners.push(listener);
}

/** Changes the choice and tells the listeners which keys changed. */
export function choose(changes) {
  const changed = Object.keys(changes).filter((key) => state[key] !== changes[key]);
  if (!changed.length) return;
  Object.assign(state, changes);
  for (const listener of listeners) listener(new Set(changed));
}
