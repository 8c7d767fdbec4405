// Starts the page. No module, so that it also runs where browsers refuse modules: opened as a file.

(() => {
  const say = (text) => {
    const notice = document.getElementById('notice');
    notice.hidden = false;
    notice.textContent = text;
  };
  if (location.protocol === 'file:') {
    say('This page needs a web server: run “python -m http.server” in its folder and open the address that it prints.');
    return;
  }
  const app = document.createElement('script');
  app.type = 'module';
  app.src = new URL('./app.js', document.currentScript.src);
  app.onerror = () => say('A script of this page cannot be read; run “python -m http.server” in its folder, or export it again.');
  document.body.append(app);
})();
