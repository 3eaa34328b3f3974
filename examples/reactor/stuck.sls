{#
  Reactor on stuck: the machine itself decides what is done, by the policy in its pillar (examples/reactor/poke.sls).
  Names of processes stay out: whoever may start a process there chooses them.
  Which events count, and why: docs/react-to-it.md.
#}
{% set times, transition = data.get('times'), data.get('transition') %}
{% if [data.get('id')] == tag.split('/')[2:3] and data['id'].isprintable() and 'cmd' not in data
      and times is number and (times | string).isdigit()
      and transition is string and transition.isprintable() %}
see what may be poked:
  local.state.apply:
    - tgt: {{ [data['id']] | json }}
    - tgt_type: list
    - args:
      - mods: examples.reactor.poke
      # A run of kgraft.applied may be waiting for just this poke.
      - concurrent: True
      - pillar:
          kgraft_stuck:
            times: {{ times | json }}
            transition: {{ transition | json }}
{% endif %}
