// The backend that runs the model in a worker of the browser: the interface of page.js.

export class BrowserBackend {
  /** `backend` is 'cpu', 'webgpu', or null for the faster one. */
  constructor(folder, backend = null) {
    this.requests = new Map();
    this.count = 0;
    Object.assign(this, { folder, backend });
    this.worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
    this.worker.onmessage = ({ data }) => this.requests.get(data.request)?.(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      const error = 'the worker of this page cannot start; run “python -m http.server” in its folder, or export it again';
      for (const receive of [...this.requests.values()]) receive({ error });
    };
  }

  async describe(progress) {
    const found = await this.ask('load', { folder: this.folder, backend: this.backend }, ({ loaded }) => progress(loaded));
    return { ...found, can: { attention: true } };
  }

  tokenize(text) {
    return this.ask('tokenize', { text });
  }

  decode(ids) {
    return this.ask('decode', { ids });
  }

  score(ids, given) {
    return this.ask('score', { ids, given });
  }

  attention(ids, position) {
    return this.ask('attention', { ids, position });
  }

  async *generate({ ids, sampling, signal }) {
    const pieces = [];
    let wake = () => {}, ended = false, failure = null;
    const finished = this.ask('generate', { ids, sampling }, (piece) => {
      pieces.push(piece);
      wake();
    });
    const request = this.count;
    signal?.addEventListener('abort', () => this.ask('stop', { request }));
    finished.catch((error) => { failure = error; }).finally(() => {
      ended = true;
      wake();
    });
    while (!ended || pieces.length) {
      if (signal?.aborted) return;
      if (pieces.length) yield pieces.shift();
      else await new Promise((resolve) => { wake = resolve; });
    }
    if (failure) throw failure;
  }

  /** Sends a request; `receive` gets what arrives before the result. */
  ask(method, values, receive = () => {}) {
    const request = ++this.count;
    return new Promise((resolve, reject) => {
      this.requests.set(request, ({ piece, result, error }) => {
        if (piece !== undefined) return receive(piece);
        this.requests.delete(request);
        if (error !== undefined) reject(new Error(error));
        else resolve(result);
      });
      this.worker.postMessage({ request, method, values });
    });
  }
}
