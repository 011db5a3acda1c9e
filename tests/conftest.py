"""One torch thread per test process: the suite runs in two of them."""

import torch

torch.set_num_threads(1)
