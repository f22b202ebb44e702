"""What a call of the host costs in JAX's programs, beside `jax.pure_callback`: `python benchmarks/host_calls.py`.

Small calls have 6 arguments and 3 results, float32 `[2, 3]`, and compute nothing; a large one has an argument and a
result of 100 MB each, and writes the result.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import guarded, parser_of, spread, table, write_report
from stsbp.benchmarks.timing import Timing, interleaved
from stsbp_jax.engine.host_callback import host_call
from stsbp_spec.registry import open_backend
from stsbp_spec.typing import AnyArray

_CALLS = 200
"""Of a program that scans."""
_LARGE = 25_000_000

Call = Callable[..., Any]


def _like(*shape: int) -> Any:
    kind: Any = jax.ShapeDtypeStruct
    return kind(shape, np.float32)


def _nothing(*arrays: AnyArray, out: Sequence[AnyArray]) -> None:
    pass


def _write(x: AnyArray, out: Sequence[AnyArray]) -> None:
    out[0].fill(1)


def _written(x: Any) -> AnyArray:
    filled = np.empty(x.shape, np.float32)
    filled.fill(1)
    return filled


def _scan(call: Call) -> Call:
    def step(carry: Any, _: Any) -> Any:
        return tuple(call(*carry, *carry)), None

    return jax.jit(lambda *x: jax.lax.scan(step, x[:3], None, length=_CALLS)[0])


def _ready(call: Call, arrays: Sequence[Any]) -> Callable[[], object]:
    return lambda: jax.tree.map(lambda x: x.block_until_ready(), call(*arrays))


def times(rounds: int, large: int = _LARGE) -> dict[str, Timing]:
    """Of each way to call, in turn; of the scans for a call."""
    small, like = [jnp.full((2, 3), i, np.float32) for i in range(6)], [_like(2, 3)] * 3
    results = tuple(np.zeros((2, 3), np.float32) for _ in range(3))
    hosted: Call = functools.partial(host_call, _nothing, like)
    callback: Call = functools.partial(jax.pure_callback, lambda *_: results, tuple(like))
    x = jnp.ones(large, np.float32)
    work = {
        "call, eager": _ready(hosted, small),
        "pure_callback, eager": _ready(callback, small),
        "no call, jit": _ready(jax.jit(lambda *x: [x[0] + x[3], x[1] + x[4], x[2] + x[5]]), small),
        "call, jit": _ready(jax.jit(hosted), small),
        "pure_callback, jit": _ready(jax.jit(callback), small),
        "call, scan": _ready(_scan(hosted), small),
        "pure_callback, scan": _ready(_scan(callback), small),
    }
    of_large = {
        "call, large": _ready(jax.jit(lambda x: host_call(_write, [_like(large)], x)), [x]),
        "pure_callback, large": _ready(jax.jit(lambda x: jax.pure_callback(_written, _like(large), x)), [x]),
        "numpy alone, large": lambda: _written(x),
    }
    # In turns of their own: what is large leaves nothing of the others in the processor's caches.
    timings = interleaved(work, rounds=10 * rounds) | interleaved(of_large, rounds=rounds)
    return {
        name: Timing(tuple(s / _CALLS for s in timing.seconds)) if name.endswith("scan") else timing
        for name, timing in timings.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, measure, print a table."""
    options = parser_of(__doc__, "rounds", "out", rounds=21).parse_args(arguments)
    # What the backend does with freed memory is part of a large call.
    backend = open_backend("jax", "cpu")
    timings = {name: timing.to_json() for name, timing in times(options.rounds).items()}
    print(table(["", "us", "quartiles"], [(name, *spread(x, unit=1e6)) for name, x in timings.items()]))
    write_report(options.out, backend, {"rounds": options.rounds}, times=timings)


if __name__ == "__main__":
    sys.exit(guarded(main))
