{#
  Reactor on stuck and finished: the master's picture of this machine (mine.get) is what the event was about.
  Which events count, and why: docs/react-to-it.md.
#}
{% if [data.get('id')] == tag.split('/')[2:3] and data['id'].isprintable() and 'cmd' not in data %}
the picture is true:
  local.mine.update:
    - tgt: {{ [data['id']] | json }}
    - tgt_type: list
{% endif %}
