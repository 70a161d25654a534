"""The report's page. A string, not a data file: it comes along however the package is installed."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>
:root { --text: #1f2329; --soft: #59616b; --page: #ffffff; --line: #d9dce1; --card: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --soft: #a9b0b9; --page: #15181c; --line: #363c44; --card: #1e2228; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1360px; padding: 20px 24px 60px; background: var(--page);
  color: var(--text); font: 15px/1.5 Helvetica, Arial, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 25px; margin: 8px 0 4px; }
h2 { font-size: 19px; margin: 44px 0 6px; padding-top: 14px; border-top: 1px solid var(--line); }
p { margin: 6px 0 12px; max-width: 92ch; }
.soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: 10px 16px; margin: 12px 0; }
.card ul { margin: 4px 0; padding-left: 20px; }
.card li { margin: 5px 0; }
.missing { border-style: dashed; color: var(--soft); }
.warning { border-left: 4px solid #b35900; }
.pair { display: grid; grid-template-columns: 1fr; }
.table { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0 14px; font-size: 14px; }
th, td { border-bottom: 1px solid var(--line); padding: 4px 14px 4px 0; text-align: left;
  vertical-align: top; max-width: 46ch; }
tbody th { font-weight: normal; }
th { overflow-wrap: normal; }
tr.moved td { color: #c2185b; font-weight: bold; }
.axes td, .axes th { max-width: 34ch; }
.axes tbody th { min-width: 11ch; }
.axes td { min-width: 15ch; }
details { margin: 6px 0; }
.problems td { max-width: 30ch; }
pre { white-space: pre-wrap; max-height: 30em; overflow: auto; margin: 4px 0; }
.contents a { color: inherit; margin-right: 18px; white-space: nowrap; }
tr.same td, tr.same th { color: var(--soft); font-weight: normal; }
code { font-size: 13px; }
/* The figures carry a grey for any background; here the background is known. */
.figure { margin: 0 0 26px; }
.js-plotly-plot .infolayer text { fill: var(--text) !important; }
.js-plotly-plot [class*="tick"] text, .js-plotly-plot .barlayer text,
.js-plotly-plot .scatterlayer text {
  fill: var(--soft) !important; }
.js-plotly-plot .barlayer .errorbar path { stroke: var(--text) !important; }
</style>
<script>{{ plotly_js }}</script>
<script>{{ slider_keys }}</script>
<script>
// A sandboxed frame may refuse to go to an address, its own with a fragment too: scroll instead.
addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (!link) return;
  event.preventDefault();
  document.getElementById(link.getAttribute("href").slice(1)).scrollIntoView();
});
</script>
</head>
<body>
<h1>{{ title }}</h1>
<p class="soft">Base: {{ bases | join("; ") or "not recorded" }}.
{{ names | length }} run{{ "" if names | length == 1 else "s" }}{{ ": " if names else "" -}}
{{ names | join(", ") }}.</p>
<noscript><p class="card missing">The figures need JavaScript. The same figures as PNG files, with
their numbers as CSV, come from <code>mlflow-scalpel report --figures</code>.</p></noscript>
{% if parameters %}<div class="table">{{ parameters }}</div>{% endif %}
<p>{{ seeds }}</p>
{% if warnings %}<div class="card warning"><strong>Warnings</strong>
<ul>{% for warning in warnings %}<li>{{ warning }}</li>{% endfor %}</ul></div>{% endif %}
<div class="card"><strong>What the numbers say</strong>
{% if findings %}<ul>{% for finding in findings %}<li>{{ finding }}</li>{% endfor %}</ul>
<p class="soft">{{ reading }}</p>
{% else %}<p>Nothing: the table has no runs.</p>{% endif %}</div>
{% if notes %}<div class="card"><strong>Notes</strong>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul></div>{% endif %}
{% if gaps %}<details class="card missing"><summary>{{ gaps | length }}
metric{{ " has" if gaps | length == 1 else "s have" }} values missing</summary>
<ul>{% for gap in gaps %}<li>{{ gap }}</li>{% endfor %}</ul></details>{% endif %}
<p class="contents">{% for one in shown %}
<a href="#{{ one.section.stem }}">{{ one.section.heading }}</a>{% endfor %}
<a href="#confounders">{{ differences.heading }}</a></p>
{% for one in shown %}
<h2 id="{{ one.section.stem }}">{{ one.section.heading }}</h2>
<p>{{ one.section.how }}</p>
{% for figure in one.figures -%}
<div class="figure">{{ figure }}</div>{% endfor %}
{% if one.table %}<div class="table">{{ one.table }}</div>{% endif %}
{% endfor %}
<h2 id="confounders">{{ differences.heading }}</h2>
<p>{{ differences.how }}</p>
{% if confounders %}<div class="table">{{ confounders }}</div>
{% else %}<p class="card missing">Nothing was recorded about the runs: pass their parameters
as <code>runs</code>.</p>{% endif %}
{% if unmeasured %}<h2 id="unmeasured">Not measured</h2>
<ul class="soft">{% for remedy, names in unmeasured.items() %}<li>{{ names | join(", ") }}: run
<code>{{ remedy }}</code></li>{% endfor %}</ul>{% endif %}
</body>
</html>
"""
