{# On the canaries, after the soak: no transition runs, and the machine did not go down meanwhile. #}
{% set soak = salt['pillar.get']('soak', 0) %}
settled:
  kgraft.settled:
    - timeout: 1

{% if salt['status.uptime']()['seconds'] < soak %}
no restart:
  test.fail_without_changes:
    - name: {{ grains['id'] }} was restarted less than {{ soak }} s ago
{% endif %}
