# The same from pillar, in two instances with names, and so with tags, of their own:
# salt/beacon/<minion>/kgraft/… wakes a reactor early, salt/beacon/<minion>/kgraft-oncall/… a human late.
beacons:
  kgraft:
    - interval: 10
    - stuck_after: 120
    - remind: 600
  kgraft-oncall:
    - beacon_module: kgraft
    - interval: 10
    - stuck_after: 7200
    - remind: 86400
