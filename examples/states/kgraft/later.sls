# Where a long state run is in the way: install and load, and leave the end to the beacon or to kgraft.settled.
kernel is being patched:
  kgraft.applied:
    - settle: False
