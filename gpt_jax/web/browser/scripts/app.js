// The page on a model that runs in this browser.

import { BrowserBackend } from './browser_backend.js';
import { showPage } from './page.js';

showPage(new BrowserBackend(new URL('.', document.baseURI).href));
