"""What a run may start from."""

import json

from longshort.lmeval.evaluate import load_checkpoint
from longshort.testing import save_checkpoint
from longshort.training.base import load_base, load_model
from longshort.training.config import TrainConfig
from tests.errors import user_error


def test_an_encoder_is_no_base(tmp_path):
    base = save_checkpoint(tmp_path / "bert", model_type="bert")
    config = TrainConfig(output=str(tmp_path / "out"), base=str(base), train_length=16)
    with user_error("unsupported", "'bert'", "is_decoder"):
        load_model(config, load_base(config))


def test_a_base_that_cannot_be_loaded_is_refused_as_in_an_evaluation(tmp_path):
    base = save_checkpoint(tmp_path / "model")
    for name, remedy in (("su", "longrope"), ("clex", "trust_remote_code")):
        config = json.loads((base / "config.json").read_text())
        config["rope_parameters"] = {"rope_type": name, "rope_theta": 1e4, "factor": 1.0}
        (base / "config.json").write_text(json.dumps(config))
        for start in ({"base": str(base)}, {"model_config": str(base), "tokenizer": str(base)}):
            settings = TrainConfig(output=str(tmp_path / "out"), train_length=16, **start)
            with user_error("broken", f"'{name}'", "rope_parameters", remedy):
                load_model(settings, load_base(settings))
        with user_error("broken", f"'{name}'", "rope_parameters", remedy):
            load_checkpoint({"pretrained": str(base)}, device="cpu")
