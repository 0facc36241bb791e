import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
import framework.algorithms
for module in pkgutil.iter_modules(framework.algorithms.__path__):
    importlib.import_module(f"framework.algorithms.{module.name}")
import framework.data.packing
import framework.models.packed_attention
heavy = {"ray", "vllm", "deepspeed", "hydra", "omegaconf", "transformers", "wandb"}
print(sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""


def test_pure_parts_load_no_engine() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
