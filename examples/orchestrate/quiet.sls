{# On the canaries, after the soak: no transition runs, and the machine did not go down meanwhile. #}
{% set soak = salt['pillar.get']('soak', 0) %}
{% set whole = soak is number and (soak | string).isdigit() %}
settled:
  kgraft.settled:
    - timeout: 1

{% if not whole or salt['status.uptime']()['seconds'] < soak %}
{% set restarted = grains['id'] ~ ' was restarted less than ' ~ soak ~ ' s ago' %}
no restart:
  test.fail_without_changes:
    - name: {{ (restarted if whole else 'soak must be whole seconds') | json }}
{% endif %}
