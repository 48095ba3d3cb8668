"""The parts of `python dev.py bench-gpu` that measure speed and memory; each yields rows of its table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import tokenopt_core as to
from benchmarks import cases
from benchmarks.cases import Case
from benchmarks.gpu_checks import Row, Setting, reason

SECONDS, PICTURES, WARM_UP, PEAK = 1.0, 1.6, 20.0, 4.0  # the goals: s, pictures a second, s, GB


def one_picture(s: Setting) -> Iterator[Row]:
    """The paper's run, its first-use costs and its memory."""
    case = s.case()
    first = case.run()
    later = [case.run() for _ in range(s.rounds)]
    seconds = median(later)
    yield Row(
        f"one picture, {s.iterations} iterations, {s.crops} crops, {s.halves[0]}", f"{seconds:.2f} s",
        f"at most {SECONDS:g} s", s.verdict(seconds <= SECONDS), seconds,
    )  # fmt: skip
    warm = max(0.0, first - seconds)
    yield Row("warm-up: the first run less a later one", f"{warm:.1f} s", f"at most {WARM_UP:g} s",
              s.verdict(warm <= WARM_UP), warm)  # fmt: skip
    peak, note = cases.peak_memory(case.features.device) / 1e9, ""
    if s.device == "cuda":
        note = f" ({torch.cuda.max_memory_reserved() / 1e9:.2f} GB held by PyTorch)"
    yield Row("peak memory, one picture, half precision", f"{peak:.2f} GB{note}", f"at most {PEAK:g} GB",
              s.verdict(peak <= PEAK), peak)  # fmt: skip
    other = replace(case, prompt="a house on snow", config=replace(case.config, seed=7)).run()
    yield Row("the next prompt, models still loaded", f"{other / seconds:.2f} x a warm run", value=other / seconds)
    short = case.run(min(10, s.iterations))
    yield Row(f"a short run, {min(10, s.iterations)} iterations", f"{short:.2f} s", value=short)
    needed = cases.flops(case)
    most = cases.ceiling(case.features.device, s.halves[0])
    share = needed * s.iterations / seconds / most
    yield Row(
        "share of the matmul ceiling, one picture", f"{100 * share:.0f} % of {most / 1e12:.3g} TFLOP/s",
        value=share,
    )  # fmt: skip
    yield Row("operations an iteration", f"{needed / 1e9:.4g} GFLOP", value=needed / 1e9)


def batch(s: Setting) -> Iterator[Row]:
    """Pictures a second of a batch."""
    case = s.case(s.batch)
    case.run()
    seconds = median(case.run() for _ in range(s.rounds))
    rate = s.batch / seconds
    yield Row(
        f"batch of {s.batch}, {s.iterations} iterations", f"{rate:.2f} pictures a second", f"at least {PICTURES:g}",
        s.verdict(rate >= PICTURES), rate,
    )  # fmt: skip
    needed = cases.flops(case)
    share = needed * s.iterations / seconds / cases.ceiling(case.features.device, s.halves[0])
    yield Row(f"share of the matmul ceiling, batch of {s.batch}", f"{100 * share:.0f} %", value=share)
    peak = cases.peak_memory(case.features.device) / 1e9
    yield Row(f"peak memory, batch of {s.batch}", f"{peak:.2f} GB", value=peak)


def against_plain(s: Setting) -> Iterator[Row]:
    """The published loop beside the product's, in turns."""
    for precision in (s.halves[0], "float32"):
        # the published loop computes in half precision with float32 weights, under autocast
        few = to.OptimizeConfig(iterations=max(3, s.iterations // 10), precision=precision)  # type: ignore[arg-type]
        plain = cases.as_plain(cases.make(s.model, s.device, 1, s.crops, few))
        fast = s.case(weights=precision, precision=precision)
        for case in (plain, fast):
            case.run()
        times = cases.alternate([fast, plain], s.rounds)
        ratio = median(a / b for a, b in zip(*times, strict=True))
        yield Row(
            f"fast against plain, {precision}", f"{ratio:.2f} x ({1000 * median(times[0]):.1f} against "
            f"{1000 * median(times[1]):.1f} ms an iteration)", value=ratio,
        )  # fmt: skip
        del plain, fast, case


def switches(s: Setting) -> Iterator[Row]:
    """One thing changed at a time, in turns with the default."""
    default = s.case()
    if s.device == "cuda":
        uncaptured = replace(default, config=replace(default.config, capture=False))
        yield _beside(s, default, "without CUDA graphs", uncaptured.run)
    yield _beside(s, default, "float32 weights, arithmetic in half precision", s.case(weights="float32").run)
    for half in s.halves[1:]:
        yield _beside(s, default, half, s.case(weights=half, precision=half).run)

    def plain_attention() -> float:
        with sdpa_kernel(SDPBackend.MATH):
            return own.run()

    own = s.case()
    yield _beside(s, default, "without fused attention", plain_attention)
    yield _beside(s, default, "every tenth picture kept, as the node does", lambda: _watched(default))


def _watched(case: Case) -> float:
    """Seconds of a run with a callback that fetches every tenth picture."""
    start, kept = time.perf_counter(), list[torch.Tensor]()

    def keep(step: to.Step) -> None:
        if step.iteration % 10 == 0:
            kept.append(step.image.cpu())

    to.optimize(
        case.tokenizer, case.features, to.ClipLoss(case.clip, case.prompt, crops=case.crops), case.config, callback=keep
    )
    cases.synchronize(case.features.device)
    return time.perf_counter() - start


def _beside(s: Setting, default: Case, what: str, run: Callable[[], float]) -> Row:
    """How long a variant takes, as a multiple of the default; its first-use costs stand beside it."""
    try:
        default.run()
        first = run()
        pairs = [(run(), default.run()) for _ in range(s.rounds)]
    except Exception as error:  # one variant that cannot run must not hide the others
        return Row(what, f"failed: {reason(error)}", verdict="failed")
    seconds, ratio = median(pair[0] for pair in pairs), median(a / b for a, b in pairs)
    each = 1000 * seconds / s.iterations
    return Row(what, f"{ratio:.2f} x the default's time ({each:.1f} ms an iteration, the first run "
               f"{max(0.0, first - seconds):.1f} s longer)", value=ratio)  # fmt: skip


def compiled(s: Setting) -> Iterator[Row]:
    """torch.compile of the models, in place of the product's own capture and on top of it."""
    default = s.case()
    backends: dict[str, dict[str, str]] = {"torch.compile": {}}
    if s.quick:
        backends = {"torch.compile, traced only": {"backend": "eager"}}
    elif s.device == "cuda":
        backends["torch.compile with its own CUDA graphs"] = {"mode": "reduce-overhead"}
    for name, settings in backends.items():
        for captured in (False, True) if s.device == "cuda" else (False,):
            if captured and "mode" in settings:
                continue  # graphs within graphs there are not
            case = s.case(capture=captured)
            for part in ("decoder", "pixel_decoder"):
                if hasattr(case.tokenizer.model, part):
                    getattr(case.tokenizer.model, part).compile(**settings)
            case.clip.model.visual.compile(**settings)
            yield _beside(s, default, name + (", captured by the product" if captured else ""), case.run)
            del case
            torch.compiler.reset()
