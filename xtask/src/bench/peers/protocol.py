"""The worker protocol for peers: what xtask/src/bench/worker.rs speaks, with a greeting and a peer's name in every request.

A peer is `(kinds, prepare)`: the kinds of cases that it computes, and a function of a spec and its arrays that gives `step` and `fetch`.
`step()` computes once and returns what it made; `fetch(made)` turns that into a numpy array in the protocol's order of axes.
"""

import json
import os
import sys
import time

import numpy as np


def threads():
    return int(os.environ.get("BENCH_THREADS", "1"))


def keep_to_cores():
    """As many cores as threads, the last ones, which all racers keep to. Some libraries count the cores that they may use."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-threads():])


def shapes(spec):
    """Name and shape of each input of a case."""
    if spec["kind"] == "gemm":
        return {"a": (spec["M"], spec["K"]), "b": (spec["K"], spec["N"])}
    if spec["kind"] == "core":
        keys = (spec["B"], spec["Hkv"], spec["Lk"], spec["d"])
        return {"q": (spec["B"], spec["H"], spec["Lq"], spec["d"]), "k": keys, "v": keys}
    width = spec["D"]
    inputs = (spec["B"], spec["L"], width)
    kernels = {name: (width, width) for name in ("wq", "wk", "wv", "wo")}
    biases = {name: (width,) for name in ("bq", "bk", "bv", "bo")}
    return {"x": inputs, "g": inputs, **kernels, **biases}


def read(spec, folder):
    def array(name, shape):
        path = os.path.join(folder, "%s.%s.f32" % (spec["data"], name))
        return np.fromfile(path, dtype="<f4").reshape(shape)

    return {name: array(name, shape) for name, shape in shapes(spec).items()}


def status(field):
    """Bytes of a field of this process's status; None where there is no such file."""
    try:
        with open("/proc/self/status") as lines:
            for line in lines:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def forget_peak():
    """Sets the peak of resident memory back to what is resident now."""
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        pass


def timed(step):
    start = time.perf_counter()
    made = step()
    return 1e3 * (time.perf_counter() - start), made


class Worker:
    def __init__(self, version, peers):
        self.version = version
        self.peers = peers
        self.ready = {}

    def hello(self, request):
        return {"version": self.version, "peers": {name: kinds for name, (kinds, _) in self.peers.items()}}

    def prep(self, request):
        spec = request["spec"]
        _, prepare = self.peers[request["peer"]]
        step, fetch = prepare(spec, read(spec, request["data_dir"]))
        forget_peak()
        before = status("VmRSS")
        first, made = timed(step)
        peak = status("VmHWM")
        np.ascontiguousarray(fetch(made), dtype="<f4").tofile(request["out"])
        del made
        second, made = timed(step)
        del made
        self.ready[request["peer"], request["case"]] = step
        grown = peak - before if peak and before else None
        return {"first_ms": first, "second_ms": second, "grown_bytes": grown}

    def time(self, request):
        step = self.ready[request["peer"], request["case"]]
        return {"ms": [timed(step)[0] for _ in range(request["reps"])]}

    def drop(self, request):
        self.ready.pop((request["peer"], request["case"]), None)
        return {}

    def answer(self, request):
        operations = {"hello": self.hello, "prep": self.prep, "time": self.time, "drop": self.drop}
        try:
            return {"ok": True, **operations[request["op"]](request)}
        except Exception as error:  # whatever a library raises is its reason for not computing a case
            return {"ok": False, "why": "%s: %s" % (type(error).__name__, str(error)[:300])}


def own_stdout():
    """Keeps the answers' stream for them: what libraries print goes to the error stream."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(version, peers):
    answers = own_stdout()
    worker = Worker(version, peers)
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "quit":
            break
        answers.write(json.dumps(worker.answer(request)) + "\n")
        answers.flush()


def serve_nothing(error):
    """For a library that is not there: the greeting is answered with the reason."""
    print(json.dumps({"ok": False, "why": str(error)}), flush=True)
