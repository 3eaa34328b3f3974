{# Reactor on needs-a-human: whatever wakes people. Here a webhook, by Salt's own http runner, on the master. #}
a human is told:
  runner.http.query:
    - args:
      - url: {{ opts['kgraft_webhook'] }}
      - method: POST
      - header_dict: {Content-Type: application/json}
      - data: {{ {'text': 'live patch stuck on ' ~ data['id'] ~ ': ' ~ data['data']['summary']} | json | json }}
