"""How long Token Search takes for one position: `python benchmarks/search.py --model mini`.

Every code in place of one token, with the L1 change; on a GPU in bfloat16, as the node's "auto" loads it. The best code
is checked against decoding it alone. Fails if the search takes more than ten seconds. Weights other than mini's are
derived from a formula: speed does not depend on them. `--record` appends to RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import tokenopt_core as to  # noqa: E402
from benchmarks.cases import synchronize  # noqa: E402
from benchmarks.loading import write_weights  # noqa: E402
from devtools import results  # noqa: E402

LIMIT = 10.0  # seconds
TOLERANCE = 0.05  # of the score, in half precision


def load(model: str, device: torch.device) -> to.Tokenizer:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if model == "mini":
        return to.load_tokenizer(model, dtype=dtype).to(device)
    folder = ROOT / ".cache" / "benchmarks" / model
    if not (folder / "model.safetensors").is_file():
        print(f"writing {folder.relative_to(ROOT)} ...", flush=True)
        write_weights(model, folder)
    return to.load_tokenizer(folder, dtype=dtype).to(device)


@torch.no_grad()
def check(tokenizer: to.Tokenizer, z: torch.Tensor, position: int, code: int, score: float) -> None:
    """The best score again, from two pictures decoded alone."""
    tokens = tokenizer.indices(z)
    tokens[:, position] = code
    pictures = [tokenizer.decode(tokenizer.lookup(i), quantize=False) for i in (tokenizer.indices(z), tokens)]
    alone = float(to.L1Change(pictures[0])(pictures[1]))
    if abs(alone - score) > TOLERANCE * max(alone, 1e-3):
        raise SystemExit(f"the best code's score is {score:.5g}, but decoded alone {alone:.5g}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--batch", type=int, default=32, help="pictures decoded at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    tokenizer = load(options.model, device)
    z = to.random_features(tokenizer, 1, 1.0, torch.Generator().manual_seed(0)).to(device)
    to.search_token(tokenizer, z, 0, callback=lambda done: done >= 2 * options.batch, batch=options.batch)  # first use
    seconds = []
    for position in range(options.rounds):
        synchronize(device)
        start = time.perf_counter()
        codes, scores = to.search_token(tokenizer, z, position, batch=options.batch)
        seconds.append(time.perf_counter() - start)  # the scores are on the CPU: the device is done
        check(tokenizer, z, position, int(codes[0]), float(scores[0]))
    taken = median(seconds)
    where = torch.cuda.get_device_name() if device.type == "cuda" else results.machine()
    cells = (date.today().isoformat(), results.commit(), where, torch.__version__, options.model,
             str(tokenizer.codebook_size), str(options.batch), str(options.threads), f"{taken:.2f}")  # fmt: skip
    print(f"{options.model}: {tokenizer.codebook_size} codes at one position in {taken:.2f} s (limit {LIMIT:.0f} s)")
    if options.record:
        results.add_row("## Token search", cells)
    return int(taken > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
