# The judge of init.sls, which does not wait: fails while a transition runs, and names who blocks. For Salt's schedule.
no transition runs:
  kgraft.settled:
    - timeout: 1
