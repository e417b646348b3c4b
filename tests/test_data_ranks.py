"""Two processes share the rendering and the scan, and come to the same data set."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os, pathlib, sys
from vidpred import distributed
from vidpred.data import ShapesConfig, build_dataset
from vidpred.data import shapes, scan

rendered, probed = [], []
encode, run = shapes.encode, scan.ProbePool.run
shapes.encode = lambda path, frames, fps: (rendered.append(path.name), encode(path, frames, fps))
scan.ProbePool.run = lambda self, names: (probed.extend(names), run(self, names))[1]
with distributed.process_group("cpu"):
    report = pathlib.Path(sys.argv[1]) / "report.json"
    sizes = dict(num_clips=5, num_val_clips=2, num_test_clips=1, num_frames=4, clip_frames=6)
    dataset = build_dataset(ShapesConfig(num_workers=1, **sizes), "train", 0, report)
    names = [dataset.item_name(i) for i in range(len(dataset))]
    total = dataset.clip(0, None).frames.sum().item()
    result = dict(names=names, rendered=len(rendered), probed=probed, frames=total)
    with open(os.path.join(sys.argv[1], f"rank{distributed.rank()}.json"), "w") as file:
        json.dump(result, file)
"""


def test_two_processes_share_the_work_and_agree(tmp_path):
    script = tmp_path / "build.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).resolve().parents[1])
    environment = {
        **os.environ,
        "VIDPRED_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": root,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*command, str(script), str(tmp_path)], check=True, env=environment, timeout=240, capture_output=True
    )
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert one["names"] == other["names"] == [f"train/{index:06d}.mp4" for index in range(5)]
    assert one["frames"] == other["frames"]
    assert one["rendered"] == other["rendered"] == 4
    assert len(one["probed"]) == len(other["probed"]) == 4 and not set(one["probed"]) & set(other["probed"])
    (book,) = (tmp_path / "cache" / "scans").iterdir()
    assert len(book.read_text().splitlines()) == 8
    assert json.loads((tmp_path / "report.json").read_text())["files"] == 8
