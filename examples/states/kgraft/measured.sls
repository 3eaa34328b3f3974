# The newest live patch, and how long a HANA and the cache beside it did not answer meanwhile.
# The programs lie in ../../probes; install them where only root can write.
kernel is patched:
  kgraft.applied:
    - version: latest
    - timeout: 600
    - probes:
      - exec: [/usr/local/sbin/ask-hana, PROBE]
      - tcp: {address: 'localhost:6379', send: "PING\r\n", expect: "+PONG\r\n"}
