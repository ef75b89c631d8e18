#!/usr/bin/env bash
# Every benchmark of the training that needs a GPU, in one call; figures go to examples/benchmarks/results/.
# Needs one NVIDIA GPU of 80 GB (H100 for the targets), Python 3.11 or newer, torch >= 2.11 built for CUDA,
# transformers >= 5.17, accelerate >= 1.15; tested versions: constraints.txt. Written for a GPU, never yet run on one.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=examples/benchmarks/results
python - <<'PY'
import accelerate, torch, transformers
if not torch.cuda.is_available():
    raise SystemExit("gpu.sh: error: torch sees no GPU; install a CUDA build of torch, or run step.py on the CPU.")
print(torch.cuda.get_device_name(), "torch", torch.__version__, "transformers", transformers.__version__,
      "accelerate", accelerate.__version__, "CUDA", torch.version.cuda)
PY
step="python examples/benchmarks/step.py"
# (a) against the published loop (target 8x), (b) MFU (target 55 %), (c) the Trainer over a bare loop (target 3 %)
$step --model vit-l-14 --batch_size 128 --rounds 5 --arms published --output "$out/gpu-published.json"
$step --model vit-l-14 --batch_size 128 --rounds 10 --arms bare --output "$out/gpu-step.json"
$step --model vit-l-14 --batch_size 128 --rounds 10 --arms --compile --output "$out/gpu-compiled.json"
# (d) peak memory of L/14-336 at batch 16 (target 24 GB)
$step --model vit-l-14-336 --batch_size 16 --rounds 3 --arms --checkpointing --output "$out/gpu-memory-336.json"
# (e) two processes against one, where there are two GPUs
if [ "$(nvidia-smi --list-gpus | wc -l)" -ge 2 ]; then
  python examples/benchmarks/processes.py --model vit-l-14 --batch_size 64 --output "$out/gpu-processes.json"
fi
# (f) the loader, on the processor of that machine
python examples/benchmarks/loader.py --workers 0 1 2 4 8 16 --output "$out/gpu-loader.json"
