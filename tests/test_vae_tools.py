"""What the tools say of the run of a VAE, which predicts nothing; and two of its results side by side."""

import pytest
from distributed_helper import REPOSITORY
from end_to_end_helper import cache  # noqa: F401
from vae_helper import train_vae

from vidpred.diagnosis import subject_from_checkpoint
from vidpred.errors import UserError
from vidpred.evaluation import choose_checkpoint, compare, evaluate_checkpoint
from vidpred.prediction import load_predictor

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):  # noqa: F811
    folder = tmp_path_factory.mktemp("vae")
    train_vae(folder, "--training.evaluate_every_step=3")
    return folder / "tiny_vae"


def test_whoever_wants_a_predictor_is_told_what_this_run_is_for(run):
    checkpoint, _ = choose_checkpoint(run)
    wants = [
        lambda: load_predictor(run),
        lambda: subject_from_checkpoint(run),
        lambda: evaluate_checkpoint(checkpoint, ["prediction"]),
    ]
    for want in wants:
        with pytest.raises(UserError) as caught:
            want()
        line = str(caught.value)
        assert "is of task autoencoder and predicts nothing" in line and "\n" not in line
        assert f"Its VAE is {run / 'vae'}, for autoencoder.pretrained (kind kl)" in line


@pytest.mark.parametrize("tool", ["diagnose_diffusion.py", "test_model_inference.py"])
def test_a_tool_says_it_in_one_line(run, run_file, tool):
    code, _, errors = run_file(REPOSITORY / "tools" / tool, "--checkpoint", run, cwd=run.parent)
    assert code == 2 and len(errors) == 1 and errors[0].startswith("error: checkpoint ")


def test_two_results_compare_clip_by_clip(run):
    files = [run / "evaluation" / f"step_0000000{step}.json" for step in (3, 6)]
    comparison = compare(*files)
    assert comparison.common == 3 and comparison.by_content
    rows = {(row.row, row.metric): row for row in comparison.rows}
    assert rows["model", "psnr"].difference.mean != 0 and rows["floor", "psnr"].difference.mean == 0
