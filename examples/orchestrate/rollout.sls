{#
  Carries out a plan that salt-run kgraft.plan has written, wave after wave, and goes on where an earlier run ended:

    salt-run state.orchestrate examples.orchestrate.rollout pillar='{"rollout": "2026-12"}'

  No batch: in a batch Salt loses machines (docs/roll-out.md). Each wave is a list of names, so who is down is a failure.

  With kgraft_gate in the master's configuration, a URL, a wave begins only if it answers [], as an alert manager does
  that has no alert: https://alerts.example.com/api/v2/alerts?active=true&silenced=false
#}
{% set told = salt['saltutil.runner']('kgraft.wave', arg=[pillar.get('rollout'), 0]) %}
{% set gate = opts.get('kgraft_gate') %}
{% if told is not mapping or told['plan'] is not mapping %}
the plan can be carried out:
  test.fail_without_changes:
    - name: {{ (told['report'] if told is mapping else told) | string | json }}
{% else %}
{% set plan = told['plan'] %}
{% for wave in told['waves'] %}
{% set number = wave['number'] %}
{% set before = [{'module': 'wave ' ~ loop.previtem['number'] ~ ' had time to show trouble'}] if not loop.first else [] %}
{% if gate %}
{{ ('no alert before wave ' ~ number) | json }}:
  http.query:
    - name: {{ gate | json }}
    - status: 200
    - match: '^\[\]\s*$'
    - match_type: pcre
    - require: {{ before | json }}
{% set before = [{'http': 'no alert before wave ' ~ number}] %}
{% endif %}

# the waves before it are patched, settled, and in the same boot as when they began; there is time
{{ ('wave ' ~ number ~ ' may begin') | json }}:
  salt.runner:
    - name: kgraft.wave
    - arg: {{ [plan['name'], number] | json }}
    - require: {{ before | json }}

{{ ('wave ' ~ number ~ ' is patched') | json }}:
  salt.state:
    - tgt: {{ wave['machines'] | json }}
    - tgt_type: list
    - sls: {{ plan['sls'] | json }}
    # above the timeout of the states, or Salt asks over and over whether they still run
    - timeout: {{ plan['wave_timeout'] | json }}
    # a state run that is under way, such as a reactor's, is waited for
    - queue: 10
    # here, and not in a highstate, the end of the transition is waited for
    - pillar: {kgraft: {settle: True}}
    # so many may be left, in whatever way; the next step tells the ways apart
    - allow_fail: {{ wave['allowed'] | json }}
    - require:
      - salt: {{ ('wave ' ~ number ~ ' may begin') | json }}

{{ ('wave ' ~ number ~ ' is as wished') | json }}:
  salt.runner:
    - name: kgraft.rollout
    - arg: {{ [plan['name'], number] | json }}
    - require:
      - salt: {{ ('wave ' ~ number ~ ' is patched') | json }}

{{ ('wave ' ~ number ~ ' had time to show trouble') | json }}:
  module.run:
    - test.sleep:
      - length: {{ plan['soak'] | json }}
    - require:
      - salt: {{ ('wave ' ~ number ~ ' is as wished') | json }}
{% endfor %}

# Also where a wave has ended it: who is done, failed, stuck, missing, untouched
all machines of the plan are patched:
  salt.runner:
    - name: kgraft.rollout
    - arg: {{ [plan['name']] | json }}
{% endif %}
