"""
The agent in the guest: answers one JSON line for each JSON line on the second serial port.

A warm Salt lives in this process, since starting one takes 10 to 15 seconds in an emulated machine and a call into a
warm one takes some hundredths. It is Salt's own ``Caller`` with Salt's own loader, on a tree that is unpacked later.
"""

import base64
import io
import json
import os
import subprocess
import sys
import tarfile
import time
import traceback
import tty

TREE = "/srv/m"  # the checkout's _modules, _states and _beacons, as they were when the guest was woken
EVENTS = "/run/events"

OPTS = {
    "file_client": "local",
    "root_dir": "/tmp/salt",
    "id": "guest",
    "module_dirs": [TREE],
    "master_type": "disable",
    "enable_fqdns_grains": False,
    "enable_gpu_grains": False,
    "log_level": "warning",
}


class Agent:
    def __init__(self):
        self.caller = self.states = self.loop = None

    def shell(self, command, limit):
        done = subprocess.run(
            ["sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit,
        )
        return {"code": done.returncode, "output": base64.b64encode(done.stdout).decode()}

    def write(self, path, data, mode=0o644):
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
        os.chmod(path, mode)

    def python(self, code):
        """Run Python in this process: a program of its own would need a second to start."""
        scope = {"agent": self}
        exec(compile(code, "<test>", "exec"), scope)  # pylint: disable=exec-used
        return scope.get("answer")

    def warm(self):
        """Make Salt ready, and let it import what a state run and the beacons need."""
        import salt.beacons
        import salt.client
        import salt.config
        import salt.state

        for folder in ("_modules", "_states", "_beacons"):  # the loader looks for its folders when it is made
            os.makedirs(os.path.join(TREE, folder))
        opts = salt.config.minion_config(None)
        opts.update(salt.config.apply_minion_config(dict(OPTS)))
        self.caller = salt.client.Caller(mopts=opts)
        self.caller.cmd("test.ping")
        self.caller.cmd("cmd.run", "true")
        self.caller.cmd("kmod.is_loaded", "none")
        self.states = salt.state.State(self.caller.opts)
        self.state("test.nop", {})
        self.loop = salt.beacons.Beacon(self.caller.opts, self.caller.sminion.functions)
        self.loop.process({}, self.caller.opts["grains"])
        return sys.version

    def unpack(self):
        """Take the code that is to be tested from the second disk, and forget what the loader knew of its folders."""
        with open("/dev/vdb", "rb") as disk:
            content = io.BytesIO(disk.read())
        with tarfile.open(fileobj=content) as tar:
            tar.extractall(TREE)
        states, beacons = self.states.states, self.loop.beacons
        for loader in (self.caller.sminion.functions, self.states.functions, states, beacons):
            loader.clear()
        for loader in (states, beacons):  # what they hold is a copy
            loader.pack["__salt__"].clear()
        return sorted(os.listdir(TREE))

    def call(self, name, args=(), kwargs=None):
        import salt.exceptions

        try:
            return {"return": self.caller.cmd(name, *args, **(kwargs or {}))}
        except salt.exceptions.SaltException as err:
            return {"raised": type(err).__name__, "message": str(err), "info": getattr(err, "info", None)}

    def state(self, name, arguments):
        """Run one state by Salt's own compiler; state.single would make every loader anew, which takes seconds here."""
        module, _, function = name.partition(".")
        low = {
            "state": module,
            "fun": function,
            "name": "the kernel",
            "__id__": "the kernel",
            "__sls__": "test",
            "order": 1,
        }
        low.update(arguments, __env__="base")
        errors = self.states.verify_data(low)
        return {"result": False, "comment": errors} if errors else self.states.call(low)

    def beacons(self, config, interval=1.0):
        """
        Run Salt's beacon loop in a child until it is killed, as a minion does: process all beacons once a second.

        Each event becomes a line of EVENTS, with the time (monotonic, as the kernel's log has it) when it was sent.
        """
        child = os.fork()
        if child:
            return child
        try:
            with open(EVENTS, "a", buffering=1) as file:
                while True:
                    began = time.monotonic()
                    for event in self.loop.process(json.loads(json.dumps(config)), self.caller.opts["grains"]):
                        file.write(json.dumps({"at": time.monotonic(), **event}, default=str) + "\n")
                    file.write(json.dumps({"at": time.monotonic(), "tag": "looked"}) + "\n")
                    time.sleep(max(0.1, began + interval - time.monotonic()))
        except BaseException:  # noqa: BLE001 a child that must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(0)

    def serve(self, port):
        buffer = b""
        while True:
            chunk = os.read(port, 65536)
            buffer += chunk
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                try:
                    request = json.loads(line)
                except ValueError:
                    continue  # the noise of a line that was cut when the machine was saved
                try:
                    answer = {"answer": getattr(self, request["do"])(**request.get("with", {}))}
                except Exception:  # noqa: BLE001 whatever it is, the host is told
                    answer = {"broken": traceback.format_exc()}
                reply = json.dumps({"id": request["id"], **answer}, default=str).encode() + b"\n"
                while reply:
                    reply = reply[os.write(port, reply) :]


def main():
    port = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
    tty.setraw(port)
    print("agent: ready", flush=True)
    Agent().serve(port)


if __name__ == "__main__":
    main()
