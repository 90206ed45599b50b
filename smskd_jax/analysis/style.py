"""How pages look: readable by day and by night, on paper and on a telephone."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --soft: #5a6570; --paper: #ffffff; --tint: #f4f6f8;
  --line: #d5dbe1; --link: #0b62a8; }
@media (prefers-color-scheme: dark) { :root { --ink: #dfe5ea; --soft: #98a4af; --paper: #14181c; --tint: #1d2329;
  --line: #37414b; --link: #7cb7ec; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 58rem; padding: 2rem 1.25rem 5rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1, h2, h3, h4 { line-height: 1.25; margin: 2.2em 0 0.6em; }
h1 { font-size: 1.75rem; margin-top: 0; }
h2 { font-size: 1.35rem; padding-top: 0.8em; border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; }
h4 { font-size: 1rem; }
p, ul, pre { margin: 0 0 1rem; }
figure { margin: 0 0 1.75rem; }
p, li { max-width: 46rem; }
a { color: var(--link); }
nav { padding: 0.8rem 1rem; margin: 1.5rem 0; background: var(--tint); border-radius: 6px; }
nav ul { margin: 0; padding-left: 1.2rem; }
nav > ul { padding-left: 0.4rem; list-style: none; columns: 16rem; }
nav li { break-inside: avoid; }
.scroll { overflow-x: auto; width: max-content; min-width: 100%; max-width: min(100vw - 2.5rem, 50vw + 26.5rem); }
table { border-collapse: collapse; font-size: 0.84rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
th:first-child { position: sticky; left: 0; background: var(--paper); }
tbody th { font-weight: 500; white-space: nowrap; }
.number { text-align: right; }
td.words, tbody th.words { white-space: normal; min-width: 7rem; overflow-wrap: anywhere; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 6px; }
figcaption { color: var(--soft); font-size: 0.875rem; max-width: 46rem; padding-top: 0.5rem; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 0.85em; }
code { background: var(--tint); padding: 0.1em 0.3em; border-radius: 4px; }
pre { background: var(--tint); padding: 0.8rem 1rem; border-radius: 6px; overflow: auto; max-height: 36rem; }
pre code { background: none; padding: 0; font-size: 1em; }
summary { cursor: pointer; color: var(--link); }
summary h2, summary h3, summary h4 { display: inline; border: 0; padding: 0; }
details { margin: 0 0 1rem; }
details[open] > summary { margin-bottom: 1rem; }
@media print { body { max-width: none; } .scroll { width: auto; max-width: 100%; } nav { display: none; }
  figure, table { break-inside: avoid; } }
"""
