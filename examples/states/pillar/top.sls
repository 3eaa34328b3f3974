base:
  '*':
    - kgraft
