{#
  Reactor on needs-a-human: whatever wakes people. Here a webhook, by Salt's own http runner, on the master.
  Which events count, and why: docs/react-to-it.md. Their text becomes one short line, with no <!channel> or @all in it.
#}
{% set said = data.get('data') %}
{% if [data.get('id')] == tag.split('/')[1:2] and said is mapping and said.get('summary') is string %}
{% set text = 'live patch stuck on ' ~ data['id'] ~ ': ' ~ said['summary'] %}
a human is told:
  runner.http.query:
    - args:
      - url: {{ opts['kgraft_webhook'] | json }}
      - method: POST
      - header_dict: {Content-Type: application/json}
      - data: {{ {'text': text[:500] | regex_replace('[^ -~]|[<>@]', '?')} | json | json }}
{% endif %}
