# No version to keep track of: these must be fixed on every machine, whatever brings the fix.
dirty cow is fixed:
  kgraft.applied:
    - cves: {{ salt["pillar.get"]("kgraft:cves", ["CVE-2016-5195"]) | json }}
    # your word: these kernels never had the bug
    - not_affected: {{ salt["pillar.get"]("kgraft:not_affected", []) | json }}
