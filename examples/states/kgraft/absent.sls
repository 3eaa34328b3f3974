{#
  Take away what kgraft has left on a machine: beacons, scheduled jobs, what the mine holds, files. The live patches stay
  as they are. What is left on the master, and the modules: docs/taking-it-away.md.
#}
{% set beacons = salt['beacons.list'](return_yaml=False) or {} %}
{% set jobs = salt['schedule.list'](return_yaml=False, show_all=True) or {} %}
{% set directories = ['/var/lib/prometheus/node-exporter'] %}

{% for name, options in beacons.items() if name == 'kgraft' or {'beacon_module': 'kgraft'} in (options or []) %}
{{ ('beacon ' ~ name) | json }}:
  beacon.absent:
    - name: {{ name | json }}
    - save: True
{% endfor %}

{% for name, job in jobs.items() if job is mapping and (job.get('function') or '').startswith('kgraft') %}
{% do directories.append((job.get('kwargs') or {}).get('directory') or directories[0]) %}
{{ ('schedule ' ~ name) | json }}:
  schedule.absent:
    - name: {{ name | json }}
{% endfor %}

{% for function in ['kgraft.status', 'kgraft.summary', 'kgraft.overview'] if salt['mine.get'](grains['id'], function) %}
{{ ('mine ' ~ function) | json }}:
  module.run:
    - mine.delete:
      - fun: {{ function | json }}
{% endfor %}

# the configuration as examples/beacon/minion.conf names it; memories, reports, what was set aside; metrics
{% set conf = salt['file.join'](salt['file.dirname'](opts['conf_file']), 'minion.d', 'kgraft.conf') %}
{% set files = salt['file.find'](opts['cachedir'], name='kgraft_*', type='f', maxdepth=1) %}
{% for directory in directories | unique %}{% do files.append(salt['file.join'](directory, 'kgraft.prom')) %}{% endfor %}
{% for path in [conf] + files %}
{{ path | json }}:
  file.absent: []
{% endfor %}
