{# Run by examples/reactor/stuck.sls on the machine that is stuck. The event counts the tries, so nothing here does. #}
{% set stuck = salt['pillar.get']('kgraft_stuck') %}
{% set policy = salt['pillar.get']('kgraft:poke', {}) %}
{% if stuck['times'] <= policy.get('tries', 0) %}
what may be poked is poked:
  module.run:
    - kgraft.poke:
      - protect: {{ policy.get('protect', []) | json }}
{% else %}
a human is told:
  event.send:
    - name: kgraft/{{ grains['id'] }}/needs-a-human
    - data:
        transition: {{ stuck['transition'] }}
        tries: {{ policy.get('tries', 0) }}
        summary: {{ salt['kgraft.summary']() | json }}
{% endif %}
