{# Reactor on started, stuck, finished: the master's picture of this machine (mine.get) is what the event was about. #}
the picture is true:
  local.mine.update:
    - tgt: {{ data['id'] }}
