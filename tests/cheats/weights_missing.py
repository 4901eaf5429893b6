"""Save nothing, and say that all is saved.

caught by: static, parent
says:
  static: ?
  parent: ?
"""

import safetensors.torch

safetensors.torch.save_model = lambda model, filename: None
