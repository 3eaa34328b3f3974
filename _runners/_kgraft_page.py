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
import markupsafe

if typing.TYPE_CHECKING:  # handed in
    from . import _kgraft_fleet as fleets

# The order of rows: what is not known first, what is good last. A sign and a word for each: colour alone says nothing.
LOOKS = (
    ("no answer", "?", "none"),
    ("failed", "?", "none"),
    ("not synced", "?", "none"),
    ("stuck", "!", "bad"),
    ("unpatched", "!", "bad"),
    ("end of support past", "!", "bad"),
    ("in transition", "~", "moving"),
    ("doubtful", "~", "moving"),
    ("unavailable", "-", "none"),
    ("without packages", "-", "none"),
    ("end of support near", "~", "moving"),
    ("excepted", "-", "none"),
    ("settled", "+", "good"),
)
ROWS_DRAWN = 60  # machines of the timeline: all of them are in the table below it
WIDTH, LEFT, HIGH = 1000, 170, 16

STYLE = """
:root{--fg:#1b1b1b;--bg:#fff;--dim:#595959;--line:#d0d0d0;--good:#0b6b2b;--bad:#a80f0f;--moving:#7a4b00;--none:#4a4a4a}
@media(prefers-color-scheme:dark){:root{--fg:#e8e8e8;--bg:#161616;--dim:#b0b0b0;--line:#444;--good:#7bd69a;--bad:#ff9c9c;
--moving:#ffc46b;--none:#c4c4c4}}
body{font:15px/1.45 system-ui,sans-serif;color:var(--fg);background:var(--bg);margin:1.5rem;max-width:80rem}
button,input,select{font:inherit;color:inherit;background:var(--bg);border:1px solid var(--dim)}
button,input,select{border-radius:4px;padding:.2rem .5rem}
button{cursor:pointer}button[aria-pressed=true]{outline:3px solid var(--fg)}:focus-visible{outline:3px solid #2a7de1}
table{border-collapse:collapse;width:100%;margin:.8rem 0}caption{text-align:left;color:var(--dim);padding:.3rem 0}
th,td{text-align:left;vertical-align:top;padding:.25rem .5rem;border-bottom:1px solid var(--line)}
thead th{position:sticky;top:0;background:var(--bg)}thead button{border:0;padding:0;font-weight:bold}
th[aria-sort=ascending] button::after{content:" \\25B2"}th[aria-sort=descending] button::after{content:" \\25BC"}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:bold}.moving{color:var(--moving)}.none{color:var(--none)}
.controls{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center;margin:.8rem 0}
svg{width:100%;height:auto;overflow:visible}
svg text{font-size:11px;fill:var(--fg)}svg line{stroke:var(--line)}
svg .good{fill:var(--good)}svg .moving{fill:var(--moving)}
svg .bad{fill:var(--bad);stroke:var(--fg);stroke-width:1.5}[hidden]{display:none}
@media print{.controls{display:none}thead{display:table-header-group}thead th{position:static}tr{break-inside:avoid}}
"""

SCRIPT = """
(function () {
  var table = document.getElementById('machines'), body = table.tBodies[0], rows = [].slice.call(body.rows);
  var search = document.getElementById('search'), age = document.getElementById('age'), chosen = {};
  var buttons = [].slice.call(document.querySelectorAll('button[data-class]'));
  function show() {
    var any = Object.keys(chosen).length, words = search.value.toLowerCase(), least = age.value, left = 0;
    rows.forEach(function (row) {
      var old = row.getAttribute('data-age');
      row.hidden = any && !chosen[row.getAttribute('data-class')] || row.textContent.toLowerCase().indexOf(words) < 0 ||
        least !== '' && old !== '' && Number(old) < Number(least);
      left += row.hidden ? 0 : 1;
    });
    document.getElementById('left').textContent = left + ' of ' + rows.length + ' machines';
  }
  function value(row, column) {
    var cell = row.cells[column];
    return cell.getAttribute('data-v') || cell.textContent;
  }
  buttons.forEach(function (button) {
    button.addEventListener('click', function () {
      var name = button.getAttribute('data-class'), on = button.getAttribute('aria-pressed') !== 'true';
      button.setAttribute('aria-pressed', on);
      if (on) { chosen[name] = true; } else { delete chosen[name]; }
      show();
    });
  });
  [].forEach.call(table.tHead.rows[0].cells, function (head, column) {
    head.firstElementChild.addEventListener('click', function () {
      var down = head.getAttribute('aria-sort') === 'ascending', order = down ? -1 : 1;
      [].forEach.call(table.tHead.rows[0].cells, function (other) { other.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      rows.sort(function (a, b) {
        var x = value(a, column), y = value(b, column);
        var difference = x !== '' && y !== '' && !isNaN(x) && !isNaN(y) ? x - y : x.localeCompare(y);
        return order * difference;
      });
      rows.forEach(function (row) { body.appendChild(row); });
    });
  });
  search.addEventListener('input', show);
  age.addEventListener('change', show);
  document.getElementById('controls').hidden = false;
  show();
})();
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src {{ style_hash }};
 script-src {{ script_hash }}; img-src data:; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width">
<title>Live patching</title>
<style>{{ style }}</style>
</head>
<body>
<main>
<h1>Live patching</h1>
<p>As of <time datetime="{{ now | iso }}">{{ now | minute }}</time>, {{ source }}. {{ verdict }}</p>
<div class="controls" id="controls" hidden>
{%- for name, sign, look, count in counts %}
<button type="button" aria-pressed="false" data-class="{{ name }}" class="{{ look }}">
{#- #}{{ sign }} {{ count }} {{ name }}</button>
{%- endfor %}
<label>Search <input id="search" type="search"></label>
<label>Last answer <select id="age"><option value="">any</option><option value="3600">older than an hour</option>
<option value="86400">older than a day</option><option value="604800">older than a week</option></select></label>
<span id="left" role="status"></span>
</div>
<table id="machines">
<caption>All machines, those without data first</caption>
<thead><tr>
{%- for head in heads %}<th scope="col"><button type="button">{{ head }}</button></th>{% endfor -%}
</tr></thead>
<tbody>
{%- for row in rows %}
<tr data-class="{{ row.name }}" data-age="{{ row.age }}"><th scope="row">{{ row.id }}</th>
{#- #}<td data-v="{{ row.rank }}" class="{{ row.look }}">{{ row.sign }} {{ row.name }}</td><td>{{ row.running }}</td>
{#- #}<td>{{ row.kernelrelease }}</td><td data-v="{{ row.since or '' }}">{{ row.since | minute }}</td><td>{{ row.why }}</td>
{#- #}<td data-v="{{ row.observed or '' }}">{{ row.observed | minute }}</td><td>{{ row.until }}</td></tr>
{%- endfor %}
</tbody>
</table>
{%- if history is not none %}
<h2>Transitions of the last {{ days }} days</h2>
{%- if drawn %}
<svg viewBox="0 0 {{ width }} {{ 20 + high * drawn | length }}" role="img" aria-labelledby="drawn-title drawn-text">
<title id="drawn-title">Transitions over time</title>
<desc id="drawn-text">A row for each machine, a bar for each transition; the table below has the same facts.</desc>
{%- for x, day in ticks %}
<line x1="{{ x }}" x2="{{ x }}" y1="14" y2="{{ 20 + high * drawn | length }}"/>
{#- #}<text x="{{ x + 2 }}" y="11">{{ day }}</text>
{%- endfor %}
{%- for machine, bars in drawn %}
<text x="0" y="{{ 30 + high * loop.index0 }}">{{ machine }}</text>{% set y = 20 + high * loop.index0 %}
{%- for bar in bars %}
<rect x="{{ bar.x }}" y="{{ y + bar.top }}" width="{{ bar.width }}" height="{{ bar.height }}" class="{{ bar.look }}">
{#- #}<title>{{ bar.text }}</title></rect>
{%- endfor %}
{%- endfor %}
</svg>
{%- if more %}<p>{{ more }} more machines are in the table.</p>{% endif %}
{%- endif %}
<table>
<caption>{{ history | length }} transitions, the newest first; a tall bar, and "stuck" here, is one that stuck</caption>
<thead><tr>
{%- for head in ("Started", "Machine", "Patch", "Direction", "Stuck", "Ended") %}<th scope="col">{{ head }}</th>{% endfor -%}
</tr></thead>
<tbody>
{%- for one in history %}
<tr><td>{{ one.started | minute }}</td><th scope="row">{{ one.machine }}</th>
{#- #}<td>{{ one.patch or 'unknown' }}</td><td>{{ one.direction or '' }}</td>
{#- #}<td class="bad">{{ 'stuck for %.0f s and more' | format(one.stuck) if one.stuck }}</td><td>{{ one | ended }}</td></tr>
{%- endfor %}
</tbody>
</table>
{%- endif %}
</main>
<script>{{ script }}</script>
</body>
</html>
"""
HEADS = ("Machine", "State", "Runs", "Kernel", "Settled since", "Why", "Last answer", "Support ends")


def html(report, source, history, days, now):
    """
    The page. ``report`` is that of the runner's function; ``history`` a list of transitions, the oldest first, or None
    where nothing is kept; ``now`` in seconds.
    """
    looks = {name: (rank, sign, look) for rank, (name, sign, look) in enumerate(LOOKS)}
    newest = {one.machine: one for one in history or ()}
    rows = []
    for machine, about in report["machines"].items():
        rank, sign, look = looks.get(about["class"], (0, "?", "none"))
        observed, last = fleets.moment(about.get("observed")), newest.get(machine)
        rows.append(
            {
                "id": fleets.line(machine, 100),
                "name": about["class"],
                "rank": rank,
                "sign": sign,
                "look": look,
                "why": "" if about["class"] == "settled" else about["why"],
                "age": "" if observed is None else int(now - observed),
                "observed": observed,
                # only where what was heard of is what runs
                "since": last.last if about["class"] == "settled" and last and last.ended == "finished" else None,
                "until": about.get("supported_until") or "",
                **{key: about.get(key) or "" for key in ("running", "kernelrelease")},
            }
        )
    rows.sort(key=lambda row: (row["rank"], row["id"]))
    counts = [(name, sign, look, report["counts"][name]) for name, sign, look in LOOKS if name in report["counts"]]
    start = now - days * 86400
    names = sorted({one.machine for one in history or ()}, key=lambda name: (-(newest[name].stuck or 0), name))
    bars = {name: [_bar(one, start, now) for one in history if one.machine == name] for name in names[:ROWS_DRAWN]}
    environment = jinja2.Environment(autoescape=True)
    environment.filters.update(
        minute=lambda when: "" if when is None else time.strftime("%Y-%m-%d %H:%M", time.gmtime(when)),
        iso=lambda when: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)),
        ended=_ended,
    )
    return environment.from_string(PAGE).render(
        style=markupsafe.Markup(STYLE),
        script=markupsafe.Markup(SCRIPT),
        style_hash=markupsafe.Markup(_hash(STYLE)),
        script_hash=markupsafe.Markup(_hash(SCRIPT)),
        heads=HEADS,
        rows=rows,
        counts=counts,
        source=source,
        verdict=report["report"][-1],
        now=now,
        days=days,
        history=None if history is None else history[::-1],
        drawn=[(fleets.line(name, 24), bars[name]) for name in bars],
        more=len(names) - len(bars),
        ticks=[(_x(when, start, now), time.strftime("%m-%d", time.gmtime(when))) for when in _midnights(start, now)],
        width=WIDTH,
        high=HIGH,
    )


def _hash(text):
    """As a policy names an inline style or script."""
    return "'sha256-{}'".format(base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii"))


def _ended(one):
    if one.ended == "finished":
        return f"after {one.seconds:.0f} s" if one.seconds else "finished, unseen"
    return {None: "may still run", "reboot": "by a reboot", "unseen": "its end was not heard of"}[one.ended]


def _x(when, start, now):
    return round(LEFT + (WIDTH - LEFT) * min(max(when - start, 0) / (now - start), 1), 1)


def _midnights(start, now):
    """At most 15 of them, UTC."""
    days = range(int(start // 86400) + 1, int(now // 86400) + 1)
    return [day * 86400 for day in days[:: len(days) // 15 + 1]]


def _bar(one, start, now):
    begin, end = _x(one.started, start, now), _x(one.last if one.ended else now, start, now)
    text = "{}, {}: {}".format(one.machine, one.patch or "unknown patch", _ended(one))
    look = "bad" if one.stuck else "good" if one.ended == "finished" else "moving"
    bar = {"x": begin, "width": round(max(end - begin, 2), 1), "look": look, "text": text}
    return dict(bar, top=0 if one.stuck else 3, height=13 if one.stuck else 7)
