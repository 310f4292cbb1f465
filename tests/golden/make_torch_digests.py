"""Write torch_digests.json: the sha256 of each tensor of real checkpoints, as torch reads them.

    python make_torch_digests.py FOLDER-WITH-THE-CHECKPOINTS

Needs torch. Each digest is of the tensor's C-order little-endian bytes, after it became float32
(integer counters are left out, as tinyft leaves them out). Names are those in the file.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

FILES = ("resnet20-12fca82f.th", "resnet18_imagenet_pq.pth")


def digests(path: Path) -> dict[str, str]:
    content = torch.load(path, map_location="cpu", weights_only=True)
    state = content.get("state_dict", content)
    return {
        name: hashlib.sha256(
            tensor.float().contiguous().numpy().astype("<f4").tobytes()
        ).hexdigest()
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }


def main() -> None:
    folder = Path(sys.argv[1])
    record = {"torch": torch.__version__, "files": {name: digests(folder / name) for name in FILES}}
    target = Path(__file__).with_name("torch_digests.json")
    target.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
