"""How long a trace and a walk take: ResNet-50, ViT-B/16, by depth, and a Llama of 70 billion parameters on meta.

On one thread what the processor spent is what a quiet machine takes, and what else runs there does not count.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

import initwell as iw
from initwell.records import Row
from initwell.trace.recorder import record
from initwell.trace.trace import Trace
from predict_bench.tables import Table
from predict_bench.zoo.attention import ClassToken, vit_base
from predict_bench.zoo.first import mlp
from predict_bench.zoo.images import resnet50

LLAMA = """
import json, time, torch, transformers
from pathlib import Path
import initwell as iw
torch.set_num_threads(1)
iw.predict(torch.nn.Linear(2, 2), torch.ones(2, 2))
config = transformers.LlamaConfig(
    vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
    num_key_value_heads=8, max_position_embeddings=8192, use_cache=False, attn_implementation="eager",
)
started = time.process_time()
model, draws = iw.dry(lambda: transformers.LlamaForCausalLM(config))
built = time.process_time() - started
size = sum(p.numel() for p in model.parameters())
tokens = torch.randint(0, 128256, (1, 16), generator=torch.Generator().manual_seed(0))
started = time.process_time()
found = iw.predict(model, tokens, plan=draws)
seconds = time.process_time() - started
# The peak that getrusage tells is the parent's, where that was higher.
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
unknown = sum(row["fidelity"] == "unknown" for row in found.rows)
print(json.dumps({"billions": size / 1e9, "built": built, "seconds": seconds, "gigabytes": peak / 2**20,
                  "rows": len(found.rows), "unknown": unknown}))
"""


def walks_again(model: nn.Module, batch: Any, trace: Trace, factors: Sequence[float] = (1.0,)) -> Callable[[], object]:
    """Return the walk of a trace alone: what ``predict`` does after recording and after looking at the batch.

    Args:
        model: that was recorded.
        batch: with which.
        trace: of it.
        factors: all weights times the first of them in the first walk, and so on, over and over.
    """
    from initwell.propagate.default import default_table
    from initwell.propagate.engine import walk
    from initwell.propagate.given import start
    from initwell.propagate.given.known import known_values
    from initwell.propagate.rules.branch import scaled

    table = default_table()
    values = known_values(trace)
    weights = start.parameter_signals(model, trace, None, [])
    parts = [
        start.input_signals(model, trace, batch),
        start.buffer_signals(model, trace, []),
        start.starting_gradients(trace),
    ]
    known = [start.as_mapping([*parts, {v: scaled(w, f) for v, w in weights.items()}]) for f in factors]
    turn = cycle(known)
    return lambda: walk(trace, table, next(turn), values)


def timed(work: Callable[[], object], repeats: int) -> float:
    """Return the median of the seconds of the processor that some runs took."""
    found = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return statistics.median(found)


def images(samples: int, size: int) -> Tensor:
    return torch.randn(samples, 3, size, size, generator=torch.Generator().manual_seed(0))


def of_model(name: str, model: nn.Module, batch: Tensor, repeats: int = 3) -> list[Row]:
    """Time one model: recording and walking together, as ``predict`` on real weights, and a second walk alone."""
    trace = record(model, batch, device="meta")
    again = walks_again(model, batch, trace)
    ops = len(trace.ops)
    recording, walking = timed(lambda: record(model, batch, device="meta"), repeats), timed(again, repeats)
    changing = timed(walks_again(model, batch, trace, [1.0 + i / 16 for i in range(repeats + 1)]), repeats)
    whole = timed(lambda: iw.predict(model, batch), 1)
    both = recording + walking
    return [
        _row(f"{name}: trace {recording:.2f} s, walk {walking:.2f} s, together", ops, both, both < 1, "1 s"),
        _row(f"{name}: a second walk of the same trace", ops, walking, walking < 0.1, "0.1 s"),
        _row(f"{name}: a walk of it by other weights each time", ops, changing, None, ""),
        _row(f"{name}: predict, weights and batch measured too", ops, whole, None, ""),
    ]


def _row(what: str, ops: int | None, seconds: float, reached: bool | None, target: str) -> Row:
    per_op = None if ops is None else 1e3 * seconds / ops
    return {"what": what, "ops": ops, "seconds": seconds, "ms an op": per_op, "target": target, "reached": reached}


def by_depth() -> list[Row]:
    """Time nets of growing depth: the time an op must not grow with the number of ops."""
    kinds: dict[str, tuple[Callable[[int], nn.Module], Tensor]] = {
        "mlp": (lambda depth: mlp(nn.GELU, depth, 64), torch.randn(16, 64, generator=torch.Generator().manual_seed(0))),
        "vit": (lambda depth: ClassToken(64, depth, 2, 8, 16, 10), images(4, 32)),
    }
    rows = []
    for name, (build, batch) in kinds.items():
        found = [(depth, *trace_and_walk(build(depth), batch)) for depth in (12, 24, 48, 96)]
        first = found[0][2] / found[0][1]
        for depth, ops, seconds in found:
            rows.append(_row(f"{name} of depth {depth}", ops, seconds, seconds / ops < 1.5 * first, "1.5 × the first"))
    return rows


def trace_and_walk(model: nn.Module, batch: Tensor) -> tuple[int, float]:
    """Return how many ops a model has, and the seconds that recording and walking it take."""
    trace = record(model, batch, device="meta")
    again = walks_again(model, batch, trace)
    return len(trace.ops), timed(lambda: record(model, batch, device="meta"), 3) + timed(again, 3)


def llama() -> list[Row]:
    """Predict a Llama of 70 billion parameters on meta, in a process of its own."""
    if find_spec("transformers") is None:
        return [_row("Llama 70B: transformers is not installed", None, 0.0, None, "20 s")]
    done = subprocess.run([sys.executable, "-c", LLAMA], capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        return [_row(f"Llama 70B: {done.stderr.strip().splitlines()[-1][:120]}", None, 0.0, False, "20 s")]
    found = json.loads(done.stdout.splitlines()[-1])
    what = f"Llama {found['billions']:.0f}B on meta, built in {found['built']:.1f} s, then predicted"
    memory = f"the process's peak, PyTorch and all, {found['gigabytes']:.2f} GB"
    unknown = f"{found['unknown']} of {found['rows']} values unknown"
    return [
        _row(what, None, found["seconds"], found["seconds"] < 20, "20 s"),
        {"what": f"{memory}; {unknown}", "target": "2 GB", "reached": found["gigabytes"] < 2},
    ]


def table() -> Table:
    """Time everything."""
    rows = [
        *of_model("ResNet-50, 224×224", resnet50(), images(2, 224)),
        *of_model("ViT-B/16", vit_base(), images(2, 224)),
        *by_depth(),
        *llama(),
    ]
    columns = ("what", "ops", "seconds", "ms an op", "target", "reached")
    return Table("Speed, one thread, CPU seconds, medians of three", columns, tuple(rows))
