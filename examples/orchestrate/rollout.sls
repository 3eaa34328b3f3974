{#
  A live patch for a fleet: canaries, a time to show trouble, then the rest in batches. It stops at the first machine
  that does not get through, with its name and what blocks there.

    salt-run state.orchestrate examples.orchestrate.rollout pillar='{"rollout": {"canaries": "G@role:canary"}}'
#}
{% set rollout = {
    'canaries': 'G@role:canary',
    'rest': '*',
    'sls': 'examples.states.kgraft',
    'soak': 3600,
    'batch': '10%',
} %}
{% set given = pillar.get('rollout', {}) %}
{% do rollout.update(given if given is mapping else {}) %}
{% set soak = rollout['soak'] %}
{% if not (given is mapping and rollout['canaries'] is string and rollout['rest'] is string
           and soak is number and (soak | string).isdigit()) %}
these options are refused:
  test.fail_without_changes:
    - name: rollout must be a mapping, canaries and rest targets, soak whole seconds
{% else %}
the canaries are patched:
  salt.state:
    - tgt: {{ rollout['canaries'] | json }}
    - tgt_type: compound
    - sls: {{ rollout['sls'] | json }}

they have had time to show trouble:
  salt.runner:
    - name: test.sleep
    - s_time: {{ soak | json }}
    - require:
      - salt: the canaries are patched

they are quiet:
  salt.state:
    - tgt: {{ rollout['canaries'] | json }}
    - tgt_type: compound
    - sls: examples.orchestrate.quiet
    - pillar:
        soak: {{ soak | json }}
    - require:
      - salt: they have had time to show trouble

the rest is patched:
  salt.state:
    - tgt: {{ ('( ' ~ rollout['rest'] ~ ' ) and not ( ' ~ rollout['canaries'] ~ ' )') | json }}
    - tgt_type: compound
    - sls: {{ rollout['sls'] | json }}
    - batch: {{ rollout['batch'] | json }}
    # no further batch after a machine that fails
    - failhard: True
    - require:
      - salt: they are quiet
{% endif %}
