"""Does one span on several devices compute what one device computes, and how fast?

``python -m bench.tensor_parallel [--device cuda|cpu] [--ranks 2] [--shape llama-8b|small] [--layers N]``: a model with
random weights, in this process on one device and in `--ranks` processes (NCCL between GPUs, gloo between processes of a
CPU), in the same run:

- distance of logits from the same model in float32 on one device, prefill in chunks and decode: no larger than one
  device's own, but for rounding;
- milliseconds a token of one session, and of a prompt, on one device and on all, rounds alternating, best of each;
- a rank is killed: the next step must raise WorkerLost within 10 s.

Both sides are engine.torch_shard: on a GPU transformers' modules in eager torch, on a CPU the lean layers. On a GPU the
single device is timed with our own kernels, too (engine.cuda_shard), which tensor parallelism does not use. On a CPU,
``--families`` also compares tiny models of every family that can be cut, ranks as threads. All layers share one block
of weights, so little is written. No network, no downloads, no store but a temporary one. Exit status 1 where a bar is
missed.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("NCCL_NVLS_ENABLE", "0")  # before torch: NVLink multicast is not for every container

import torch

from paceline.engine import cuda_choice
from paceline.engine.shard import SampleRequest, Shard, Work
from paceline.engine.source import RawTensor, Source, build
from paceline.engine.tensor_parallel import TensorParallelShard
from paceline.engine.torch_shard import TorchShard
from paceline.store.manifest import Manifest
from paceline.store.store import Store
from paceline.wire.errors import WorkerLost
from paceline.wire.messages import Dtype
from paceline.wire.sampling import SamplingParams

LIMIT_S = 270
"""The whole run ends by then, with a trace of where it stood."""
LOST_S = 10.0
_GREEDY = SamplingParams()
_KV = 8192


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int
    layers: int
    prompt: int
    """Positions of the prefill that is timed."""

    def config(self, layers: int) -> dict[str, Any]:
        """As a manifest holds it."""
        from transformers import LlamaConfig

        made = LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocab,
            num_hidden_layers=layers,
            max_position_embeddings=_KV,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=False,
        )
        plain: dict[str, Any] = json.loads(made.to_json_string(use_diff=False))
        return plain

    def tensors(self, part: object) -> dict[str, tuple[int, ...]]:
        """Names and shapes of one block."""
        if part == "embed":
            return {"weight": (self.vocab, self.hidden)}
        if part == "head":
            return {"norm.weight": (self.hidden,), "lm_head.weight": (self.vocab, self.hidden)}
        wide, narrow = self.hidden, self.hidden // self.heads * self.kv_heads
        attention = {"q_proj": (wide, wide), "k_proj": (narrow, wide), "v_proj": (narrow, wide), "o_proj": (wide, wide)}
        mlp = {"gate_proj": (self.inner, wide), "up_proj": (self.inner, wide), "down_proj": (wide, self.inner)}
        found = {f"self_attn.{name}.weight": shape for name, shape in attention.items()}
        found |= {f"mlp.{name}.weight": shape for name, shape in mlp.items()}
        return found | {f"{name}_layernorm.weight": (wide,) for name in ("input", "post_attention")}


SHAPES = {
    "llama-8b": Shape(4096, 14336, 32, 8, 128256, 32, 2048),
    "small": Shape(1024, 2816, 16, 4, 8192, 4, 256),
}


def random_model(store: Store, shape: Shape, layers: int, device: str, dtype: Dtype) -> Manifest:
    """One random block for all layers, published to `store`."""

    def tensor(name: str, size: tuple[int, ...]) -> RawTensor:
        draw = torch.Generator(device).manual_seed(len(name) * size[0])
        made = torch.randn(size, generator=draw, device=device) * (2 / size[-1]) ** 0.5 if len(size) > 1 else None
        filled = torch.ones(size) if made is None else made
        kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
        data = filled.to(kind).cpu().contiguous().view(torch.uint8).numpy().reshape(-1).data
        return RawTensor(name, "BF16" if dtype == "bf16" else "F32", size, data)

    source = Source(
        config=shape.config(1) | {"architectures": ["LlamaForCausalLM"]},
        dtype=dtype,
        tensors=lambda part: [tensor(name, size) for name, size in shape.tensors(part).items()],
        tied=False,
    )
    one = build(store, source, "random")
    names = {name: getattr(one, name) for name in one.__struct_fields__}
    config = one.config | {"num_hidden_layers": layers}
    manifest = Manifest(**names | {"layers": one.layers * layers, "config": config})
    store.put_manifest(manifest)
    return manifest


def logits(shard: TorchShard, ids: Sequence[int], device: str) -> torch.Tensor:
    """Prefill in three chunks, then eight steps of one: ``[len(ids), vocab]``, float64 on the CPU."""
    shard.open("logits", len(ids))
    edges = [0, 7, len(ids) // 2, *range(len(ids) - 8, len(ids) + 1)]
    found = []
    for start, end in itertools.pairwise(edges):
        work = Work("logits", start, ids=ids[start:end])
        with torch.inference_mode():
            rows = shard.input(work)
            assert rows is not None
            found.append(shard.logits(shard.forward([work], rows)).double().cpu())
    shard.close("logits")
    shard.tidy()
    return torch.cat(found)


def decode_s(shard: Shard, prompt: int, steps: int) -> float:
    """Median seconds of a decode step of one session behind `prompt` positions, sampling included."""
    fresh = list(range(10, 10 + prompt))
    shard.open("decode", prompt + steps + 1)
    times = []
    for _ in range(steps + 1):
        start = shard.length("decode")
        began = time.perf_counter()
        (output,) = shard.step([Work("decode", start, ids=fresh, sample=SampleRequest(_GREEDY, start + len(fresh)))])
        times.append(time.perf_counter() - began)
        assert output.sampled is not None, output.error
        fresh = [output.sampled.token]
    shard.close("decode")
    return sorted(times[1:])[steps // 2]


def prefill_s(shard: Shard, n: int) -> float:
    """Seconds of a prompt's step, next token included; the better of two."""
    times = []
    for repeat in range(2):
        shard.open("prefill", n)
        ids = [(at * 7 + repeat) % 1000 + 10 for at in range(n)]
        began = time.perf_counter()
        (output,) = shard.step([Work("prefill", 0, ids=ids, sample=SampleRequest(_GREEDY, n))])
        times.append(time.perf_counter() - began)
        assert output.sampled is not None, output.error
        shard.close("prefill")
    return min(times)


class Run:
    """One run's settings, verdicts and clock."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device: str = options.device
        self.ranks: int = options.ranks
        self.dtype: Dtype = "bf16" if self.device == "cuda" else "f32"
        self.shape = SHAPES[options.shape or ("llama-8b" if self.device == "cuda" else "small")]
        self.layers: int = options.layers or self.shape.layers
        self.missed: list[str] = []
        self._began = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"[{time.perf_counter() - self._began:5.1f} s] {text}", flush=True)

    def judge(self, what: str, good: bool, shown: str) -> None:
        self.say(f"{'ok    ' if good else 'MISSED'} {what}: {shown}")
        if not good:
            self.missed.append(what)

    def one(self, store: Store, manifest: Manifest, dtype: Dtype) -> TorchShard:
        """On a single device."""
        return TorchShard.load(store, manifest, manifest.span, device=self.device, dtype=dtype, kv_positions=_KV)

    def all(self, store: Store, manifest: Manifest) -> None:
        """Everything, in order of worth."""
        ids = torch.randint(10, 1000, (64,), generator=torch.Generator().manual_seed(1)).tolist()
        exact = self._exact(store, manifest, ids)
        single = self.one(store, manifest, self.dtype)
        theirs = logits(single, ids, self.device)
        self.say(f"one device loaded: {single.numerics}{self._memory()}")
        many = TensorParallelShard.load(
            store, manifest, manifest.span, self.ranks, device=self.device, dtype=self.dtype, kv_positions=_KV
        )
        self.say(f"{self.ranks} ranks loaded: {many.numerics}; with the single device's{self._memory()} on the first")
        self._correct(logits(many, ids, self.device), theirs, exact)
        self._speed(store, manifest, single, many)
        self._killed(many)

    def _exact(self, store: Store, manifest: Manifest, ids: Sequence[int]) -> torch.Tensor:
        """Logits in float32, from weights and sums of that width (on a CPU: without the packed products)."""
        if self.device == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = False
            exact = logits(self.one(store, manifest, "f32"), ids, self.device)
            gc.collect()  # a shard refers to itself
            torch.cuda.empty_cache()
            return exact
        whole = TorchShard.load(store, manifest, manifest.span, packed=False, kv_positions=_KV)
        return logits(whole, ids, self.device)

    def _memory(self) -> str:
        return f", {torch.cuda.memory_allocated() / 1e9:.1f} GB of GPU memory held" if self.device == "cuda" else ""

    def _correct(self, ours: torch.Tensor, theirs: torch.Tensor, exact: torch.Tensor) -> None:
        spread = exact.std()
        mine, single = (float((found - exact).abs().max() / spread) for found in (ours, theirs))
        between = float((ours - theirs).abs().max() / spread)
        agree = float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
        shown = f"{self.ranks} ranks {mine:.1e}, one device {single:.1e}, from each other {between:.1e}; same greedy "
        shown += f"token at {agree:.0%} of {len(ours)} positions (units: the logits' spread)"
        least = 2e-2 if self.dtype == "bf16" else 1e-5
        self.judge("logits' distance from float32, within rounding", mine <= max(2 * single, least), shown)
        if self.dtype == "f32":
            self.judge("same greedy tokens as one device", agree == 1.0, f"{agree:.0%}")

    def _speed(self, store: Store, manifest: Manifest, single: TorchShard, many: TensorParallelShard) -> None:
        sides: dict[str, Shard] = {"one device": single, f"{self.ranks} ranks": many}
        if self.device == "cuda":
            own = cuda_choice.lean_shard(store, manifest, manifest.span, self.device, self.dtype, _KV, warm=False)
            if own is None:
                self.say("our own kernels cannot be built here (no Triton or no C compiler): not timed")
            else:
                sides["one device, own kernels"] = own
        steps, prompt = (32, 128) if self.device == "cuda" else (12, 16)
        best = {name: (float("inf"), float("inf")) for name in sides}
        for _ in range(4):  # the first of each also compiles and warms up
            for name, shard in sides.items():
                taken = decode_s(shard, prompt, steps), prefill_s(shard, self.shape.prompt)
                best[name] = min(best[name][0], taken[0]), min(best[name][1], taken[1])
        for name, (decode, prefill) in best.items():
            rate = self.shape.prompt / prefill
            shown = f"decode of 1 {decode * 1e3:.2f} ms a token, {1 / decode:.0f} tokens/s; "
            self.say(f"{name}: {shown}prefill of {self.shape.prompt} {prefill * 1e3:.1f} ms, {rate:.0f} tokens/s")
        (one_decode, one_prefill), (decode, prefill) = list(best.values())[:2]
        shown = f"decode {one_decode / decode:.2f} ×, prefill {one_prefill / prefill:.2f} ×"
        self.say(f"{self.ranks} ranks against one device by the same path: {shown} as fast")

    def _killed(self, many: TensorParallelShard) -> None:
        many.open("killed", 16)
        many.step([Work("killed", 0, ids=[10, 11])])
        os.kill(many.pids[-1], signal.SIGKILL)
        began = time.perf_counter()
        try:
            many.step([Work("killed", 2, ids=[12])])
            error = "nothing was raised"
        except WorkerLost as lost:
            error = str(lost)
        taken = time.perf_counter() - began
        good = taken <= LOST_S and error != "nothing was raised"
        self.judge(f"a killed rank is a WorkerLost within {LOST_S:.0f} s", good, f"{taken:.2f} s: {error}")
        many.end()


def families(run: Run) -> None:
    """Tiny models of all families, ranks as threads."""
    from bench import parity_shards
    from bench.rank_threads import in_threads
    from paceline.engine.convert import from_model
    from paceline.engine.source import publish
    from paceline.wire.errors import UnsupportedModel

    for arch in parity_shards.ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            model = parity_shards.tiny_model(arch, Path(folder) / "hf")
            store = Store(Path(folder) / "store")
            manifest = publish(store, from_model(model, "f32"), f"tiny-{arch}")
            ids = torch.randint(3, 256, (40,), generator=torch.Generator().manual_seed(1)).tolist()
            with torch.inference_mode():
                model.set_experts_implementation("eager")
                exact = model.double()(torch.tensor([ids])).logits[0].double()
            theirs = logits(TorchShard.load(store, manifest, manifest.span), ids, "cpu")
            try:
                shard = TensorParallelShard.load(store, manifest, manifest.span, run.ranks, start=in_threads)
            except UnsupportedModel as error:
                run.say(f"       {arch}: {error}")
                continue
            ours = logits(shard, ids, "cpu")
            shard.end()
        difference = parity_shards.Difference(
            *(float((found - exact).abs().max() / exact.std()) for found in (ours, theirs))
        )
        shown = f"{run.ranks} ranks {difference.ours:.1e}, one {difference.theirs:.1e}"
        run.judge(arch, difference.within_rounding, shown)


def main() -> int:
    """0 where every bar was met, 1 where not, 2 where the devices are not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--shape", choices=tuple(SHAPES))
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--families", action="store_true", help="on a CPU: tiny models of every family first")
    options = parser.parse_args()
    if options.device == "cuda" and torch.cuda.device_count() < options.ranks:
        print(f"{options.ranks} GPUs are wanted, this machine has {torch.cuda.device_count()}")
        return 2
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    run = Run(options)
    names = [torch.cuda.get_device_name(at) for at in range(options.ranks)] if run.device == "cuda" else ["CPU"]
    threads = "" if run.device == "cuda" else f", {torch.get_num_threads()} threads for one, divided among ranks"
    run.say(f"{', '.join(names)}; torch {torch.__version__}, {options.ranks} ranks{threads}")
    path = "transformers' modules in eager torch" if run.device == "cuda" else "lean layers"
    run.say(f"{run.shape}, {run.layers} layers, random weights in {run.dtype}, {path}")
    if options.families and run.device == "cpu":
        families(run)
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as folder:
        store = Store(Path(folder))
        manifest = random_model(store, run.shape, run.layers, run.device, run.dtype)
        run.say("model written")
        run.all(store, manifest)
    print("all bars met" if not run.missed else f"{len(run.missed)} missed: {'; '.join(run.missed)}", flush=True)
    return 1 if run.missed else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # a group that has lost a rank may wait for it in its destructor
