"""
The fleet as one HTML file that needs nothing else: no server, no network, and no JavaScript to be whole.

What machines say is text and nothing else: Jinja escapes every value, and a policy (CSP) lets run only the one style
and the one script that are named by their hashes. So there is no ``style`` attribute, and no value in style or script.
"""

import base64
import hashlib
import time
import typing

import jinja2

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_fleet as fleets
    from . import _kgraft_history as histories

# The order of rows: what is not known first, what is good last. A shape and a word for each: colour alone says nothing.
LOOKS = {
    "no answer": "none", "failed": "none", "not synced": "none", "stuck": "bad", "unpatched": "bad",
    "end of support past": "bad", "in transition": "moving", "doubtful": "moving", "unavailable": "none",
    "without packages": "none", "end of support near": "moving", "excepted": "none", "settled": "good",
}  # fmt: skip
HEADS = ("Machine", "State", "Why", "Since", "Runs", "Kernel", "Last answer", "Support ends")
DRAWN, MOST = 24, 1000  # machines of the timeline; transitions of the table at the end, whoever floods the history
WIDTH, WORDS, LEFT, HIGH, TOP = 1000, 150, 330, 20, 22  # of the timeline, and where its words and its bars begin
MOVING = {"apply": "applying", "revert": "reverting", None: "in transition"}
STEPS = (60, 300, 900, 3600, 6 * 3600, 86400, 7 * 86400, 28 * 86400)  # between two ticks

STYLE = r"""
:root{color-scheme:light dark;--fg:#1c2024;--bg:#fff;--soft:#f3f5f7;--dim:#565d66;--line:#d5dae0;--good:#146c3a;
--bad:#b3141b;--moving:#875200;--none:#4d5661}
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ed;--bg:#14171a;--soft:#1e2328;--dim:#a5aeb8;--line:#39414a;
--good:#6fd296;--bad:#ff8f8f;--moving:#f3b95f;--none:#b9c2cc}}
*{box-sizing:border-box}
body{font:15px/1.45 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:var(--fg);background:var(--bg);margin:0}
main{max-width:84rem;margin:0 auto;padding:1.2rem 1.5rem 3rem}
h1{font-size:1.05rem;margin:0;color:var(--dim)}h2{font-size:1.15rem;margin:1.8rem 0 .3rem}
.verdict{font-size:1.6rem;line-height:1.25;font-weight:650;margin:.1rem 0 .2rem}
p{margin:.2rem 0}.dim,caption,h2 small{color:var(--dim);font-size:.92rem;font-weight:400}
.good{color:var(--good)}.bad{color:var(--bad)}.moving{color:var(--moving)}.none{color:var(--none)}
.good::before{content:"\25CF\A0";content:"\25CF\A0" / ""}
.bad::before{content:"\25B2\A0";content:"\25B2\A0" / ""}
.was{color:var(--bad)}.was::before{content:"\25B3\A0";content:"\25B3\A0" / ""}
.moving::before{content:"\25C6\A0";content:"\25C6\A0" / ""}
.none::before{content:"\25CB\A0";content:"\25CB\A0" / ""}
td.bad{font-weight:650}
button,input,select{font:inherit;color:inherit;background:var(--bg);border:1px solid var(--dim);border-radius:6px}
input,select{padding:.25rem .5rem;color:var(--fg)}button:enabled{cursor:pointer}
:focus-visible{outline:3px solid #2f81e0;outline-offset:2px}
.counts{display:flex;flex-wrap:wrap;gap:.6rem;list-style:none;margin:1rem 0 0;padding:0}
.counts button{text-align:left;background:var(--soft);border-color:var(--line);border-left:5px solid}
.counts button{padding:.35rem .9rem}
.counts b{font-size:1.45rem;line-height:1.2}.counts .good{color:var(--good)}.counts .bad{color:var(--bad)}
.counts .moving{color:var(--moving)}.counts .none{color:var(--none)}
.counts span{display:block;color:var(--fg)}.counts button[aria-pressed=true]{outline:3px solid var(--fg)}
.counts button[aria-pressed=true] span{text-decoration:underline}
.controls{display:flex;flex-wrap:wrap;gap:.5rem 1.2rem;align-items:center;margin:.5rem 0}
table{border-collapse:collapse;width:100%}caption{text-align:left;padding:.2rem 0 .4rem}
th,td{text-align:left;vertical-align:top;padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--line)}
tbody th{font-weight:600;overflow-wrap:anywhere;min-width:5rem}td{white-space:nowrap}
td.why{white-space:normal;min-width:14rem}#machines td:nth-child(6){white-space:normal;min-width:11rem}
#machines td:nth-child(5){white-space:normal;min-width:8rem}
thead th{position:sticky;top:0;background:var(--bg);white-space:nowrap}
thead button{border:0;padding:0;font-weight:650}thead button:disabled{color:var(--fg)}
th[aria-sort=ascending] button::after{content:" \25B4"}th[aria-sort=descending] button::after{content:" \25BE"}
svg{display:block;width:100%;height:auto;min-width:44rem}svg text{font-size:12px;fill:var(--fg)}
svg .tick{stroke:var(--line)}svg .day,svg .words.good{fill:var(--dim)}svg .row{fill:var(--soft)}
svg .good{fill:var(--good)}svg .moving{fill:var(--moving)}svg .bad{fill:var(--bad)}svg .none{fill:var(--none)}
svg rect.moving{fill:var(--bg);stroke:var(--moving);stroke-width:2;stroke-dasharray:4 2}
svg rect.was{fill:var(--bg);stroke:var(--bad);stroke-width:2}svg .words.was{fill:var(--bad)}
svg .words.bad{font-weight:650}
[hidden]{display:none}
@media(max-width:76rem){.wide{overflow-x:auto}thead th{position:static}}
@media print{:root{--fg:#000;--bg:#fff;--soft:#fff;--dim:#333;--line:#999;
--good:#000;--bad:#000;--moving:#000;--none:#000}
.controls{display:none}a{color:inherit}thead{display:table-header-group}thead th{position:static}tr{break-inside:avoid}
body{font-size:12px}main{padding:0;max-width:none}.wide{overflow:visible}svg{min-width:0}td{white-space:normal}}
"""

SCRIPT = """
(function () {
  var table = document.getElementById('machines'), body = table.tBodies[0], rows = [].slice.call(body.rows);
  var heads = [].slice.call(table.tHead.rows[0].cells), left = document.getElementById('left'), chosen = {};
  var search = document.getElementById('search'), age = document.getElementById('age');
  var then = document.querySelector('time'), late = (Date.now() - Date.parse(then.dateTime)) / 3600000;
  function show() {
    var any = Object.keys(chosen).length, words = search.value.toLowerCase(), least = age.value, count = 0;
    rows.forEach(function (row) {
      var old = row.getAttribute('data-age');
      row.hidden = any && !chosen[row.getAttribute('data-class')] || row.textContent.toLowerCase().indexOf(words) < 0 ||
        least !== '' && old !== null && Number(old) < Number(least);
      count += row.hidden ? 0 : 1;
    });
    left.textContent = count + ' of ' + rows.length + ' machines';
  }
  function value(row, column) {
    var cell = row.cells[column];
    return cell.getAttribute('data-v') || cell.textContent;
  }
  [].forEach.call(document.querySelectorAll('button[data-class]'), function (button) {
    button.addEventListener('click', function () {
      var name = button.getAttribute('data-class'), on = button.getAttribute('aria-pressed') !== 'true';
      button.setAttribute('aria-pressed', on);
      if (on) { chosen[name] = true; } else { delete chosen[name]; }
      show();
    });
  });
  heads.forEach(function (head, column) {
    head.firstElementChild.addEventListener('click', function () {
      var order = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
      heads.forEach(function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', order < 0 ? 'descending' : 'ascending');
      rows.sort(function (a, b) {
        var x = value(a, column), y = value(b, column);
        return order * (x !== '' && y !== '' && !isNaN(x) && !isNaN(y) ? x - y : x.localeCompare(y));
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
  search.addEventListener('input', show);
  age.addEventListener('change', show);
  if (late >= 2) { document.getElementById('late').textContent = ', ' + Math.floor(late) + ' hours ago'; }
  [].forEach.call(document.querySelectorAll('button'), function (button) { button.disabled = false; });
  document.getElementById('controls').hidden = false;
  show();
})();
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src {{ style | hash }};
 script-src {{ script | hash }}; img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width">
<title>Live patching</title>
<style>{{ style | safe }}</style>
</head>
<body>
<main>
<h1>Live patching</h1>
<p class="verdict {{ 'bad' if report.retcode else 'good' }}">{{ report.report[-1] }}</p>
<p class="dim">{{ rows | length }} machine{{ 's' if rows | length != 1 }}, {{ source }},
{#- #} as of <time datetime="{{ now | iso }}">{{ now | minute }} UTC
{#- #}</time><b id="late"></b></p>
<ul class="counts">
{%- for name, look, count in counts %}
<li><button type="button" disabled aria-pressed="false" data-class="{{ name }}" class="{{ look }}">
{#- #}<b>{{ count }}</b> <span>{{ name }}</span></button></li>
{%- endfor %}
</ul>
<h2>Transitions <small>{% if history is none %}{{ unkept }}{% else %}of the last {{ days }} day{{ 's' if days != 1 }}:
 {{ heard or 'none was heard of' }}
{%- if history %}, in <a href="#transitions">a table below</a>{% endif %}{% endif %}</small></h2>
{%- if drawn %}
<div class="wide" tabindex="0" role="region" aria-label="Timeline">
<svg viewBox="0 0 {{ width }} {{ top + high * drawn | length }}" role="img" aria-labelledby="drawn-title drawn-text">
<title id="drawn-title">Transitions over time</title>
<desc id="drawn-text">A row for each machine, a bar for each transition; the table below has the same facts.</desc>
{%- for machine, bars, text, look in drawn %}{% set y = top + high * loop.index0 %}
{%- if loop.index is odd %}<rect class="row" x="0" y="{{ y }}" width="{{ width }}" height="{{ high }}"/>{% endif %}
<text x="4" y="{{ y + 14 }}">{{ machine }}</text>
<text x="{{ words }}" y="{{ y + 14 }}" class="words {{ look }}">{{ text }}</text>
{%- endfor %}
{%- for x, day in ticks %}
<line class="tick" x1="{{ x }}" x2="{{ x }}" y1="16" y2="{{ top + high * drawn | length }}"/>
{#- #}<text class="day" x="{{ x + 3 }}" y="12">{{ day }}</text>
{%- endfor %}
{%- for machine, bars, text, look in drawn %}{% set y = top + high * loop.index0 %}
{%- for bar in bars %}
<rect x="{{ bar.x }}" y="{{ y + bar.top }}" width="{{ bar.width }}" height="{{ high - 2 * bar.top }}" rx="2"
{#- #} class="{{ bar.look }}"><title>{{ bar.text }}</title></rect>
{%- endfor %}
{%- endfor %}
</svg>
</div>
<p class="dim">Tall: stuck, and hollow where that is over. Thin: finished. Dashed: may still run.
{%- if more %} {{ more }} more machines are in the table.{% endif %} Times are UTC.</p>
{%- endif %}
<h2>Machines</h2>
<div class="controls" id="controls" hidden>
<label>Search <input id="search" type="search"></label>
<label>Last answer <select id="age"><option value="">any</option><option value="3600">older than an hour</option>
<option value="86400">older than a day</option><option value="604800">older than a week</option></select></label>
<span id="left" role="status"></span>
</div>
<div class="wide" tabindex="0" role="region" aria-label="Machines">
<table id="machines">
<caption>All machines, those without data first</caption>
<thead><tr>
{%- for head in heads %}<th scope="col"><button type="button" disabled>{{ head }}</button></th>{% endfor -%}
</tr></thead>
<tbody>
{%- for row in rows %}
<tr data-class="{{ row.name }}"{% if row.observed %} data-age="{{ (now - row.observed) | int }}"{% endif %}>
{#- #}<th scope="row">{{ row.id }}</th><td data-v="{{ row.rank }}" class="{{ row.look }}">{{ row.name }}</td>
{#- #}<td class="why">{% for why in row.why %}{{ '' if loop.first else ' · ' }}{{ why }}{% endfor %}</td>
{#- #}<td data-v="{{ row.since or '' }}">{{ row.since | minute }}</td><td>{{ row.running or '' }}</td>
{#- #}<td>{{ row.kernelrelease or '' }}</td><td data-v="{{ row.observed or '' }}">{{ row.observed | minute }}</td>
{#- #}<td>{{ row.supported_until or '' }}</td></tr>
{%- endfor %}
</tbody>
</table>
</div>
{%- if history %}
<h2 id="transitions">All transitions</h2>
<div class="wide" tabindex="0" role="region" aria-label="All transitions">
<table>
<caption>The newest first{% if heard > history | length %}; the {{ history | length }} most urgent of {{ heard }}
{%- endif %}</caption>
<thead><tr>
{%- for head in ("Started", "Machine", "Patch", "Direction", "How it went", "What blocked") %}<th scope="col">
{#- #}{{ head }}</th>{% endfor -%}
</tr></thead>
<tbody>
{%- for one in history | reverse %}
<tr><td>{{ one.started | minute }}</td><th scope="row">{{ one.machine }}</th>
{#- #}<td>{{ one.patch or 'unknown' }}</td><td>{{ one.direction or '' }}</td><td class="{{ one | look }}">
{#- #}{{ one | told }}</td><td class="why">{{ one.why or '' }}</td></tr>
{%- endfor %}
</tbody>
</table>
</div>
{%- endif %}
</main>
<script>{{ script | safe }}</script>
</body>
</html>
"""


def moving(told, names):
    """What a transition does, since when, and what blocks, by an answer to ``kgraft.overview`` that may be anything."""
    try:
        tasks = (told["blocking"] or {"tasks": []})["tasks"]
        patch = f"{told['running'] or '?'}, {MOVING[told['direction']]}"  # the newest that is active may not be in
        return {"since": told["since"], "held": histories.held(tasks, names), "running": fleets.line(patch, 60)}
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError):
        return {}


def html(report, source, history, days, now, unkept=""):
    """
    The page. ``report`` is that of the runner's function, where a machine may have ``since`` and ``held``, too;
    ``history`` a list of transitions, the oldest first, or None where nothing is kept, and ``unkept`` says why;
    ``now`` in seconds.
    """
    heard = history and len(history)
    history = history and sorted(sorted(history, key=_urgency)[:MOST], key=lambda one: one.started)
    newest = {one.machine: one for one in history or ()}
    ranks, rows = list(LOOKS), []
    for machine, about in report["machines"].items():
        name, last, since = about["class"], newest.get(machine), fleets.moment(about.get("since"))
        if last and last.ended == "finished" and last.boot_id == about.get("boot_id") and since is None:
            since = last.last
        why = about.get("held") or ([] if name == "settled" else [about["why"]])
        row = {"id": fleets.line(machine, 100), "name": name, "rank": ranks.index(name), "look": LOOKS[name]}
        rows.append(dict(about, **row, since=since, why=why, observed=fleets.moment(about.get("observed"))))
    rows.sort(key=lambda row: (row["rank"], row["id"]))
    start = max(now - days * 86400, min([one.started for one in history or ()], default=0))
    start = min(start - (now - start) / 50, now - 60)
    names = sorted(newest, key=lambda name: (_urgency(newest[name]), name))
    bars = {name: [] for name in names[:DRAWN]}
    for one in history or ():
        if one.machine in bars:
            bars[one.machine].append(_bar(one, start, now))
    environment = jinja2.Environment(autoescape=True)
    environment.filters.update(
        minute=lambda when: "" if when is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(when)),
        iso=lambda when: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)),
        hash=_hash,
        told=histories.told,
        look=_look,
    )
    return environment.from_string(PAGE).render(
        style=STYLE,
        script=SCRIPT,
        heads=HEADS,
        rows=rows,
        counts=[(name, LOOKS[name], report["counts"][name]) for name in LOOKS if name in report["counts"]],
        source=source,
        report=report,
        now=now,
        days=days,
        history=history,
        heard=heard,
        unkept=unkept,
        drawn=[(fleets.line(name, 22), bars[name], _short(newest[name], now), _look(newest[name])) for name in bars],
        more=len(names) - len(bars),
        ticks=_ticks(start, now),
        width=WIDTH,
        words=WORDS,
        high=HIGH,
        top=TOP,
    )


def _hash(text):
    """As a policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def _urgency(one):
    """What may still run comes first, stuck before others, for the longest time first; then what stuck, the newest."""
    return one.ended is not None, not one.stuck, one.started if one.ended is None else -one.started


def _look(one):
    if one.stuck:
        return "was" if one.ended else "bad"
    return {None: "moving", "finished": "good"}.get(one.ended, "none")


def _short(one, now):
    """The newest transition of a machine, beside its bars."""
    if one.stuck and one.ended is None:
        return f"▲ stuck, {histories.span(now - one.started)} so far"
    words = f"took {histories.span(one.seconds)}" if one.seconds else histories.HOW.get(one.ended, "finished")
    return f"△ was stuck, {words}" if one.stuck else words


def _x(when, start, now):
    return round(LEFT + (WIDTH - LEFT) * min(max(when - start, 0) / (now - start), 1), 1)


def _ticks(start, now):
    """At most 12 of them, UTC."""
    step = next((step for step in STEPS if (now - start) / step <= 12), STEPS[-1])
    times = range(int(start // step + 1) * step, int(now), step)
    forms = ("%H:%M", "%m-%d")
    return [(_x(when, start, now), time.strftime(forms[when % 86400 == 0], time.gmtime(when))) for when in times]


def _bar(one, start, now):
    begin, end = _x(one.started, start, now), _x(one.last if one.ended else now, start, now)
    text = f"{one.machine}, {one.patch or 'unknown patch'}: {histories.told(one)}"
    width = max(round(end - begin, 1), 4)
    place = {"x": min(begin, WIDTH - width), "width": width, "top": 3 if one.stuck else 6}
    return dict(place, look=_look(one), text=text)
