'use strict';
(() => {
  const root = document.documentElement;
  root.classList.add('js');
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const rows = all('.grid tbody tr').map(row => all('.cell', row));
  const cells = rows.flat();
  const narrow = () => matchMedia('(max-width: 999px)').matches;
  let opened = null;
  let came = null;

  const panelOf = cell => document.getElementById(cell.getAttribute('href').slice(1));
  const cellOf = panel => cells.find(cell => cell.getAttribute('href') === '#' + panel.id);
  const address = hash => { try { history.replaceState(null, '', hash); } catch { /* a page without an address */ } };

  // One cell is in the order of the tab key, the one that had the focus last.
  const enter = cell => {
    for (const other of cells) other.tabIndex = other === cell ? 0 : -1;
  };

  const close = refocus => {
    if (!opened) return;
    const panel = opened;
    opened = null;
    panel.classList.remove('open');
    document.body.classList.remove('opened');
    const cell = cellOf(panel);
    if (cell) cell.setAttribute('aria-expanded', 'false');
    address('#guarantees');
    if (refocus) (came || cell || document.body).focus();
    came = null;
  };

  const open = (panel, from) => {
    if (opened && opened !== panel) close(false);
    opened = panel;
    came = from || came;
    panel.classList.add('open');
    panel.scrollTop = 0;
    document.body.classList.add('opened');
    const cell = cellOf(panel);
    if (cell) {
      cell.setAttribute('aria-expanded', 'true');
      enter(cell);
      // The matrix is narrower now.
      if (from) cell.scrollIntoView({ block: 'nearest', inline: 'nearest' });
    }
    address('#' + panel.id);
    for (const view of all('.view', panel)) {
      const wrong = view.querySelector('.offends rect');
      if (wrong) view.scrollLeft = wrong.x.baseVal.value - 120;
    }
    if (!from || narrow()) panel.querySelector('h2').focus();
  };

  const place = cell => {
    const row = rows.findIndex(row => row.includes(cell));
    return [row, rows[row].indexOf(cell)];
  };

  const move = (cell, event) => {
    let [row, column] = place(cell);
    const last = rows[row].length - 1;
    switch (event.key) {
      case 'ArrowUp': row -= 1; break;
      case 'ArrowDown': row += 1; break;
      case 'ArrowLeft': column -= 1; break;
      case 'ArrowRight': column += 1; break;
      case 'Home': column = 0; if (event.ctrlKey) row = 0; break;
      case 'End': column = last; if (event.ctrlKey) row = rows.length - 1; break;
      default: return false;
    }
    const next = rows[row] && rows[row][column];
    if (next) {
      enter(next);
      next.focus();
      // What is open follows.
      if (opened && !narrow()) open(panelOf(next), next);
    }
    return true;
  };

  for (const cell of cells) {
    cell.setAttribute('aria-expanded', 'false');
    cell.setAttribute('aria-haspopup', 'dialog');
    cell.addEventListener('focus', () => enter(cell));
    cell.addEventListener('click', event => {
      event.preventDefault();
      const panel = panelOf(cell);
      if (opened === panel && event.detail > 0) close(true);
      else open(panel, event.detail > 0 ? cell : undefined);
      came = cell;
    });
    cell.addEventListener('keydown', event => {
      if (event.key === ' ') {
        event.preventDefault();
        cell.click();
      } else if (!event.altKey && !event.metaKey && move(cell, event)) {
        event.preventDefault();
      }
    });
  }
  if (cells.length) enter(cells[0]);

  for (const link of all('a[data-opens]')) {
    link.addEventListener('click', event => {
      event.preventDefault();
      open(document.getElementById(link.dataset.opens));
      came = link;
    });
  }
  for (const link of all('.close')) {
    link.addEventListener('click', event => { event.preventDefault(); close(true); });
  }
  document.addEventListener('keydown', event => {
    if (event.key === 'Escape' && opened) { event.preventDefault(); close(true); }
  });

  // Filters: one at a time, and none.
  const buttons = all('.filters button');
  const choose = mark => {
    for (const button of buttons) button.setAttribute('aria-pressed', String(button.dataset.mark === mark));
    const has = node => !mark || node.dataset.marks.split(' ').includes(mark);
    for (const cell of all('.grid td')) cell.classList.toggle('faded', !has(cell));
    for (const row of all('.cases tbody tr')) row.hidden = !has(row);
    for (const node of all('.cases td, .detail article')) node.classList.toggle('faded', !has(node));
    const list = document.querySelector('.all-cases');
    if (list && mark) list.open = true;
  };
  for (const button of buttons) {
    button.addEventListener('click', () =>
      choose(button.getAttribute('aria-pressed') === 'true' ? '' : button.dataset.mark));
  }

  // Timelines: what a bar stands for is told below; arrow keys go from bar to bar.
  for (const figure of all('.timeline')) {
    const told = figure.querySelector('.told');
    const bars = all('.bar', figure);
    const hint = told.textContent;
    const tell = bar => { told.textContent = bar.getAttribute('aria-label'); };
    const current = () => bars.find(bar => bar === document.activeElement);
    for (const [index, bar] of bars.entries()) {
      bar.addEventListener('mouseenter', () => tell(bar));
      bar.addEventListener('mouseleave', () => { if (current()) tell(current()); else told.textContent = hint; });
      bar.addEventListener('focus', () => {
        for (const other of bars) other.setAttribute('tabindex', other === bar ? '0' : '-1');
        tell(bar);
      });
      bar.addEventListener('keydown', event => {
        const lane = bar.dataset.lane;
        const find = {
          ArrowLeft: () => bars[index - 1],
          ArrowRight: () => bars[index + 1],
          ArrowUp: () => bars.slice(0, index).reverse().find(other => other.dataset.lane < lane) || bars.find(other => +other.dataset.lane === lane - 1),
          ArrowDown: () => bars.slice(index).find(other => +other.dataset.lane === +lane + 1) || bars.find(other => +other.dataset.lane === +lane + 1),
          Home: () => bars[0],
          End: () => bars[bars.length - 1],
        }[event.key];
        if (!find) return;
        event.preventDefault();
        const next = find();
        if (next) { next.focus(); next.scrollIntoView({ block: 'nearest', inline: 'nearest' }); }
      });
    }
  }

  const follow = () => {
    const panel = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (panel && panel.classList.contains('detail')) open(panel, cellOf(panel));
  };
  addEventListener('hashchange', follow);
  follow();
})();
