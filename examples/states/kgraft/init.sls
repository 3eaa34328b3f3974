# Take a machine from no repository to a patch that is loaded and settling.
# What differs from machine to machine stands in the pillar: ../pillar/kgraft.sls
{% set kgraft = salt["pillar.get"]("kgraft", {}) %}

live patches are offered:
  kgraft.activated:
    - register: {{ kgraft.get("register", False) | json }}
    # a reference, never the code itself
    - code_from: {{ kgraft.get("code_from") | json }}
    # in a mixed fleet: not on kernels without live patching
    - onlyif:
      - fun: kgraft.abi

kernel is patched:
  kgraft.applied:
    - version: {{ kgraft.get("version", "latest") | json }}
    # not waited for here, where a highstate would wait, too: the beacon or later.sls judges the end, a roll-out waits
    - settle: {{ kgraft.get("settle", False) | json }}
    - timeout: {{ kgraft.get("timeout", 300) | json }}
    - poke_after: {{ kgraft.get("poke_after") | json }}
    - protect: {{ kgraft.get("protect") | json }}
    - require:
      - kgraft: live patches are offered
    - onlyif:
      - fun: kgraft.abi
