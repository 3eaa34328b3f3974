{#
  Reactor on stuck: the machine itself decides what is done, by the policy in its pillar (examples/reactor/poke.sls).
  Names of processes stay out: whoever may start a process there chooses them.
#}
see what may be poked:
  local.state.apply:
    - tgt: {{ data['id'] }}
    - args:
      - mods: examples.reactor.poke
      # A run of kgraft.applied may be waiting for just this poke.
      - concurrent: True
      - pillar:
          kgraft_stuck:
            times: {{ data['times'] }}
            transition: {{ data['transition'] }}
