// The page on a model that runs in this browser.

import { BrowserBackend } from './browser_backend.js';
import { showPage } from './page.js';

const { searchParams } = new URL(document.baseURI);
showPage(new BrowserBackend(new URL('.', document.baseURI).href, searchParams.get('backend')));
