/** The look of the HTML report: light and dark, from a phone to a wide screen, on paper. */

/** Style sheet of the report. */
export const STYLE = `
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #15181d; --soft: #5b6472; --line: #dfe3e9; --track: #eef0f4;
  --accent: #3257d6; --accent-soft: #8fa6ec; --good: #0b7a43; --bad: #b3261e;
  --c0: #8a93a1; --c1: #0f8f83; --c2: #b7791f; --c3: #8e4ec6; --c4: #c2416b; --c5: #5f7a1f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101318; --card: #191d24; --ink: #e9ecf1; --soft: #9aa4b2; --line: #2b313b; --track: #252a33;
    --accent: #7d9cff; --accent-soft: #4560b5; --good: #5fd39a; --bad: #ff8f85;
    --c0: #7b8594; --c1: #35b5a8; --c2: #d9a13f; --c3: #b58ae0; --c4: #e57a9b; --c5: #9dbb4f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; -webkit-text-size-adjust: 100%;
}
main { max-width: 72rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.15; margin: 0 0 .25rem; letter-spacing: -.02em; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .9rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 0; }
h4 { font-size: .8rem; font-weight: 600; color: var(--soft); margin: 0 0 .4rem; }
p { margin: .25rem 0; max-width: 70ch; }
.soft, .sub { color: var(--soft); }
.sub { font-size: .85rem; margin: 0 0 1rem; }
.warning { border-left: 4px solid var(--bad); background: var(--card); padding: .6rem .9rem; border-radius: 4px; margin: 1rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: .8rem; margin: 1.5rem 0 0; padding: 0; list-style: none; }
.tiles li, figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.tiles li { padding: .85rem 1rem; }
.tiles h3 { font-size: .86rem; font-weight: 500; color: var(--soft); line-height: 1.3; margin-bottom: .35rem; }
.tiles p { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .6rem; margin: .1rem 0; }
.tiles .what { font-size: .8rem; color: var(--soft); flex: 1 0 100%; }
.tiles p + p { margin-top: .35rem; }
.tiles .number { font-size: 1.3rem; line-height: 1.25; font-weight: 650; letter-spacing: -.02em; white-space: nowrap; }
.tiles .than { font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; padding: 1.1rem 1.2rem 1.2rem; min-width: 0; }
figcaption { margin-bottom: 0; }
.net + .net { border-top: 1px solid var(--line); margin-top: 1.1rem; padding-top: .9rem; }
.rows { list-style: none; margin: 0; padding: 0; display: grid; gap: .5rem; }
.row { display: grid; grid-template-columns: minmax(5.5rem, 7.5rem) 1fr 6rem 3.4rem; align-items: center; gap: .15rem .7rem; font-size: .9rem; }
.name { overflow-wrap: anywhere; line-height: 1.25; }
.mine .name, .mine .value { font-weight: 650; }
.track { position: relative; height: 1.15rem; background: var(--track); border-radius: 4px; min-width: 3rem; }
.bar { position: absolute; inset: 0 auto 0 0; width: var(--w); background: var(--colour); border-radius: 4px; min-width: 2px; }
.bar.cut { -webkit-mask: linear-gradient(115deg, #000 calc(100% - 2.1rem), #0000 0 calc(100% - 1.75rem), #000 0); mask: linear-gradient(115deg, #000 calc(100% - 2.1rem), #0000 0 calc(100% - 1.75rem), #000 0); }
.bar.p90 { opacity: .5; } .bar.p99 { opacity: .25; }
.tick { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; left: var(--x); background: var(--ink); opacity: .55; border-radius: 1px; }
.value { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.parts { grid-column: 2 / -1; font-size: .78rem; color: var(--soft); font-variant-numeric: tabular-nums; margin-top: -.1rem; }
.ratio { text-align: right; font-size: .85rem; white-space: nowrap; font-variant-numeric: tabular-nums; color: var(--soft); }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.none { grid-column: 2 / -1; color: var(--soft); font-style: italic; font-size: .84rem; line-height: 1.3; overflow-wrap: anywhere; }
.key { margin: 1rem 0 0; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 12px; margin-bottom: 1rem; }
table { border-collapse: collapse; font-size: .84rem; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .4rem .9rem; border-top: 1px solid var(--line); white-space: nowrap; vertical-align: top; }
th:first-child { text-align: left; font-weight: 500; white-space: normal; min-width: 9rem; position: sticky; left: 0; background: var(--card); }
thead th { font-weight: 600; border-top: 0; }
td small { display: block; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0; font-size: .92rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .7rem 1rem; margin-bottom: .8rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: .8rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: .6rem 0 0; }
details ul { padding-left: 1.1rem; margin: .6rem 0 0; font-size: .9rem; } details li { margin: .25rem 0; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (max-width: 34rem) {
  main { padding: 1.25rem .85rem 3rem; }
  h1 { font-size: 1.5rem; }
  .tiles { grid-template-columns: 1fr 1fr; gap: .6rem; } .tiles li { padding: .75rem .7rem; } .tiles .number { font-size: 1.02rem; } .tiles .than { font-size: .8rem; } .tiles p { gap: 0 .4rem; }
  figure { padding: .95rem .95rem 1.05rem; }
  .row { grid-template-columns: 1fr auto 3.4rem; }
  .track { grid-column: 1 / -1; grid-row: 2; height: .9rem; }
  .parts, .none { grid-column: 1 / -1; }
  .rows { gap: .75rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
}
@media print { figure, .tiles li { break-inside: avoid; } body { background: none; } }
`;
