"""The page's style sheet: two modes by the reader's own setting, and room for narrow screens and for print."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #ffffff; --ink: #1c1d20; --quiet: #6a6d75;
  --line: #e3e3de; --accent: #2f66b0; --warn: #c0492f; --mark: #ffe9a8;
  --c0: #2f66b0; --c1: #d98a2b; --c2: #3a9a78; --c3: #b4508f; --c4: #7a6ad0;
  --c5: #8c7a3a; --c6: #4fa8c8; --c7: #9a9ca3; }
@media (prefers-color-scheme: dark) { :root { --paper: #141517; --card: #1c1e21; --ink: #e8e8e4; --quiet: #9a9da6;
  --line: #303338; --accent: #7fb0f0; --warn: #f08a70; --mark: #6b5718;
  --c0: #6ea3e8; --c1: #e8a957; --c2: #5fc29d; --c3: #dc83bb; --c4: #a79bf0;
  --c5: #bfab66; --c6: #7fcbe6; --c7: #868a93; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 36px 24px 60px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere }
h2 { font-size: 17px; margin: 0 0 14px }
h3 { font-size: 13px; margin: 14px 0 4px; color: var(--quiet); font-weight: 600 }
.lead { margin: 0 0 22px; color: var(--quiet); font-size: 16px } .lead b { color: var(--ink); font-weight: 600 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 10px; margin-bottom: 22px }
.tiles div, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px }
.tiles div { padding: 12px 14px }
.tiles b { display: block; white-space: nowrap; font-size: 23px; line-height: 1.25; letter-spacing: -.01em }
.tiles span { color: var(--quiet); font-size: 13px }
section { padding: 18px 20px; margin-bottom: 14px }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 10px 28px }
figure { margin: 0 } figcaption, .note { color: var(--quiet); font-size: 13px; margin: 6px 0 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: 5px 12px 5px 0; text-align: right; white-space: nowrap; border-top: 1px solid var(--line) }
thead th { border-top: 0; color: var(--quiet); font-weight: 500; font-size: 13px }
tr:first-child td { border-top-color: var(--line) }
.left { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 8em }
td:last-child, th:last-child { padding-right: 0 }
.bar { display: flex; height: 18px; border-radius: 5px; overflow: hidden; margin-bottom: 10px; gap: 1px }
.dot { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px }
.meter { display: inline-block; width: 180px; height: 8px; border-radius: 4px; background: var(--line);
  overflow: hidden; margin-right: 8px }
.meter span { display: block; height: 100% }
.kept { background: var(--c2) } .lost { background: var(--warn) }
svg { display: block; width: 100%; height: auto } svg text { font: 11px system-ui, sans-serif; fill: var(--quiet) }
svg text.ink { fill: var(--ink) } .level { stroke: var(--line) } .base { stroke: var(--quiet) }
.median { stroke: var(--ink); stroke-dasharray: 3 3; opacity: .7 }
.curve { fill: none; stroke: var(--accent); stroke-width: 2 }
.unused { fill: var(--warn); opacity: .18 }
.c0 { background: var(--c0); fill: var(--c0) } .c1 { background: var(--c1); fill: var(--c1) }
.c2 { background: var(--c2); fill: var(--c2) } .c3 { background: var(--c3); fill: var(--c3) }
.c4 { background: var(--c4); fill: var(--c4) } .c5 { background: var(--c5); fill: var(--c5) }
.c6 { background: var(--c6); fill: var(--c6) } .c7 { background: var(--c7); fill: var(--c7) }
details { border-top: 1px solid var(--line); padding: 8px 0 } details:first-of-type { border-top: 0; padding-top: 0 }
summary { cursor: pointer; overflow-wrap: anywhere }
pre { margin: 8px 0 0; padding: 12px 14px; background: var(--paper); border: 1px solid var(--line); border-radius: 8px;
  font: 12.5px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 260px;
  overflow-y: auto; unicode-bidi: isolate }
code { font: 12.5px ui-monospace, monospace } .pieces { margin: 0; line-height: 1.9 }
.pieces span { white-space: nowrap; margin-right: 12px; color: var(--quiet); font-size: 13px }
.pieces code { color: var(--ink); background: var(--paper); border: 1px solid var(--line); border-radius: 4px;
  padding: 1px 5px; white-space: pre }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 2px }
i.mark { font: 600 10px ui-monospace, monospace; color: var(--warn); border: 1px solid;
  border-radius: 3px; padding: 0 3px }
@media print { body { background: none } section, .tiles div { break-inside: avoid } pre { max-height: none } }
"""
