# Keep the kernel's package as it is, so that only live patches come.
kernel stays:
  pkg.held:
    - name: kernel-default
