kgraft:
  # Live patches are numbered per kernel. Quote them: YAML reads 2.10 as 2.1.
  version:
    4.4.180-94.100-default: '>=2'
    4.4.180-94.97-default: '6-2.1'
  timeout: 600
