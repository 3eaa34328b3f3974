{#
  Run by examples/reactor/stuck.sls on the machine that is stuck. The event counts the tries, so nothing here does.
  But an event may be forged, and a pillar given by hand may hold anything: this machine looks at its own kernel first,
  and takes a number and a text from the event, no more.
#}
{% set times = salt['pillar.get']('kgraft_stuck:times') %}
{% set transition = salt['pillar.get']('kgraft_stuck:transition') %}
{% set tries = salt['pillar.get']('kgraft:poke:tries') %}
{% set tries = tries if tries is number and (tries | string).isdigit() else 0 %}
{% if not (times is number and (times | string).isdigit() and transition is string) %}
no event of the beacon:
  test.fail_without_changes:
    - name: kgraft_stuck in the pillar is not as examples/reactor/stuck.sls writes it
{% elif salt['kgraft.status']()['state'] != 'in_progress' %}
nothing is stuck any more:
  test.nop: []
{% elif times <= tries %}
what may be poked is poked:
  module.run:
    - kgraft.poke:
      - protect: {{ salt['pillar.get']('kgraft:poke:protect', []) | json }}
{% else %}
a human is told:
  event.send:
    - name: {{ ('kgraft/' ~ grains['id'] ~ '/needs-a-human') | json }}
    - data:
        transition: {{ transition | json }}
        tries: {{ tries | json }}
        summary: {{ salt['kgraft.summary']() | json }}
{% endif %}
