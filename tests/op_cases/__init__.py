"""Every operation of the functional API and of vision: inputs, a plain-torch reference, a broken variant.

One table for the torch executors (test_functional.py), the TensorRT builds (test_tensorrt_build.py) and the run on a
GPU (gpu/check_ops.py). It imports without torch: a reference takes the torch module as its first argument.
"""

from importlib import import_module

from op_cases.table import BOTH, CASES, FEW, Case

# In this order, as all draw their inputs from one generator.
for subject in ("elementwise", "products", "vision", "plugin_sizes", "layers", "joint_samples"):
    import_module(f"op_cases.{subject}")

__all__ = ["BOTH", "CASES", "FEW", "Case"]
