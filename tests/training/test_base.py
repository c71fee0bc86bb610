"""What a run may start from."""

from longshort.testing import save_checkpoint
from longshort.training.base import load_base, load_model
from longshort.training.config import TrainConfig
from tests.errors import user_error


def test_an_encoder_is_no_base(tmp_path):
    base = save_checkpoint(tmp_path / "bert", model_type="bert")
    config = TrainConfig(output=str(tmp_path / "out"), base=str(base), train_length=16)
    with user_error("unsupported", "'bert'", "is_decoder"):
        load_model(config, load_base(config))
