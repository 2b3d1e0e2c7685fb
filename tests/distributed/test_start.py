"""What a process loads before its first step: seconds of every start."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import sys
from train.engine.library import join_ranks
deepspeed = join_ranks("cpu")
from deepspeed.runtime.zero.utils import is_zero_supported_optimizer
import torch
assert is_zero_supported_optimizer(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]))
assert "deepspeed.runtime.zero.muon.original_muon" in sys.modules
print("torch._inductor.compile_fx" in sys.modules, torch.compile.__module__)
"""


def test_asking_for_deepspeeds_muon_does_not_load_the_compiler():
    words = [sys.executable, "-c", CODE]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["False torch"], done.stdout + done.stderr
