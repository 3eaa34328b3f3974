# The policy, in the pillar of the machines it is for. Without it nothing is poked, and a human is told at once.
kgraft:
  poke:
    # so many times at most, one for each stuck event; remind (examples/beacon) is the time between two
    tries: 2
    # beside those that are always spared (kgraft.poke)
    protect:
      - name:hdb*
      - unit:postgresql*
