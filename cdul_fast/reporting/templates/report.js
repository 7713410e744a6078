'use strict';
(() => {
  // Pointing at a bar, or moving the focus to it, outlines the tile behind it. The last gesture wins.
  const clear = (card) => card.querySelectorAll('.on').forEach((part) => part.classList.remove('on'));
  const show = (bar) => {
    const card = bar.closest('.card');
    clear(card);
    bar.classList.add('on');
    const tile = card.querySelector(`.tile[data-bar="${bar.dataset.bar}"]`);
    if (tile) tile.classList.add('on');
  };
  for (const card of document.querySelectorAll('.card')) {
    const bars = [...card.querySelectorAll('.bar')];
    const bar = (event) => event.target.closest('.bar');
    const focused = () => bars.includes(document.activeElement) ? document.activeElement : null;
    card.addEventListener('mouseover', (event) => { if (bar(event)) show(bar(event)); });
    card.addEventListener('mouseleave', () => { clear(card); if (focused()) show(focused()); });
    card.addEventListener('focusin', (event) => { if (bar(event)) show(bar(event)); });
    card.addEventListener('focusout', () => clear(card));
    // Safari does not focus a button that is tapped.
    card.addEventListener('click', (event) => { if (bar(event)) { bar(event).focus(); show(bar(event)); } });
    // One stop for the Tab key per photo; the arrow keys move between its bars.
    bars.forEach((each, index) => { each.tabIndex = index ? -1 : 0; });
    card.addEventListener('keydown', (event) => {
      const at = bars.indexOf(document.activeElement);
      if (at < 0) return;
      if (event.key === 'Escape') { clear(card); return; }
      const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: bars.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = bars[Math.min(Math.max(to, 0), bars.length - 1)];
      bars.forEach((each) => { each.tabIndex = each === next ? 0 : -1; });
      next.focus();
    });
  }

  const button = document.getElementById('theme');
  if (!button) return;
  const themes = ['auto', 'light', 'dark'];
  const key = 'cdul_fast-theme';
  const use = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.querySelector('span').textContent = theme;
  };
  let saved = null;
  // A page opened from a file may have no storage; the choice then lasts as long as the page.
  try { saved = localStorage.getItem(key); } catch { saved = null; }
  use(themes.includes(saved) ? saved : 'auto');
  button.hidden = false;
  button.addEventListener('click', () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % themes.length];
    use(next);
    try { localStorage.setItem(key, next); } catch { /* as above */ }
  });
})();
