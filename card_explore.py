import json, os, sys, time, statistics, collections
import torch
from dllm_kernels.bench import tune as T, tune_layer as L
from dllm_kernels.ops.linear import config as C
from dllm_kernels.model.config import LDLMConfig
from dllm_kernels.bench.peers import Weights, Case
from dllm_kernels.inference.sampler import FusedSampler
from dllm_kernels.utils.device import shared_memory, multiprocessors
from dllm_kernels.ops.extension import has_wgmma
dev = torch.device("cuda", 0); OUT = os.environ["OUT"]
print("proxy", shared_memory(dev), has_wgmma(dev), C.block_bytes(shared_memory(dev)))
# values
from dllm_kernels.ops.linear.packing import pack
from dllm_kernels.ops.linear.skinny import linear_skinny, empty_workspace
bad = 0
torch.manual_seed(0)
for m, n, k in ((64, 2048, 2048), (64, 6144, 2048), (128, 2048, 8192), (13, 136, 200)):
    x = torch.randn(1, m, k, device=dev).bfloat16(); w = (torch.randn(n, k, device=dev) * k**-0.5).bfloat16()
    exact = x.double() @ w.double().T
    for c in C.candidates(m, n, k, 101376, False):
        y, _, _ = linear_skinny(x, pack(w.clone(), c), torch.zeros(n, device=dev), empty_workspace(0, dev))
        e = ((y.double() - exact).norm() / exact.norm()).item()
        if not e < 4e-3: bad += 1; print("BAD", m, n, k, c, e)
print("values bad:", bad, flush=True)
table = {"entries": [], "layers": []}
def gen(preset, weights, batch):
    s = FusedSampler(weights.model, num_steps=10, batch_size=batch, device=dev)
    s(seed=0); s(seed=1)
    g = s.graph
    ts = []
    for _ in range(20):
        torch.cuda.synchronize(); t = time.perf_counter(); g.replay(); torch.cuda.synchronize(); ts.append((time.perf_counter() - t) * 1e3)
    kinds = sorted({str(k) for k in ()})
    return statistics.median(ts)
orig = T.tune_shape
alone = {}
def spy(m, n, k, device, configs):
    out = []
    for c, t in orig(m, n, k, device, configs):
        out.append((c, t)); yield c, t
    alone[f"{m},{n},{k}"] = [(None if c is None else list(vars(c).values()), round(t, 2)) for c, t in out]
    best = sorted((x for x in out if x[0]), key=lambda p: p[1])[:6]
    print("  library %.2f" % out[0][1], len(out), "configs")
    for c, t in best: print("   %.2f" % t, list(vars(c).values()), c.shared_bytes())
T.tune_shape = spy
done = {}
for preset, m in json.loads(sys.argv[1]):
    t0 = time.time()
    cfg = LDLMConfig.preset(preset)
    T.shapes = lambda c: list(L.layer_shapes(c.dim).values())
    found = T.tune(cfg, m, dev, table, lambda s: print(m, s, flush=True))
    print("LAYER", preset, m, found.layer and (found.layer["us"], found.layer["library_us"]), "uneven", found.uneven, "%.0f s" % (time.time() - t0), flush=True)
    for e in table["entries"]:
        if e["row_tiles"] == m // 64 and (e["n"], e["k"]) in L.layer_shapes(cfg.dim).values(): print("   ", [e[f] for f in ("n","k","tile_n","num_warps_m","num_warps_n","split_k","num_stages","input_stages","us","fastest_us","library_us")])
json.dump({"table": table, "alone": alone}, open(OUT + "/explore.json", "w"))
C.TABLE.write_text(json.dumps(table)); C._table.cache_clear(); C._layers.cache_clear()
for preset in dict(json.loads(sys.argv[1])):
    weights = Weights.of(LDLMConfig.preset(preset), dev)
    for batch in json.loads(sys.argv[2]):
        print("GEN", preset, batch, "%.3f ms" % gen(preset, weights, batch), flush=True)
    del weights; torch.cuda.empty_cache()
