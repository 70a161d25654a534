"""The HTML and the style of the token reader. Strings, so that they come along when installed."""

# One hue from pale to strong: colour-blind-safe, and in either mode the strongest has the most
# contrast with the page. Not the blue or orange that stand for algorithms elsewhere.
STYLE = """<style>
.scalpel-tokens { --k0: transparent; --k1: #efe9f8; --k2: #d9ccef; --k3: #bda5e2; --k4: #9a78d0;
  --k5: #7548b4; --k6: #4a2286; --t: #1f2329; --strong: #ffffff; --soft: #59616b; --card: #ffffff;
  --edge: #c3c8cf; color: var(--t); font: 15px/1.5 Helvetica, Arial, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) { .scalpel-tokens { --k1: #282238; --k2: #3b3058; --k3: #544380;
  --k4: #765fae; --k5: #a08bd8; --k6: #d5c8f8; --t: #e6e8eb; --strong: #17131f; --soft: #a9b0b9;
  --card: #1e2228; --edge: #4a515b; } }
.scalpel-tokens p { margin: 4px 0 8px; }
.scalpel-tokens .soft { color: var(--soft); font-size: 13px; }
.scalpel-tokens .legend { display: flex; flex-wrap: wrap; gap: 4px 10px; align-items: center;
  font-size: 13px; margin: 6px 0 12px; color: var(--soft); }
.scalpel-tokens .legend span { padding: 1px 8px; border: 1px solid var(--edge);
  border-radius: 3px; }
.scalpel-tokens .text { position: relative; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 14px/1.85 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  border: 1px solid var(--edge); border-radius: 6px; padding: 12px 14px; }
.scalpel-tokens .t { border-radius: 2px; padding: 2px 0; cursor: help; }
.scalpel-tokens .alone { unicode-bidi: isolate; }
.scalpel-tokens .prompt { color: var(--soft); }
.scalpel-tokens .k0 { background: var(--k0); }
.scalpel-tokens .k1 { background: var(--k1); color: var(--t); }
.scalpel-tokens .k2 { background: var(--k2); color: var(--t); }
.scalpel-tokens .k3 { background: var(--k3); color: var(--t); }
.scalpel-tokens .prompt.k1, .scalpel-tokens .prompt.k2 { color: var(--soft); }
.scalpel-tokens .k4, .scalpel-tokens .k5, .scalpel-tokens .k6 { color: var(--strong); }
.scalpel-tokens .k4 { background: var(--k4); }
.scalpel-tokens .k5 { background: var(--k5); }
.scalpel-tokens .k6 { background: var(--k6); }
@media (prefers-color-scheme: light) { .scalpel-tokens .k4 { color: #17131f; } }
@media (prefers-color-scheme: dark) { .scalpel-tokens .k4 { color: #ffffff; } }
.scalpel-tokens .t:hover, .scalpel-tokens .t:focus { outline: 2px solid var(--t); }
/* Left in the text and just under the token's own line: never off the page. */
.scalpel-tokens .tip { display: none; position: absolute; left: 14px; z-index: 5;
  margin-top: 5px; width: min(430px, calc(100% - 28px)); box-sizing: border-box;
  background: var(--card); color: var(--t); border: 1px solid var(--edge); border-radius: 6px;
  box-shadow: 0 4px 16px rgba(0, 0, 0, 0.3); padding: 8px 12px; pointer-events: none;
  font: 13px/1.45 Helvetica, Arial, "DejaVu Sans", sans-serif; white-space: normal; }
.scalpel-tokens .t:hover > .tip, .scalpel-tokens .t:focus > .tip { display: block; }
.scalpel-tokens .t:focus:not(:hover) > .tip { z-index: 4; }
.scalpel-tokens .fact { display: flex; justify-content: space-between; gap: 12px; }
.scalpel-tokens .fact i { font-style: normal; color: var(--soft); }
.scalpel-tokens .tops { display: grid; margin-top: 6px; border-top: 1px solid var(--edge);
  padding-top: 5px; grid-template-columns: minmax(0, 1fr) auto minmax(0, 1fr) auto; gap: 0 10px; }
.scalpel-tokens .tops b { grid-column: span 2; color: var(--soft); font-weight: normal; }
.scalpel-tokens .tops bdi { overflow: hidden; text-overflow: ellipsis; white-space: pre;
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.scalpel-tokens .gap { color: var(--soft); }
.scalpel-tokens table { border-collapse: collapse; width: 100%; font-size: 14px; }
.scalpel-tokens th, .scalpel-tokens td { text-align: left; vertical-align: top; padding: 4px 12px
  4px 0; border-bottom: 1px solid var(--edge); }
.scalpel-tokens th { font-weight: normal; color: var(--soft); white-space: nowrap; }
.scalpel-tokens .n { text-align: right; white-space: nowrap; }
.scalpel-tokens td.words { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 16ch;
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.scalpel-tokens .wide { overflow-x: auto; }
</style>"""

_HEAD = """<p class="soft">
{%- if head.step is defined and head.step == head.step and head.step is not none -%}
Step {{ head.step }}{% if head.model_id %} ({{ head.model_id }}){% endif %}.
{%- endif %} Each token is coloured by KL(base \u2016 checkpoint) where it was predicted, over the
whole vocabulary.{% if others %} ({{ others }}){% endif %}</p>
<div class="legend">nats per token:{% for level, words in limits %}
<span class="k{{ level }}">{{ words }}</span>{% endfor %}</div>"""

READER = (
    """<div class="scalpel-tokens">
{% if pieces %}
<p><strong>Problem {{ problem }} of {{ probe }}</strong></p>"""
    + _HEAD
    + """
<p class="soft">Paler text is the prompt. Hover over a token, or go through them with the Tab key,
for both models' most likely tokens; \u00b7 is a space.</p>
<div class="text" dir="auto">
{%- for piece in pieces -%}
{%- if piece.gap is defined -%}
<span class="gap">{{ "\\n" if not loop.first }}\u2026 <bdi>{{ piece.gap }}</bdi></span>
{%- else -%}
<span class="t k{{ piece.level }}{{ "" if piece.answer else " prompt" }}
{{- " alone" if piece.alone }}" tabindex="0">
{{- piece.text -}}
<span class="tip" role="tooltip">
{%- for name, value in piece.facts -%}
<span class="fact"><i>{{ name }}</i><span>{{ value }}</span></span>
{%- endfor -%}
{%- if piece.tops -%}
<span class="tops"><b>base</b><b>checkpoint</b>
{%- for base, checkpoint in piece.tops -%}
<bdi>{{ base[0] }}</bdi><span>{{ base[1] }}</span>
{#- -#}
<bdi>{{ checkpoint[0] }}</bdi><span>{{ checkpoint[1] }}</span>
{%- endfor -%}</span>{%- endif -%}
</span></span>
{%- endif -%}
{%- endfor -%}
</div>
{% elif empty %}
<p>No tokens are stored. To measure: {{ command }}</p>
{% else %}
<p>The table has no tokens of problem {{ problem }}; it has some of: {{ found }}.
{% if others %}({{ others }}){% endif %}</p>
{% endif %}
</div>"""
)

RANKING = (
    """<div class="scalpel-tokens">
<p><strong>Tokens of the largest KL</strong></p>
{% if pieces %}"""
    + _HEAD
    + """
<div class="wide"><table>
<thead><tr><th class="n">KL, nats</th><th class="n">problem</th><th>text, and the token</th>
<th>base would say (p)</th>
<th>checkpoint would say (p)</th></tr></thead>
<tbody>{% for piece in pieces %}
<tr><td class="n">{{ piece.facts[0][1] | replace(" nats", "") }}</td>
<td class="n">{{ piece.problem }}</td>
<td class="words" dir="auto"><bdi>{{ piece.context }}</bdi><bdi class="k{{ piece.level }}">
{{- piece.text }}</bdi></td>
{%- if piece.tops %}<td class="words"><bdi>{{ piece.tops[0][0][0] }}</bdi> {{ piece.tops[0][0][1] }}
</td><td class="words"><bdi>{{ piece.tops[0][1][0] }}</bdi> {{ piece.tops[0][1][1] }}</td>
{%- else %}<td></td><td></td>{% endif %}</tr>
{%- endfor %}</tbody></table></div>
{% else %}
<p>No ranked tokens are stored. To measure: {{ command }}</p>
{% endif %}
</div>"""
)
