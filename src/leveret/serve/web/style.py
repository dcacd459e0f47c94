"""The look of the pages that are not Gradio's: one style sheet, light and dark, no font from elsewhere."""

STYLE = """
:root { color-scheme: light dark; --ink:#1c2330; --soft:#667085; --line:#e4e7ec; --card:#fff; --page:#f7f8fa;
  --a:#2563eb; --b:#d97706; --good:#15803d; --bad:#b42318; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6e9ef; --soft:#98a2b3; --line:#2c3442; --card:#171c26;
  --page:#0f131a; --a:#6ea8fe; --b:#f5b454; --good:#4ade80; --bad:#f97066; } }
* { box-sizing:border-box; }
body { margin:0 auto; max-width:1180px; padding:24px; background:var(--page); color:var(--ink);
  font:15px/1.55 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
a { color:var(--a); } h1 { font-size:22px; margin:0 0 4px; overflow-wrap:anywhere; }
h2 { font-size:17px; margin:32px 0 10px; } h3 { font-size:15px; margin:20px 0 6px; }
h4 { font-size:14px; font-weight:500; margin:14px 0 6px; overflow-wrap:anywhere; }
details { margin:0 0 14px; } summary { cursor:pointer; color:var(--soft); margin:0 0 8px; }
p { margin:0 0 12px; } .soft { color:var(--soft); } .good { color:var(--good); } .bad { color:var(--bad); }
nav { display:flex; gap:16px; justify-content:space-between; flex-wrap:wrap; margin:0 0 16px; color:var(--soft); }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:14px; margin:0 0 14px;
  overflow-x:auto; }
table { border-collapse:collapse; font-variant-numeric:tabular-nums; }
th { text-align:left; font-weight:500; color:var(--soft); white-space:nowrap; }
th, td { padding:4px 20px 4px 0; vertical-align:top; } td.number, th.number { text-align:right; }
tr + tr > td { border-top:1px solid var(--line); }
code, pre { font:13px/1.5 ui-monospace, monospace; overflow-wrap:anywhere; }
iframe { width:100%; height:520px; border:1px solid var(--line); border-radius:10px; background:var(--card); }
.door { min-height:100vh; display:grid; place-items:center; padding:16px; }
.door form { width:100%; max-width:360px; background:var(--card); border:1px solid var(--line); border-radius:12px;
  padding:24px; display:grid; gap:14px; } .door h1 { font-size:18px; } .door p { margin:0; color:var(--bad); }
.door label { display:grid; gap:6px; color:var(--soft); }
.door input { font:inherit; padding:9px 11px; border:1px solid var(--line); border-radius:8px; background:var(--page);
  color:var(--ink); }
.door button { font:inherit; font-weight:600; padding:9px; border:0; border-radius:8px; background:var(--a);
  color:var(--card); cursor:pointer; }
"""
